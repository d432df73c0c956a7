"""T-GATE: text attention is fixed once the layout is there, and the guidance branch dropped with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fsframework.core import (
    DISCARD,
    POLICIES,
    RECOMPUTE,
    REUSE,
    Branch,
    Call,
    Decision,
    Entry,
    Forecast,
    Part,
    ReusePolicy,
    Run,
    Site,
    State,
    Synthesize,
)
from fsframework.core.schedule import check_every, count_of, plan


@dataclass
class TgateState:
    """One video and branch."""

    gate: int
    """g, the first step after the gate."""
    drops: bool
    """Whether there is a branch to drop, as far as is known."""
    decisions: dict[Part, list[Decision]]
    """Per sub-module part, what to do at each step."""


@POLICIES.register("tgate")
@dataclass(frozen=True)
class TGate(ReusePolicy[TgateState]):
    """T-GATE (arXiv:2404.02747): cross-attention matters while the layout forms, self-attention afterwards.

    With g = `gate_step`, a = `sp_interval`, b = `fi_interval` and w = `warmup`, in steps s = 0, 1, ...:

        cross-attention   s < g: computed                     s >= g: reused from step g - 1, for ever
        self-attention    s <= w and s = g - 1: computed; w < s < g - 1: every a-th (s mod a = 0), else reused
                          s >= g: every b-th (s mod b = 0), else reused
        guidance          s >= g: the unconditional branch is not run; its prediction is the conditional one

    From g on the one branch that is left reuses the mean over both branches of what step g - 1 gave, (uncond + cond) / 2
    (`average`; in the trace a forecast). Both branches' values are cached and the mean is taken when it is used.

    Under batched guidance the conditional half of the batch runs alone from g on; under sequential guidance the
    unconditional call is answered without running, if it comes after the conditional one. Where it comes first, or the
    guidance is not known to be such, both run, each reusing its own values, and the trace says `forced`.

    A model without cross-attention (CogVideoX, and all of joint attention) has only the self-attention, which then is the
    joint one, and the dropped branch; with the defaults nothing but the latter happens from g on.

    Granularity: sub-module and guidance branch. Caches one value per attention and cross-attention that is reused.
    Host reads: none.
    Source: github.com/HaozheLiu-ST/T-GATE, image pipelines (SD, SDXL, PixArt, SVD); it keeps its cache from one
    prompt to the next, here each video starts anew.
    """

    paper = "T-GATE, arXiv:2404.02747, github.com/HaozheLiu-ST/T-GATE"
    signal = "the step's number"
    deviations = (
        "Released for image models; for others the gate is at PixArt's 10 of 25 steps, 0.4. The cached value is the "
        "sub-module's output before the block's gate."
    )
    published = {"pixart": {"gate_step": 10}, "": {"gate_step": 0.4}}
    never = {"gate_step": 1.0, "sp_interval": 1}

    gate_step: float | int | None = None
    """g, the first step after the gate: a fraction of the steps (float, above 0, 1.0 is never) or a step (int, >= 1). Lower
    reuses more. None: as published, 10 for PixArt, else 0.4."""
    sp_interval: int = 5
    """a, before the gate: self-attention is computed at one step in so many, >= 1."""
    fi_interval: int = 1
    """b, after the gate: self-attention is computed at one step in so many, >= 1."""
    warmup: int = 2
    """w, self-attention is computed up to and including this step, >= 0."""
    average: bool = True
    """After the gate, reuse the mean over the guidance branches; False: the conditional branch's own values. Only at steps
    in which the other branch is dropped."""
    drop_branch: bool = True
    """After the gate, do not run the unconditional branch; False: both branches run, each reusing its own values."""

    def __post_init__(self) -> None:
        check_every(self.sp_interval, "sp_interval", "tgate")
        check_every(self.fi_interval, "fi_interval", "tgate")
        if self.warmup < 0:
            raise ValueError(f"tgate: warmup={self.warmup} must be a step >= 0")
        gate = self.gate_step
        if gate is not None and (gate <= 0 or (isinstance(gate, float) and gate > 1)):
            raise ValueError(
                f"tgate: gate_step={gate} must be a fraction of the steps, above 0.0 and at most 1.0, or a step >= 1"
            )

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Both kinds of attention, and the model where a branch is dropped."""
        attention = {Part.ATTENTION, Part.CROSS_ATTENTION}
        return frozenset(attention | {Part.MODEL} if self.drop_branch else attention)

    def start(self, run: Run) -> TgateState:
        """Work out all decisions."""
        gate = self._gate(run)
        decisions = {
            part: plan(self._computed(part, run), run.depth) for part in (Part.ATTENTION, Part.CROSS_ATTENTION)
        }
        is_guided = run.branch != Branch.JOINT or run.facts.get("guided") is not False
        return TgateState(gate, self.drop_branch and is_guided, decisions)

    def decide(self, state: TgateState, call: Call, site: Site) -> Decision:
        """After the gate the model's unconditional branch is made from the other; attention goes by the plan."""
        step = call.step.index
        if site.part is Part.MODEL:
            is_asked = state.drops and call.branch in (Branch.UNCOND, Branch.JOINT)
            return _DROP if is_asked and step >= state.gate else DISCARD
        decision = state.decisions[site.part][step]
        if decision is REUSE and self.average and self.drop_branch and call.branch == Branch.COND:
            return self._averaged(state, call, site)
        return decision

    def observe(self, state: TgateState, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool | None:
        """A prediction is never reused, so not stored either, where both branches had to run after all."""
        return False if site.part is Part.MODEL else None

    def schedule(self, run: Run) -> list[bool]:
        """Steps in which the branch runs (of a batch: both) and everything in it is computed."""
        parts = {site.part for site in run.sites} - {Part.MODEL}
        computed = [self._computed(part, run) for part in parts]
        last = self._last(run)
        return [s < last and all(steps[s] for steps in computed) for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """One value per site that is reused. The half of a guidance batch that runs alone after the gate has its own of the
        self-attention that it computes and reuses, which count half."""
        total, last = 0.0, self._last(run)
        for site in run.sites_of(Part.ATTENTION, Part.CROSS_ATTENTION):
            decisions = plan(self._computed(site.part, run), run.depth)
            total += min(decisions[:last].count(RECOMPUTE), run.depth)
            if run.branch == Branch.JOINT:
                total += min(decisions[last:].count(RECOMPUTE), run.depth) / 2
        return int(total + 0.5)

    def _gate(self, run: Run) -> int:
        gate = self.option("gate_step", run)
        return max(count_of(gate, run.num_steps), 1)

    def _last(self, run: Run) -> int:
        """The step from which on the branch (of a batch: its unconditional half) is known not to run."""
        is_there = run.branch == Branch.UNCOND or (run.branch == Branch.JOINT and run.facts.get("guided") is True)
        return self._gate(run) if self.drop_branch and is_there else run.num_steps

    def _computed(self, part: Part, run: Run) -> list[bool]:
        gate = self._gate(run)
        if part is Part.CROSS_ATTENTION:
            return [s < gate for s in range(run.num_steps)]
        return [
            s % self.fi_interval == 0 if s >= gate else s <= self.warmup or s == gate - 1 or s % self.sp_interval == 0
            for s in range(run.num_steps)
        ]

    def _averaged(self, state: TgateState, call: Call, site: Site) -> Decision:
        """The mean of both branches' values of the gate step, if the other is dropped and that is what is cached."""
        if Branch.UNCOND in call.predictions():  # called before this branch, so it has run after all
            return REUSE
        both = [call.history(site), call.history(site, Branch.UNCOND)]
        if not all(history and history[-1].step == state.gate - 1 for history in both):
            return REUSE
        return Forecast(partial(_mean, [history[-1] for history in both]))


def _mean(entries: list[Entry], *_: object) -> State:
    """The mean of two entries, stream by stream."""
    one, other = (entry.value for entry in entries)
    return tuple([(a + b) / 2 for a, b in zip(one, other)])


_DROP = Synthesize(lambda predictions: predictions[Branch.COND].clone(), Branch.UNCOND)
