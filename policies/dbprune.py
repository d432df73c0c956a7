"""DBPrune: each block is reused by itself while what enters it hardly changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fsframework.core import DISCARD, POLICIES, RECOMPUTE, REUSE, Call, Decision, Entry, ReusePolicy, Run, Site, State
from fsframework.core.distance import relative_l1
from fsframework.core.schedule import count_of, warmup_steps


@dataclass
class DBPruneState:
    """One video and branch: host values only, the tensors are in the cache."""

    warmup: int
    tested: frozenset[int]
    """Execution indices of the blocks that may be reused."""
    reused: int = 0
    """Earlier steps in which some block was reused."""
    reused_now: bool = False
    distances: list[float] = field(default_factory=list)
    """The first positive ones of the forward in progress."""


@POLICIES.register("dbprune")
@dataclass(frozen=True)
class DBPrune(ReusePolicy[DBPruneState]):
    """Reuses a block's residual while the block's input stays close to what it was when the block was last computed.

    With x_l(s) the input of block l at step s and c the last step *this block* was computed at,

        reuse l at s  iff  mean|x_l(s) - x_l(c)| / mean|x_l(c)| < threshold            (video stream, float32)

    past the warmup, for blocks that are not among the first F, the last B or `never_blocks`. The reused block gives
    x_l(s) + (y_l(c) - x_l(c)), all streams. With `dynamic` the threshold rises within a step to 1.25 times the mean of
    the step's first five positive distances, where that is above `threshold` and below `max_threshold`.

    Granularity: block. Caches every tested block's residual and keeps its input: 2 hidden states per block. Host reads:
    one per tested block and forward, which is the price of a decision that needs the input of the block itself.
    Source: cache-dit (github.com/vipshop/cache-dit).
    """

    paper = "DBPrune of cache-dit, github.com/vipshop/cache-dit"
    signal = "relative L1 change of a block's input since the block's last computation, before the block"
    deviations = (
        "The comparison is between inputs of the video stream only, in float32. A distance that is not finite recomputes "
        "the block and does not enter the dynamic threshold. Not here: selected tokens, an interval between updates of the "
        "residuals. The default settings are those of the present code; older versions had others."
    )
    never = {"threshold": 0.0}
    example = {"first_blocks": 1, "warmup": 1}
    storage = "residual"

    threshold: float = 0.08
    """Relative L1, >= 0. Higher reuses more: faster, further from the reference. 0 never reuses."""
    first_blocks: float | int = 8
    """F, blocks that always run: a fraction of the model's blocks (float) or a number (int). Counted in execution order
    (Latte: s0 t0 s1 t1 ...). Higher saves less."""
    last_blocks: float | int = 0
    """B, blocks at the end that always run: a fraction (float) or a number (int). Higher saves less."""
    never_blocks: list[int] = field(default_factory=list)
    """Execution indices of other blocks that always run (`non_prune_block_ids` in cache-dit)."""
    warmup: float | int = 8
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 1."""
    max_reused: int | None = None
    """At most so many steps in which some block is reused; None is no limit (`max_pruned_steps`)."""
    dynamic: bool = False
    """Let the threshold rise within a step."""
    relax: float = 1.25
    """Factor on the mean distance for the dynamic threshold, > 0. Higher reuses more."""
    max_threshold: float | None = None
    """Where the dynamic threshold would reach this, `threshold` holds instead; None is 2 * threshold."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"dbprune: threshold={self.threshold} must be a finite number >= 0; the default is 0.08")
        for name, value in (("first_blocks", self.first_blocks), ("last_blocks", self.last_blocks)):
            if not value >= 0 or (isinstance(value, float) and value > 1):
                raise ValueError(
                    f"dbprune: {name}={value} must be a number of blocks (int) or a fraction of them, 0.0 to 1.0 (float)"
                )
        if self.max_reused is not None and self.max_reused < 0:
            raise ValueError(f"dbprune: max_reused={self.max_reused} must be >= 0, or none for no limit")
        if not 0 < self.relax < math.inf:
            raise ValueError(f"dbprune: relax={self.relax} must be > 0; the default is 1.25")
        if self.max_threshold is not None and not self.threshold <= self.max_threshold < math.inf:
            raise ValueError(
                f"dbprune: max_threshold={self.max_threshold} must be finite and at least threshold={self.threshold}"
            )

    def start(self, run: Run) -> DBPruneState:
        """A cold state; which blocks may be reused.

        Raises:
            ValueError: `never_blocks` names a block that the model has not, or no block is left to reuse.
        """
        n = len(run.sites)
        missing = [block for block in self.never_blocks if block not in range(n)]
        if missing:
            raise ValueError(
                f"dbprune: never_blocks={self.never_blocks}: this model has blocks 0 to {n - 1}, no {missing}"
            )
        tested = self._tested(run)
        if not tested:
            raise ValueError(
                f"dbprune: first_blocks={self.first_blocks}, last_blocks={self.last_blocks} and never_blocks leave none of "
                f"the model's {len(run.sites)} blocks to reuse. Lower policy.first_blocks, or give a fraction (0.2)."
            )
        return DBPruneState(warmup_steps(self.warmup, run.num_steps, 1, "dbprune"), tested)

    def begin_forward(self, state: DBPruneState, call: Call) -> None:
        """Count the step before, and start this one's distances."""
        state.reused += state.reused_now
        state.reused_now, state.distances = False, []

    def decide(self, state: DBPruneState, call: Call, site: Site) -> Decision:
        """Compare the input with the one kept."""
        if site.start not in state.tested:
            return DISCARD
        kept = call.kept(site.name)
        if kept is None or call.step.index < state.warmup:
            return RECOMPUTE
        if self.max_reused is not None and state.reused >= self.max_reused:
            return RECOMPUTE
        change = relative_l1(call.input()[0], kept[0])
        threshold = self._threshold(state.distances)
        call.log(distance=change, threshold=threshold)
        (distance,) = call.meter.fetch(call.meter.mean_over_ranks(change))
        if math.isfinite(distance) and distance > 0 and len(state.distances) < NUM_DISTANCES:
            state.distances.append(distance)
        if distance < threshold:  # not so for NaN and inf
            state.reused_now = True
            return REUSE
        return RECOMPUTE

    def observe(self, state: DBPruneState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Keep the input of what was computed."""
        if site.start in state.tested:
            call.keep(site.name, call.input()[:1])

    def num_host_reads(self, run: Run) -> int:
        """One per tested block."""
        return len(self._tested(run))

    def num_cached(self, run: Run) -> int:
        """One residual per tested block (of a forecast, several)."""
        return len(self._tested(run)) * min(run.depth, run.num_steps)

    def num_kept(self, run: Run) -> int:
        """One input per tested block."""
        return len(self._tested(run))

    def _tested(self, run: Run) -> frozenset[int]:
        n = len(run.sites)
        first, last = count_of(self.first_blocks, n), count_of(self.last_blocks, n)
        return frozenset(range(first, n - last)) - frozenset(self.never_blocks)

    def _threshold(self, distances: list[float]) -> float:
        if not self.dynamic or not distances:
            return self.threshold
        relaxed = self.relax * sum(distances) / len(distances)
        most = 2 * self.threshold if self.max_threshold is None else self.max_threshold
        return max(relaxed, self.threshold) if relaxed < most else self.threshold


NUM_DISTANCES = 5
"""Distances of a step that enter its dynamic threshold, as in the code."""
