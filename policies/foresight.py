"""Foresight: per-block thresholds from a short warmup, reuse while the last measured change is below them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Call,
    Decision,
    Entry,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.distance import mse
from fsframework.core.schedule import check_every, is_reuse_step, warmup_steps


@dataclass
class ForesightState:
    """One video and branch. Device scalars are held per block; host values are one step old."""

    warmup: int
    column: dict[Site, int]
    lam: list[Tensor]
    """lambda of each block, a 0-d float32 tensor; empty before the warmup's tail."""
    distance: list[Tensor]
    """delta of each block: its last measured distance, a 0-d float32 tensor."""
    threshold: Tensor | None = None
    """gamma * lambda, [num_blocks] float32 on the device; from the warmup's last step on."""
    host_threshold: list[float] = field(default_factory=list)
    reusable: list[bool] = field(default_factory=list)
    """The decisions of the forward in progress; empty where nothing may be reused."""


@POLICIES.register("foresight")
@dataclass(frozen=True)
class Foresight(ReusePolicy[ForesightState]):
    """Foresight (arXiv:2506.00329, NeurIPS 2025), the algorithm of the paper.

    In the warmup (steps 0..W-1, all blocks computed) each block l gets a threshold from its last three changes,

        lambda_l = sum over s = W-3..W-1 of 10^-(W-1-s) * MSE(y_l(s), y_l(s-1))        (not normalised: 1 + 0.1 + 0.01)

    Afterwards, in cycles of R = `recompute_every` steps, N = R-1 are reuse-eligible and one recomputes every block:
    step s is eligible iff s >= W and (s - W + phase) % R != R - 1. Whenever a block is computed its change
    delta_l = MSE(y_l, cached y_l) is measured and its cache refreshed; at an eligible step it is reused iff
    delta_l <= gamma * lambda_l. Each block (spatial and temporal apart) and each guidance branch decides alone.

    Granularity: block. Caches every block's output: 2 hidden states per spatial-temporal layer pair, 1 per joint block.
    Host reads: one per eligible forward, asynchronous and a step old. Distances are float32, one for the whole batch,
    guidance halves and prompts alike, and measured on the video stream only; all streams are cached and restored together.

    Departures from the released code (which has another threshold, jumps over prefixes and never resets) are all in
    docs/footguns.md; `ForesightRelease` reproduces that code.

    Note that directly after the warmup delta is lambda's own first term, so a block is reused there iff
    delta <= gamma * (delta + smaller terms): practically always for gamma >= 1, never for gamma <= 0.9 unless the
    change was falling fast.
    """

    paper = "Foresight, arXiv:2506.00329 (NeurIPS 2025)"
    signal = "each block's mean squared change at its last computation, known at the end of that step"
    deviations = (
        "Written from summaries of the paper. Assumed: the phase of the cycle, whose first step after the warmup may reuse "
        "(phase=0), and that delta is refreshed whenever a block is computed. Options add residual storage, lag correction, "
        "another reduction and elimination of dead blocks; all are off by default."
    )
    never = {"recompute_every": 1}
    host_reads_per_step: ClassVar[int] = 1

    gamma: float = 0.5
    """Scale on each block's warmup distance, >= 0; the paper uses 0.25 to 2. Higher reuses more: faster, further from
    the reference."""
    warmup: float | int = 0.15
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 2."""
    recompute_every: int = 2
    """R: after every R-1 eligible steps all blocks are recomputed once. The paper's (N, R) = (1, 2) is 2, (2, 3) is 3."""
    phase: int = 0
    """Shifts the cycle by so many steps; 0 makes the first step after the warmup eligible, R-1 makes it a recompute."""
    lag_correction: bool = False
    """Divide a distance measured over `lag` steps by lag^2. After a reuse the cache is several steps old while lambda
    is a one-step change; for steady drift the MSE grows with the square of the lag, so without this the effective gamma
    shrinks by (N+1)^2. Off in the paper. On reuses more at the same gamma."""
    token_stride: int = 1
    """Measure the distance on every so-many-th token. 3 costs a third, with an error of 2 % (median) to 8 % (95th percentile)
    on the tiny models; even numbers do worse, since rows of tokens have even lengths (`core/distance.py`)."""
    storage: str = "output"  # type: ignore[assignment]
    """`output` (the paper) restores a block's output and with it discards what the blocks before it computed in that
    step; `residual` adds its change to the live input, so recomputed blocks before it keep their effect. The distance is
    measured on what is stored."""
    reduce: str = "mean"
    """`mean` over everything (the paper), or `max`: the largest of the per-sample means, since the mean over a guidance
    batch halves the change of the branch that moves."""
    eliminate_dead: bool = False
    """With output storage: do not run the blocks before the last reused one, whose work it discards. Same video in that
    step, less compute; but their distances are then not refreshed, so later decisions can differ. Off in the paper."""

    def __post_init__(self) -> None:
        check_every(self.recompute_every, "recompute_every", "foresight")
        if not self.gamma >= 0:
            raise ValueError(f"foresight: gamma={self.gamma} must be >= 0; the paper uses 0.25 to 2")
        if self.token_stride < 1:
            raise ValueError(f"foresight: token_stride={self.token_stride} must be at least 1")
        for name, value, allowed in (
            ("storage", self.storage, ("output", "residual")),
            ("reduce", self.reduce, ("mean", "max")),
        ):
            if value not in allowed:
                raise ValueError(f"foresight: {name}={value!r} must be one of {', '.join(allowed)}")
        if self.eliminate_dead and self.storage != "output":
            raise ValueError("foresight: eliminate_dead needs storage='output'; with residuals every block matters")

    def start(self, run: Run) -> ForesightState:
        """A cold state: no threshold, no distance."""
        warmup = warmup_steps(self.warmup, run.num_steps, 2, "foresight")
        return ForesightState(warmup, {site: i for i, site in enumerate(run.sites)}, [], [])

    def begin_forward(self, state: ForesightState, call: Call) -> None:
        """At an eligible step, read the distances posted a step ago: the only host read."""
        state.reusable = []
        if not self._eligible(state, call.step.index):
            return
        values = call.meter.take(call.branch)
        if values is None:
            return
        n = len(state.column)
        distances, state.host_threshold = values[:n], values[n:]
        # inf <= inf must not mean reuse, nor may a warmup that overflowed (threshold inf) reuse everything.
        state.reusable = [math.isfinite(d) and d <= t < math.inf for d, t in zip(distances, state.host_threshold)]

    def decide(self, state: ForesightState, call: Call, site: Site) -> Decision:
        """Reuse iff the block's last measured distance was at most its threshold."""
        column = state.column[site]
        if state.host_threshold:
            call.log(threshold=state.host_threshold[column])
        return REUSE if state.reusable and state.reusable[column] else RECOMPUTE

    def observe(self, state: ForesightState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure how far the block moved since its cached value; in the warmup's tail, add to lambda."""
        if cached is None:
            return
        measured = fresh[0] - call.input()[0] if self.storage == "residual" else fresh[0]
        distance = self._distance(measured, cached.value[0], call.num_samples)
        lag = call.step.index - cached.step
        if self.lag_correction and lag > 1:
            distance = distance / lag**2
        call.log(distance=distance)
        column, step = state.column[site], call.step.index
        if not state.distance:
            zero = torch.zeros((), dtype=torch.float32, device=distance.device)
            state.distance, state.lam = [zero] * len(state.column), [zero] * len(state.column)
        state.distance[column] = distance
        if state.warmup - TAIL <= step < state.warmup:
            state.lam[column] = state.lam[column] + 10.0 ** (step - state.warmup + 1) * distance

    def end_forward(self, state: ForesightState, call: Call) -> None:
        """If the next step may reuse, start copying distances and thresholds to the host."""
        if not self._eligible(state, call.step.index + 1) or not state.distance:
            return
        if state.threshold is None:
            state.threshold = self.gamma * call.meter.mean_over_ranks(torch.stack(state.lam))
        distances = call.meter.mean_over_ranks(torch.stack(state.distance))
        call.meter.post(call.branch, torch.cat([distances, state.threshold]))

    def _eligible(self, state: ForesightState, step: int) -> bool:
        return is_reuse_step(step, state.warmup, self.recompute_every, self.phase)

    def _distance(self, fresh: Tensor, cached: Tensor, num_samples: int) -> Tensor:
        if self.reduce == "mean":
            return mse(fresh, cached, self.token_stride)
        rows = mse(fresh, cached, self.token_stride, per_sample=True)
        return rows.reshape(num_samples, -1).mean(dim=1).amax()


TAIL = 3
"""Warmup steps that enter lambda."""
