"""Foresight as its released code has it: for parity with published runs, not for new ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    DISCARD,
    POLICIES,
    RECOMPUTE,
    REUSE,
    Call,
    Decision,
    Entry,
    Kind,
    Reuse,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.distance import mse
from fsframework.core.policy import Storage
from fsframework.core.schedule import check_every


@dataclass
class ReleaseState:
    """One video and branch."""

    layers: list[Site]
    """The site whose cached output is restored for each layer: the joint block, or a pair's temporal block."""
    column: dict[Site, int]
    layer: dict[Site, int]
    change: list[Tensor]
    """What the release calls mse: per site, a 0-d float32 tensor."""
    threshold: Tensor | None = None
    spatial: State = ()
    """The output of the spatial block just run, in canonical layout."""
    safe: frozenset[Site] = frozenset()
    """Sites whose last change is at most their threshold, at an adaptive step."""
    first_kept: int = 0
    """The step from which on outputs are kept."""
    jump: Site | None = None
    """The last safe layer's site, with output storage."""
    host_threshold: list[float] = field(default_factory=list)
    """Per column, while a forward may reuse."""


@POLICIES.register("foresight_release")
@dataclass(frozen=True)
class ForesightRelease(ReusePolicy[ReleaseState]):
    """The decisions of STAR-Laboratory/foresight (commit a4dba33), which differ from the paper's algorithm.

    - The threshold is gamma times *one* change, between the last two warmup steps.
    - An adaptive step finds the last layer l* whose change is at most its threshold, in the spatial or the temporal list,
      restores the cached output of l* and runs only the layers after it: a *prefix* is passed over, unsafe layers in it
      included. No such layer: everything is computed.
    - A step is recomputed when its index is a multiple of `recompute_every`, counted from step 0.
    - After the warmup a temporal block's "change" is measured against the *spatial* output of the same step, so it is
      the size of the block's residual. (In the release a slip; part of its results, so reproduced here.)

    Not reproduced: state that leaks from one prompt into the next, half-precision overflow, NaN that means reuse, and
    the NameError on Open-Sora. Details and line numbers: docs/footguns.md.

    With `storage="residual"`, which the release does not have, there is no prefix: each block decides alone with the
    release's threshold and phase, adds its old change to the live input, and its change is that of its residual.

    Granularity: prefix of blocks. Caches every block's output. Host reads: one per adaptive forward, a step old.
    """

    paper = "the released code of Foresight, github.com/STAR-Laboratory/foresight"
    signal = "each block's mean squared change at its last computation, known at the end of that step"
    deviations = (
        "None on purpose: it reproduces the released code's decisions, without its crash and its leaking state. Residual "
        "storage is not of the release."
    )
    never = {"recompute_every": 1}
    host_reads_per_step: ClassVar[int] = 1

    gamma: float = 1.0
    """Scale on the threshold, >= 0 (`threshold` in the release). Higher reuses more. At 1 or more the first step after
    the warmup reuses everything, if it is adaptive; below 1 it reuses nothing."""
    warmup: int = 8
    """Leading steps always recomputed, a number of steps, at least 2."""
    recompute_every: int = 2
    """Steps whose index is a multiple of this are recomputed (`recalculate` in the release)."""
    storage: Storage = "output"
    """`output` (the release) jumps over a prefix of layers; `residual` lets each block reuse the change it makes."""

    def __post_init__(self) -> None:
        check_every(self.recompute_every, "recompute_every", "foresight_release")
        if not self.gamma >= 0:
            raise ValueError(f"foresight_release: gamma={self.gamma} must be >= 0")
        if self.warmup < 2:
            raise ValueError(
                f"foresight_release needs a warmup of at least 2 steps to measure a change; warmup={self.warmup}"
            )
        if self.storage not in ("output", "residual"):
            raise ValueError(f"foresight_release: storage={self.storage!r} must be one of output, residual")

    @property
    def jumps(self) -> bool:
        """With output storage an adaptive step jumps over the prefix of safe layers."""
        return self.storage == "output"

    def start(self, run: Run) -> ReleaseState:
        """Number the layers: pairs where temporal blocks exist, else blocks."""
        if self.warmup > run.num_steps:
            raise ValueError(
                f"foresight_release: a warmup of {self.warmup} steps is longer than the run of {run.num_steps} steps. "
                f"Lower policy.warmup or raise the number of steps."
            )
        temporal = [site for site in run.sites if site.kind is Kind.TEMPORAL]
        layers = temporal or list(run.sites)
        state = ReleaseState(layers, {site: i for i, site in enumerate(run.sites)}, {}, [])
        state.layer = {site: site.ordinal if temporal else i for i, site in enumerate(run.sites)}
        state.first_kept = self.warmup - max(2, run.depth)
        return state

    def begin_forward(self, state: ReleaseState, call: Call) -> None:
        """At an adaptive step, find the last safe layer from the changes posted a step ago."""
        state.jump, state.safe = None, frozenset()
        state.host_threshold = []
        if not self._adaptive(call.step.index):
            return
        values = call.meter.take(call.branch)
        if values is None:
            return
        n = len(state.column)
        state.host_threshold = values[n:]
        state.safe = frozenset(
            site
            for site, i in state.column.items()
            if math.isfinite(values[i]) and values[i] <= values[n + i] < math.inf
        )
        if state.safe and self.storage == "output":
            state.jump = state.layers[max(state.layer[site] for site in state.safe)]

    def decide(self, state: ReleaseState, call: Call, site: Site) -> Decision:
        """The first block jumps through the last safe layer; whatever comes after it is computed."""
        if state.host_threshold:
            call.log(threshold=state.host_threshold[state.column[site]])
        if state.jump is not None:
            if site.start == 0:
                return Reuse(through=state.jump)
        elif site in state.safe:
            return REUSE
        return RECOMPUTE if call.step.index >= state.first_kept else DISCARD

    def observe(self, state: ReleaseState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure the change at the last warmup step and after it."""
        step = call.step.index
        if step < self.warmup - 1:
            return
        if not state.change:
            state.change = [torch.zeros((), device=fresh[0].device)] * len(state.column)
        against = None if cached is None else cached.value[0]
        value = fresh[0]
        if self.storage == "residual":
            value = value - call.input()[0]
        elif step >= self.warmup and site.kind is Kind.SPATIAL:
            state.spatial = call.canonical(site, fresh)
        elif step >= self.warmup and site.kind is Kind.TEMPORAL and state.spatial:
            value, against = call.canonical(site, fresh)[0], state.spatial[0]
        if against is not None:
            state.change[state.column[site]] = mse(value, against)
            call.log(distance=state.change[state.column[site]])

    def end_forward(self, state: ReleaseState, call: Call) -> None:
        """Set the thresholds at the last warmup step; post the changes before an adaptive step."""
        step = call.step.index
        if step == self.warmup - 1:
            state.threshold = self.gamma * call.meter.mean_over_ranks(torch.stack(state.change))
        if self._adaptive(step + 1) and state.threshold is not None:
            changes = call.meter.mean_over_ranks(torch.stack(state.change))
            call.meter.post(call.branch, torch.cat([changes, state.threshold]))
        state.spatial = ()

    def _adaptive(self, step: int) -> bool:
        return step >= self.warmup and step % self.recompute_every != 0
