"""FORA: outputs of attention, cross-attention and MLP reused in fixed steps, before the block's gate."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import POLICIES, Call, Decision, Part, ReusePolicy, Run, Site
from fsframework.core.schedule import check_every, most_kept, plan


@dataclass
class ForaState:
    """One video and branch."""

    decisions: list[Decision]
    """Per step, the same for all sites."""


@POLICIES.register("fora")
@dataclass(frozen=True)
class Fora(ReusePolicy[ForaState]):
    """FORA (arXiv:2407.01425): every attention and MLP output is computed once in `interval` steps and reused between.

    With N = `interval` and T steps, step s is recomputed iff s = 0 or (T - 1 - s) % N = 0; the released code counts its
    steps down, so the last step is always computed and the first cycle is the one that is cut short. The value kept is the
    sub-module's raw output f(x); on reuse the block applies this step's gate to it: x + gate(t) * f(x_old).

    Granularity: sub-module. Caches one value per sub-module asked about: 2 hidden states per block of attention and MLP,
    3 with cross-attention. Host reads: none. Source: github.com/prathebaselva/FORA, a class-conditional image model.
    """

    paper = "FORA, arXiv:2407.01425, github.com/prathebaselva/FORA"
    signal = "the step's number"
    deviations = (
        "The released code is for image models of attention and MLP; here cross-attention is reused in the same steps. "
        "Its 3 of 250 steps is the default; no video setting was published."
    )
    never = {"interval": 1}

    interval: int = 3
    """N, steps per cycle, >= 1. Higher reuses more: faster, further from the reference. 1 never reuses."""
    attention: bool = True
    """Reuse the outputs of self-attention (joint attention: of both streams)."""
    cross_attention: bool = True
    """Reuse the outputs of attention to the text, where blocks have one."""
    mlp: bool = True
    """Reuse the outputs of the feed-forward."""
    count_from: str = "end"
    """`end` (the released code): the last step is recomputed, and every N-th before it, and the first. `start`: the first
    and every N-th after it."""

    def __post_init__(self) -> None:
        check_every(self.interval, "interval", "fora")
        if not (self.attention or self.cross_attention or self.mlp):
            raise ValueError("fora: attention, cross_attention and mlp are all off; at least one must be true")
        if self.count_from not in ("end", "start"):
            raise ValueError(f"fora: count_from={self.count_from!r} must be end or start")

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """The sub-modules that are switched on."""
        switched = {
            Part.ATTENTION: self.attention,
            Part.CROSS_ATTENTION: self.cross_attention,
            Part.MLP: self.mlp,
        }
        return frozenset(part for part, on in switched.items() if on)

    def start(self, run: Run) -> ForaState:
        """The plan of the run."""
        return ForaState(plan(self.schedule(run), run.depth))

    def decide(self, state: ForaState, call: Call, site: Site) -> Decision:
        """By the plan, the same for all sites."""
        return state.decisions[call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are recomputed."""
        last = run.num_steps - 1
        count = [last - s if self.count_from == "end" else s for s in range(run.num_steps)]
        return [s == 0 or c % self.interval == 0 for s, c in enumerate(count)]

    def num_cached(self, run: Run) -> int:
        """One output per site (of a forecast, several); none if nothing is ever reused."""
        return most_kept(self.schedule(run), run.depth) * len(run.sites)
