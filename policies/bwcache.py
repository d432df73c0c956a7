"""BWCache: all blocks are reused for some steps once, on average, their outputs stand nearly still."""

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
    Part,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.distance import relative_l1
from fsframework.core.policy import Storage
from fsframework.core.schedule import count_of


@dataclass
class BWCacheState:
    """One video and branch."""

    reuse_steps: int
    num_blocks: int
    changes: list[Tensor] = field(default_factory=list)
    """Of this forward, one 0-d float32 tensor per block."""
    change: float = math.nan
    """The mean change at the step before, where that was measured."""
    reuse_until: int = 0
    """Steps before this one reuse."""
    last_reusable: int | None = None
    """Steps after this one are computed; known from the first trigger on."""
    computes: bool = True
    """Whether the forward in progress computes."""
    measures: bool = True
    """Whether what it computes is compared with the cache."""


@POLICIES.register("bwcache")
@dataclass(frozen=True)
class BWCache(ReusePolicy[BWCacheState]):
    """At a computed step the mean change of all block outputs is compared with a threshold; below it the next R steps are reused.

    The change at step s is

        d(s) = mean over blocks l of mean|y_l(s) - cached y_l| / mean|cached y_l|        (video stream)

    where the cached value is from the last computed step. d(s) < `threshold` triggers: steps s+1..s+R are reused as a
    whole, s+R+1 is computed and measured again. If k steps had been computed when it triggered for the first time, the
    last k/2 steps (rounded down, at least 1) are always computed. A change that is not finite does not trigger.

    Reusing every block's output is the same as putting the last block's output in place, so the trunk is what is reused:
    its residual (output minus input, as the released code is said to do) or its output.

    Granularity: step. Caches every block's output, to measure, and one value of the trunk: one hidden state per block and
    one more. Host reads: one per computed step until nothing can be reused any more, asynchronous and a step old. Source:
    arXiv:2509.13789.
    """

    paper = "BWCache, arXiv:2509.13789"
    signal = "mean relative L1 change of the block outputs between computed steps, known at the end of a computed step"
    deviations = (
        "From summaries; the official code was not read. Others who read it say that it makes one fixed schedule at the "
        "first trigger (here `once`) and reuses the trunk's residual (here the default). After a reuse the change spans "
        "R + 1 steps. k counts computed steps, 1 at step 0."
    )
    parts = frozenset({Part.TRUNK, Part.BLOCK})
    example = {"threshold": 10.0}
    never = {"threshold": 0.0}
    host_reads_per_step: ClassVar[int] = 1

    threshold: float = 0.15
    """Mean relative change below which the next steps are reused, >= 0. The paper has 0.15, for more speed 0.20 and 0.25.
    Higher reuses more: faster, further from the reference. 0 never reuses."""
    reuse_steps: float | int = 0.1
    """R, steps reused per trigger: a fraction of the steps (float; the paper's 10 % is 3 of 30 and 5 of 50) or a number of
    steps (int), at least 1. Higher reuses more."""
    once: bool = False
    """Decide once: from the first trigger on, cycles of R reused steps and a computed one follow, unmeasured."""
    storage: Storage = "residual"
    """What is reused of the trunk: `residual` adds its old change to the live input, `output` puts its old output in
    place. (Blocks are always kept as outputs, to measure.)"""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"bwcache: threshold={self.threshold} must be >= 0; the paper uses 0.15 to 0.25")
        if isinstance(self.reuse_steps, float) and not 0.0 < self.reuse_steps <= 1.0:
            raise ValueError(
                f"bwcache: reuse_steps={self.reuse_steps} as a float is a fraction of the steps, above 0 and up to 1; for a "
                f"number of steps write an integer (reuse_steps={self.reuse_steps:.0f})"
            )
        if self.reuse_steps < 1 and isinstance(self.reuse_steps, int):
            raise ValueError(f"bwcache: reuse_steps={self.reuse_steps} must be at least 1 step")
        if self.storage not in ("output", "residual"):
            raise ValueError(f"bwcache: storage={self.storage!r} must be one of output, residual")

    def storage_of(self, site: Site) -> Storage:
        """Block outputs, to measure; of the trunk what `storage` says."""
        return self.storage if site.part is Part.TRUNK else "output"

    def num_cached(self, run: Run) -> int:
        """One value of the trunk and of every block (of a forecast, several). No reuse can follow what the blocks give in the
        last two steps, so that is not kept."""
        blocks = min(run.depth, max(run.num_steps - 2, 0))
        return min(run.depth, run.num_steps) + blocks * len(run.sites_of(Part.BLOCK))

    def start(self, run: Run) -> BWCacheState:
        """A cold state; R in steps."""
        steps = self.reuse_steps
        if isinstance(steps, float):
            steps = max(1, count_of(steps, run.num_steps))
        return BWCacheState(steps, len(run.sites_of(Part.BLOCK)))

    def begin_forward(self, state: BWCacheState, call: Call) -> None:
        """Read the change of the step before, if it was measured: the only host read."""
        step, num_steps = call.step.index, call.step.num_steps
        values = call.meter.take(call.branch)
        state.change, state.changes = math.nan, []
        if values is not None:
            state.change = values[0]
            if math.isfinite(state.change) and state.change < self.threshold:
                if state.last_reusable is None:
                    state.last_reusable = num_steps - 1 - max(1, step // 2)  # `step` steps have been computed
                state.reuse_until = step + state.reuse_steps
        if self.once and state.last_reusable is not None and step > state.reuse_until:
            state.reuse_until = step + state.reuse_steps
        state.computes = step >= state.reuse_until or (state.last_reusable is not None and step > state.last_reusable)
        # Nothing is worth measuring where the step after this one can not be reused.
        last = num_steps - 2 if state.last_reusable is None else state.last_reusable
        state.measures = step + 1 <= last and not (self.once and state.last_reusable is not None)

    def decide(self, state: BWCacheState, call: Call, site: Site) -> Decision:
        """The whole trunk, or nothing."""
        if site.part is Part.TRUNK:
            if math.isfinite(state.change):
                call.log(distance=state.change, threshold=self.threshold)
            if not state.computes:
                return REUSE
            needed = state.last_reusable is None or call.step.index < state.last_reusable
            return RECOMPUTE if needed else DISCARD
        return RECOMPUTE if state.measures else DISCARD

    def observe(self, state: BWCacheState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure how far a block moved since the last computed step."""
        if site.part is Part.TRUNK or cached is None or not state.measures:
            return
        change = relative_l1(fresh[0], cached.value[0])
        call.log(distance=change)
        state.changes.append(change)

    def end_forward(self, state: BWCacheState, call: Call) -> None:
        """If all blocks were measured, start copying the mean to the host."""
        if len(state.changes) == state.num_blocks:
            call.meter.post(call.branch, call.meter.mean_over_ranks(torch.stack(state.changes).mean()[None]))
