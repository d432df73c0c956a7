"""DBCache: the first blocks' change decides whether the middle ones are reused; the last ones always run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Branch,
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
from fsframework.core.forecast import forecast
from fsframework.core.schedule import count_of, warmup_steps


@dataclass
class DBCacheState:
    """One video and branch: host values only, the tensors are in the cache."""

    warmup: int
    middle: Decision
    """What a reuse of the middle is: its residual, or the forecast of it."""
    reuse: bool = False
    """The last decision, and the step it was made at."""
    step: int = -1
    reused: int = 0
    """Steps reused so far."""
    consecutive: int = 0
    """Steps reused since the last computed one."""
    accumulated: float = 0.0
    """Sum of the distances measured so far."""


@POLICIES.register("dbcache")
@dataclass(frozen=True)
class DBCache(ReusePolicy[DBCacheState]):
    """Runs the first F and the last B blocks in every step and reuses the residual of the middle while the first F hardly
    change it.

    With r(s) = y_{F-1}(s) - x_0(s), what the first F blocks add at step s, and c the last *computed* step,

        reuse at s  iff  mean|r(s) - r(c)| / mean|r(c)| < threshold                    (video stream, float32)

    and step s is past the warmup, the mask lets it, fewer than `max_reused` steps were reused so far, fewer than
    `max_consecutive` in a row, and the distances measured so far sum to less than `max_accumulated`. A reuse adds the
    middle's cached residual to what the first F blocks give now, all streams; or, with `calibrator="taylorseer"`, its
    forecast from the last `order + 1` computed steps.

    Granularity: three spans. Caches 2 residuals: 2 hidden states, 2 + `order` with the forecast. Host reads: one per
    tested forward, after block F-1. Source: cache-dit (github.com/vipshop/cache-dit), whose notation for this is FnBn.
    """

    paper = "DBCache of cache-dit, github.com/vipshop/cache-dit"
    signal = "relative L1 change of the first blocks' residual since the last computed step, after those blocks"
    deviations = (
        "The comparison is between residuals of the video stream only, in float32. The sum for max_accumulated runs over "
        "every distance measured in the video, as in the code; one that is not finite is left out. Not here: selected "
        "tokens, channels of lower resolution, other calibrators, an interval inside the warmup, and the code's shortcut "
        "that a threshold of 1 or more reuses without a test. With decides_on=cond a branch that runs before cond in a "
        "step decides by itself."
    )
    never = {"threshold": 0.0}
    example = {"first_blocks": 1, "warmup": 1}
    parts = frozenset({Part.SPAN})
    storage = "residual"
    host_reads_per_step: ClassVar[int] = 1

    threshold: float = 0.08
    """Relative L1, >= 0. Higher reuses more: faster, further from the reference. 0 never reuses."""
    first_blocks: float | int = 8
    """F, blocks that always run and are looked at: a fraction of the model's blocks (float) or a number (int), at least
    1. Higher saves less and looks deeper. Counted in execution order (Latte: s0 t0 s1 t1 ...)."""
    last_blocks: float | int = 0
    """B, blocks at the end that always run: a fraction (float) or a number (int). Higher saves less."""
    warmup: float | int = 8
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 1
    (`max_warmup_steps` in cache-dit)."""
    max_reused: int | None = None
    """At most so many reused steps in a video; None is no limit (`max_cached_steps`)."""
    max_consecutive: int | None = None
    """At most so many reused steps in a row; None is no limit (`max_continuous_cached_steps`)."""
    max_accumulated: float | None = None
    """No more reuse once the distances measured in this video sum to so much; None is no limit."""
    steps_mask: list[int] | None = None
    """Per step 1 (always computed) or 0 (may be reused), as many as the run has steps (`steps_computation_mask`)."""
    mask_decides: str = "dynamic"
    """What happens where the mask is 0: `dynamic` tests, `static` reuses without a test and without the limits."""
    decides_on: str = "each"
    """`each` guidance branch decides alone, or the others follow `cond`, which saves their host read."""
    calibrator: str = "none"
    """`none` reuses the middle's residual, `taylorseer` extrapolates it."""
    order: int = 1
    """Degree of the extrapolation, >= 1; the residuals of `order + 1` computed steps are cached."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"dbcache: threshold={self.threshold} must be a finite number >= 0; the default is 0.08")
        for name, value in (("first_blocks", self.first_blocks), ("last_blocks", self.last_blocks)):
            if not value >= 0 or (isinstance(value, float) and value > 1):
                raise ValueError(
                    f"dbcache: {name}={value} must be a number of blocks (int) or a fraction of them, 0.0 to 1.0 (float)"
                )
        for name, limit in (("max_reused", self.max_reused), ("max_consecutive", self.max_consecutive)):
            if limit is not None and limit < 0:
                raise ValueError(f"dbcache: {name}={limit} must be >= 0, or none for no limit")
        if self.max_accumulated is not None and not self.max_accumulated >= 0:
            raise ValueError(f"dbcache: max_accumulated={self.max_accumulated} must be >= 0, or none for no limit")
        if self.steps_mask is not None and set(self.steps_mask) - {0, 1}:
            raise ValueError(
                f"dbcache: steps_mask={self.steps_mask} must be a list of 1 (computed) and 0 (may be reused)"
            )
        if self.order < 1:
            raise ValueError(f"dbcache: order={self.order} must be at least 1")
        for name, choice, allowed in (
            ("mask_decides", self.mask_decides, ("dynamic", "static")),
            ("decides_on", self.decides_on, ("each", "cond")),
            ("calibrator", self.calibrator, ("none", "taylorseer")),
        ):
            if choice not in allowed:
                raise ValueError(f"dbcache: {name}={choice!r} must be one of {', '.join(allowed)}")

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """The first blocks and the middle; nobody asks about the last."""
        first, last = max(count_of(self.first_blocks, num_blocks), 1), count_of(self.last_blocks, num_blocks)
        if first + last >= num_blocks:
            raise ValueError(
                f"dbcache: first_blocks={self.first_blocks} and last_blocks={self.last_blocks} are {first} + {last} blocks "
                f"that always run, but the model has {num_blocks}, so none is left to reuse. Lower policy.first_blocks or "
                f"policy.last_blocks to a sum of at most {num_blocks - 1}, or give fractions (0.2)."
            )
        return ((0, first), (first, num_blocks - last))

    def start(self, run: Run) -> DBCacheState:
        """A cold state; check the mask against the run."""
        if self.steps_mask is not None and len(self.steps_mask) != run.num_steps:
            raise ValueError(
                f"dbcache: steps_mask has {len(self.steps_mask)} entries; this run has {run.num_steps} steps"
            )
        middle = forecast(run, self.order) if self.calibrator == "taylorseer" else REUSE
        return DBCacheState(warmup_steps(self.warmup, run.num_steps, 1, "dbcache"), middle)

    def decide(self, state: DBCacheState, call: Call, site: Site) -> Decision:
        """The first blocks always run; the middle as it turned out."""
        return state.middle if site.start > 0 and state.reuse else RECOMPUTE

    def observe(self, state: DBCacheState, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool:
        """After the first blocks: decide, and keep their residual only if this step is computed."""
        if site.start > 0:
            return True
        state.reuse, state.step = self._may_reuse(state, call, fresh, cached), call.step.index
        state.reused += state.reuse
        state.consecutive = state.consecutive + 1 if state.reuse else 0
        return not state.reuse

    def _may_reuse(self, state: DBCacheState, call: Call, fresh: State, cached: Entry | None) -> bool:
        step = call.step.index
        if cached is None or step < state.warmup:
            return False
        if self.steps_mask is not None:
            if self.steps_mask[step]:
                return False
            if self.mask_decides == "static":
                return True
        leader = call.state_of(Branch.COND) if self.decides_on == "cond" and call.branch != Branch.COND else None
        if isinstance(leader, DBCacheState) and leader.step == step:
            return leader.reuse
        if (
            (self.max_reused is not None and state.reused >= self.max_reused)
            or (self.max_consecutive is not None and state.consecutive >= self.max_consecutive)
            or (self.max_accumulated is not None and state.accumulated >= self.max_accumulated)
        ):
            return False
        change = relative_l1(fresh[0] - call.input()[0], cached.value[0])
        call.log(distance=change, threshold=self.threshold)
        (distance,) = call.meter.fetch(call.meter.mean_over_ranks(change))
        if math.isfinite(distance):
            state.accumulated += distance
        return distance < self.threshold  # not so for NaN and inf

    def schedule(self, run: Run) -> list[bool] | None:
        """Known beforehand with a static mask."""
        if self.steps_mask is None or self.mask_decides != "static":
            return None
        warmup = warmup_steps(self.warmup, run.num_steps, 1, "dbcache")
        return [step < warmup or bool(computed) for step, computed in enumerate(self.steps_mask)]

    def depth_of(self, site: Site) -> int:
        """Forecasts of the middle need the last `order + 1` computed steps."""
        return self.order + 1 if site.start > 0 and self.calibrator == "taylorseer" else 1
