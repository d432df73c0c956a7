"""Static reuse: every block's output is reused in fixed steps, whatever the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import DISCARD, POLICIES, RECOMPUTE, REUSE, Call, Decision, Reuse, ReusePolicy, Run, Site
from fsframework.core.policy import Storage
from fsframework.core.schedule import check_every, is_reuse_step, warmup_steps


@dataclass
class StaticState:
    """Warmup length and the range of blocks."""

    warmup: int
    first: int
    last: Site


@POLICIES.register("static")
@dataclass(frozen=True)
class StaticReuse(ReusePolicy[StaticState]):
    """One recompute, then `interval - 1` steps in which all blocks of a range are reused.

    The baseline "Static" of Foresight (arXiv:2506.00329), there with one reuse step (N, R) = (1, 2). Step s is reused
    iff s >= W and (s - W + phase) % R < N, with R = `interval` and N = R - 1 unless `reuse_steps` says otherwise.

    With output storage, reusing consecutive blocks gives the output of the last one, so only that is cached and restored:
    the result of caching all L outputs, with 1 hidden state of memory instead of L. Blocks before the range then run for
    nothing in a reuse step (the released Foresight code does this with blocks 10..19 of CogVideoX); to leave a range out
    with effect use residual storage. Granularity: block. Host reads: none.
    """

    paper = "the baseline of Foresight, arXiv:2506.00329"
    signal = "the step's number"
    deviations = "The paper does not say whether its Static has a warmup; here it has the one of Foresight."
    never = {"interval": 1}

    interval: int = 2
    """Steps per cycle, >= 1. Higher reuses more: faster, further from the reference. 1 never reuses."""
    reuse_steps: int | None = None
    """N, reuse steps per cycle, 0 to interval - 1; None is interval - 1. (interval=4, reuse_steps=1) reuses one in four."""
    warmup: float | int = 0.15
    """Leading steps always recomputed: a fraction of the steps (float), or a number of steps (int), at least 1."""
    phase: int = 0
    """Shifts the cycle by so many steps; 0 makes the first step after the warmup a reuse step."""
    first_block: int = 0
    """First block of the range, counted in execution order (Latte: s0 t0 s1 t1 ...). With output storage a higher one
    saves less and changes nothing in the video."""
    last_block: int | None = None
    """Last block of the range, inclusive; None is the model's last."""
    storage: Storage = "output"
    """`output` restores the output of the range's last block; `residual` adds each block's old change to its live input,
    and caches one hidden state per block of the range."""

    def __post_init__(self) -> None:
        check_every(self.interval, "interval", "static")
        if self.reuse_steps is not None and not 0 <= self.reuse_steps < self.interval:
            raise ValueError(
                f"static: reuse_steps={self.reuse_steps} must be 0 to interval - 1 = {self.interval - 1}: a cycle has at "
                f"least one recompute"
            )
        if self.storage not in ("output", "residual"):
            raise ValueError(f"static: storage={self.storage!r} must be one of output, residual")

    @property
    def jumps(self) -> bool:
        """With output storage a reuse step jumps over the whole range."""
        return self.storage == "output"

    def start(self, run: Run) -> StaticState:
        """Check the range against the model."""
        last = len(run.sites) - 1 if self.last_block is None else self.last_block
        if not 0 <= self.first_block <= last < len(run.sites):
            raise ValueError(
                f"static: blocks {self.first_block}..{last} are not a range of this model's {len(run.sites)} blocks "
                f"(0..{len(run.sites) - 1})"
            )
        warmup = warmup_steps(self.warmup, run.num_steps, 1, "static")
        return StaticState(warmup, self.first_block, run.sites[last])

    def decide(self, state: StaticState, call: Call, site: Site) -> Decision:
        """At a reuse step the first block of the range jumps to the last one's output, or each reuses its residual."""
        if self.storage == "residual":
            if not state.first <= site.start <= state.last.start:
                return DISCARD
            return REUSE if self._is_reuse_step(call.step.index, state.warmup) else RECOMPUTE
        if site.start == state.first and self._is_reuse_step(call.step.index, state.warmup):
            return Reuse(through=state.last)
        return RECOMPUTE if site == state.last else DISCARD

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are recomputed; blocks outside the range always are."""
        warmup = warmup_steps(self.warmup, run.num_steps, 1, "static")
        return [not self._is_reuse_step(s, warmup) for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """The output of the last block of the range, or every block's residual; of a forecast, several of each."""
        last = len(run.sites) - 1 if self.last_block is None else self.last_block
        num_sites = 1 if self.storage == "output" else last - self.first_block + 1
        return num_sites * min(sum(self.schedule(run)), run.depth)

    def _is_reuse_step(self, step: int, warmup: int) -> bool:
        return is_reuse_step(step, warmup, self.interval, self.phase, self.reuse_steps)
