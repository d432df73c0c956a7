"""First-Block-Cache: the first block's change decides whether the change all later blocks make is reused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fsframework.core import (
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
from fsframework.core.schedule import warmup_steps


@dataclass
class FirstBlockState:
    """One video and branch: host values only, the tensors are in the cache."""

    warmup: int
    reuse: bool = False
    """Whether the blocks after the first are reused in the forward in progress."""
    consecutive: int = 0
    """Steps reused since the last computed one."""


@POLICIES.register("first_block_cache")
@dataclass(frozen=True)
class FirstBlockCache(ReusePolicy[FirstBlockState]):
    """Runs the first block in every step and reuses the residual of all later blocks while the first one's hardly changes.

    With r0(s) = y0(s) - x0(s) the residual of block 0 at step s, and c the last *computed* step,

        reuse at s  iff  mean|r0(s) - r0(c)| / mean|r0(c)| < threshold                 (video stream, float32)

    A reuse puts y = y0(s) + (y_last(c) - y0(c)) in place of blocks 1..L-1, all streams. r0 is compared with the last
    computed step, not with the step before, so slow drift adds up and ends the reuse by itself.

    Granularity: block 0, then the span of all others; the first block in execution order (Latte: the first spatial one).
    Caches both residuals: 2 hidden states. Host reads: one per forward, after block 0. Source: ParaAttention
    (github.com/chengzeyi/ParaAttention) and diffusers' `first_block_cache`; FLUX settings there are 0.06 to 0.12.
    """

    paper = "First-Block-Cache, github.com/chengzeyi/ParaAttention; in diffusers"
    signal = "relative L1 change of the first block's residual since the last computed step, after the first block"
    deviations = (
        "The comparison is between residuals of the video stream only, in float32. One threshold serves all guidance "
        "branches (ParaAttention takes a second one), each of which decides alone. Models whose pipelines name no branch "
        "(Latte), where the diffusers hook raises, work as a joint batch. warmup and max_consecutive are options, off by "
        "default as in diffusers."
    )
    never = {"threshold": 0.0}
    parts = frozenset({Part.SPAN})
    storage = "residual"
    host_reads_per_step: ClassVar[int] = 1

    threshold: float = 0.05
    """Relative L1, >= 0. Higher reuses more: faster, further from the reference. 0 never reuses."""
    warmup: float | int = 1
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 1."""
    max_consecutive: int | None = None
    """At most so many reused steps in a row, >= 0; None is no limit. Higher reuses more."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(
                f"first_block_cache: threshold={self.threshold} must be a finite number >= 0; published are 0.05 to 0.12"
            )
        if self.max_consecutive is not None and self.max_consecutive < 0:
            raise ValueError(
                f"first_block_cache: max_consecutive={self.max_consecutive} must be >= 0, or none for no limit"
            )

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """The first block, and all others."""
        if num_blocks < 2:
            raise ValueError("first_block_cache needs a model of at least 2 blocks: one to look at, others to reuse")
        return ((0, 1), (1, num_blocks))

    def start(self, run: Run) -> FirstBlockState:
        """A cold state."""
        return FirstBlockState(warmup_steps(self.warmup, run.num_steps, 1, "first_block_cache"))

    def decide(self, state: FirstBlockState, call: Call, site: Site) -> Decision:
        """The first block always runs; the others as it turned out."""
        return REUSE if site.start > 0 and state.reuse else RECOMPUTE

    def observe(self, state: FirstBlockState, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool:
        """After the first block: compare, decide, and keep its residual only if this step is computed."""
        if site.start > 0:
            return True
        state.reuse = False
        if cached is not None and call.step.index >= state.warmup:
            change = relative_l1(fresh[0] - call.input()[0], cached.value[0])
            call.log(distance=change, threshold=self.threshold)
            if self.max_consecutive is None or state.consecutive < self.max_consecutive:
                (distance,) = call.meter.fetch(call.meter.mean_over_ranks(change))
                state.reuse = distance < self.threshold  # not so for NaN and inf
        state.consecutive = state.consecutive + 1 if state.reuse else 0
        return not state.reuse
