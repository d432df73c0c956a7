"""MagCache: the residual of all blocks is reused where a measured table says that its magnitude hardly changes."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    Artifact,
    Branch,
    Calibration,
    Call,
    Curve,
    Decision,
    Entry,
    Fit,
    Part,
    ReusePolicy,
    ReuseWarning,
    Run,
    Site,
    State,
)
from fsframework.core.calibration import needs_calibration
from fsframework.core.schedule import most_kept, plan

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core import Trace


@dataclass
class MagCacheState:
    """One video and branch: the decision of each step."""

    decisions: list[Decision]


@POLICIES.register("magcache")
@dataclass(frozen=True)
class MagCache(ReusePolicy[MagCacheState]):
    """Reuses the trunk's residual at steps where the table of its magnitude ratios lets the estimated error stay small.

    The table g holds per step how the residual R(s) = trunk output - trunk input grows or shrinks on average,

        g(s) = mean over tokens of |R(s)|_2 / |R(s-1)|_2                               (g(0) is not used)

    From step floor(retention * num_steps) on, with a = 1, n = 0, e = 0 at first and after every computed step,

        a <- a * g(s);  n <- n + 1;  e <- e + |1 - a|;   reuse at s  iff  e <= threshold and n <= max_consecutive

    and the steps before are computed. A reuse adds the last computed R to the trunk's live input, all streams. The table
    is fixed, so the schedule is known before the run and the same for every prompt.

    Granularity: trunk. Caches its residual: 1 hidden state. Host reads: none. Source: MagCache (arXiv:2506.09045,
    github.com/Zehong-Ma/MagCache). The table comes from `ratios`, or from an `artifact` of `fsf calibrate magcache`, with
    one table per guidance branch as the paper has for Wan.
    """

    paper = "MagCache, arXiv:2506.09045"
    signal = "a table of magnitude ratios measured beforehand, known before the run"
    deviations = (
        "No published table of ratios is shipped: they are measured. e sums |1 - a|, as in the paper and the general code; "
        "the released Open-Sora script sums 1 - a, which can cancel. Not here: that script's ring of three residuals and "
        "the FLUX script's forced step. The number of retained steps is rounded down, as released; diffusers rounds it to the "
        "nearest (28 steps: 5 here, 6 there). The table's first entry, which no run measures, is never used, also where a run "
        "of more steps would take it as the nearest. max_consecutive of HunyuanVideo was not found and is that of Wan 2.1. "
        "Checkpoints that are not named have the defaults of diffusers."
    )
    published = {
        "": {"threshold": 0.06, "max_consecutive": 3, "retention": 0.2},
        "opensora": {"threshold": 0.12, "max_consecutive": 3, "retention": 0.2},
        "wan2.1-t2v-1.3b": {"threshold": 0.24, "max_consecutive": 6, "retention": 0.2},
        "wan2.1-t2v-14b": {"threshold": 0.24, "max_consecutive": 6, "retention": 0.2},
        "hunyuan-video": {"threshold": 0.24, "max_consecutive": 6, "retention": 0.2},
        # By its own name, or it would be taken for its family, which is called as the checkpoint above.
        "hunyuan-video-i2v": {"threshold": 0.06, "max_consecutive": 3, "retention": 0.2},
        "flux-dev": {"threshold": 0.24, "max_consecutive": 5, "retention": 0.1},
    }
    example = {"ratios": [0.98]}
    never = {"max_consecutive": 0}
    parts = frozenset({Part.TRUNK})
    storage = "residual"

    threshold: float | None = None
    """On the accumulated error, >= 0. Higher reuses more: faster, further from the reference. None is as published: 0.12
    for Open-Sora (the fast setting there is 0.24 with max_consecutive 5), 0.24 for Wan 2.1 from text, HunyuanVideo and
    FLUX.1-dev, else 0.06, the default of diffusers."""
    max_consecutive: int | None = None
    """K, at most so many reused steps in a row, >= 0; 0 never reuses. None is as published: 3, 5 or 6."""
    retention: float | None = None
    """Share of leading steps that are always computed, 0.0 to 1.0; the first step always is. None is as published: 0.1
    for FLUX.1-dev, else 0.2."""
    ratios: list[float] | None = None
    """The table, one ratio per step of the run it was measured in, the first unused; for all branches. With another number
    of steps each takes the nearest one's. A single number holds for every step."""
    artifact: str | None = None
    """Path of what `fsf calibrate magcache` wrote, instead of `ratios`."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(
                f"magcache: threshold={self.threshold} must be a finite number >= 0; published are 0.06 to 0.24"
            )
        if self.max_consecutive is not None and self.max_consecutive < 0:
            raise ValueError(f"magcache: max_consecutive={self.max_consecutive} must be >= 0; published are 3 to 6")
        if self.retention is not None and not 0 <= self.retention <= 1:
            raise ValueError(f"magcache: retention={self.retention} is a fraction of the steps, 0.0 to 1.0")
        if self.ratios is not None and self.artifact is not None:
            raise ValueError("magcache: give either ratios or an artifact, not both")
        if self.ratios is not None and (not self.ratios or not all(0 < g < math.inf for g in self.ratios)):
            raise ValueError(f"magcache: ratios={self.ratios} must be finite numbers > 0, one per step")

    def start(self, run: Run) -> MagCacheState:
        """Plan the run; say so where the table is of another number of steps."""
        if self.artifact is not None:
            Artifact.load(self.artifact, "magcache").check(run, interpolates=("num_steps", "latent_shape"))
        elif self.ratios is not None and len(self.ratios) not in (1, run.num_steps):
            warnings.warn(
                f"magcache: ratios is a table of {len(self.ratios)} steps; this run has {run.num_steps}, so each takes the "
                f"nearest one's.",
                ReuseWarning,
                stacklevel=2,
            )
        return MagCacheState(plan(self.schedule(run), run.depth))

    def decide(self, state: MagCacheState, call: Call, site: Site) -> Decision:
        """As planned; a residual that no later step reuses is not stored."""
        return state.decisions[call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are computed."""
        threshold, most = self.option("threshold", run), self.option("max_consecutive", run)
        first = max(1, int(self.option("retention", run) * run.num_steps))
        table = nearest(self._table(run), run.num_steps)
        magnitude, num_reused, error = 1.0, 0, 0.0
        recompute = [True] * run.num_steps
        for step in range(first, run.num_steps):
            magnitude *= table[step]
            num_reused += 1
            error += abs(1 - magnitude)
            if error <= threshold and num_reused <= most:
                recompute[step] = False
            else:
                magnitude, num_reused, error = 1.0, 0, 0.0
        return recompute

    def num_cached(self, run: Run) -> int:
        """The residual, where the plan reuses one."""
        return most_kept(self.schedule(run), run.depth)

    def calibration(self) -> MagCacheCalibration:
        """The ratios, from full runs."""
        return MagCacheCalibration(self)

    def _table(self, run: Run) -> Sequence[float]:
        if self.ratios is not None:
            return self.ratios
        if self.artifact is None:
            raise needs_calibration("magcache", run, "a table of magnitude ratios", "ratios=[...], one per step")
        tables = Artifact.load(self.artifact, "magcache").values.get("ratios")
        if not isinstance(tables, Mapping) or not tables:
            raise ValueError(f"{self.artifact} holds no 'ratios' by guidance branch; calibrate again")
        for branch in (run.branch, Branch.JOINT):
            if branch in tables:
                found: Sequence[float] = tables[branch]
                return found
        return [sum(column) / len(column) for column in zip(*tables.values())]


def nearest(table: Sequence[float], num_steps: int) -> list[float]:
    """The table for another number of steps: last to last, in between the nearest. Its first entry is no measured ratio,
    so it is for the first step alone."""
    scale = (len(table) - 1) / (num_steps - 1) if num_steps > 1 else 0.0
    first = min(1, len(table) - 1)
    return [table[0], *(table[max(round(step * scale), first)] for step in range(1, num_steps))]


@dataclass(frozen=True)
class RatioRecorder(ReusePolicy[None]):
    """Recomputes everything and logs the magnitude ratio of the trunk's residual, and its spread over the tokens."""

    parts = frozenset({Part.TRUNK})
    storage = "residual"

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        """Always recompute."""
        return RECOMPUTE

    def schedule(self, run: Run) -> list[bool]:
        """Every step is computed."""
        return [True] * run.num_steps

    def observe(self, state: None, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Log `ratio` and `spread`, over the tokens of the video stream; a token whose residual was 0 has none."""
        if cached is None:
            return
        now = (fresh[0].float() - call.input()[0].float()).norm(dim=-1)
        before = cached.value[0].float().norm(dim=-1)
        ratios = torch.where(before > 0, now / before, math.nan)
        mean = ratios.nanmean()
        call.log(ratio=mean, spread=(ratios - mean).square().nanmean().sqrt())


@dataclass
class MagCacheCalibration(Calibration):
    """Full runs; the table is the mean of the ratios over them, per guidance branch."""

    policy: MagCache
    fit_options = ("threshold", "max_consecutive", "retention")

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        """One: everything computed, ratios logged."""
        return {"full": RatioRecorder()}

    def check(self, run: Run, num_clips: int) -> None:
        """A ratio is of two steps."""
        if run.num_steps < 2:
            raise ValueError(
                "magcache: a run of one step has no ratios to measure; set sampling.num_steps to 2 or more"
            )

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """`ratios` and `spread` by branch, one number per step but the first."""
        return {name: _by_branch(trace, column) for name, column in (("ratios", "ratio"), ("spread", "spread"))}

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """Average; say how much the videos and the tokens differ, and what the plan comes to."""
        videos = records["full"]
        tables: dict[str, list[float]] = {}
        numbers: dict[str, float] = {}
        curves: list[Curve] = []
        for branch in videos[0]["ratios"] if videos else ():
            rows = [video["ratios"][branch] for video in videos]
            _check_ratios(rows, branch, run.num_steps)
            means = [sum(column) / len(column) for column in zip(*rows)]
            tables[branch] = [1.0, *means]
            apart = [max(column) - min(column) for column in zip(*rows)]
            tokens = [s for video in videos for s in video["spread"][branch]]
            plan = MagCache(
                self.policy.threshold, self.policy.max_consecutive, self.policy.retention, tables[branch]
            ).schedule(run)
            # "joint" by itself would read like a kind of attention.
            of = "both branches" if branch == Branch.JOINT else branch
            if len(rows) > 1:
                numbers[f"largest difference between videos, {of}"] = max(apart)
            numbers |= {
                f"mean standard deviation over tokens, {of}": sum(tokens) / len(tokens),
                f"share of recomputed steps, {of}": sum(plan) / len(plan),
            }
            steps = list(range(1, run.num_steps))
            labels = ("step", "magnitude ratio of the residual")
            curves.append(Curve(f"{of}, mean", steps, means, *labels))
            if len(rows) > 1:
                cloud_x, cloud_y = steps * len(rows), [g for row in rows for g in row]
                curves.append(Curve(f"{of}, each video", cloud_x, cloud_y, *labels, is_line=False))
        if not tables:
            raise ValueError("magcache: no ratios were recorded; the runs need at least 2 steps")
        return Fit({"ratios": tables}, numbers, curves)


def _check_ratios(rows: Sequence[Sequence[float]], branch: str, num_steps: int) -> None:
    """Raise ValueError unless every video has a ratio > 0 for every step but the first."""
    for i, row in enumerate(rows):
        if len(row) != num_steps - 1:
            raise ValueError(
                f"magcache: video {i} has {len(row)} ratios of branch {branch!r}, not one for each of the {num_steps} steps "
                f"but the first; calibrate again"
            )
        wrong = [step for step, g in enumerate(row, start=1) if not 0 < g < math.inf]
        if wrong:
            raise ValueError(
                f"magcache: the ratio of branch {branch!r} is {row[wrong[0] - 1]:g} at step {wrong[0]} of video {i}, not a "
                f"finite number > 0 (so at {len(wrong)} of {num_steps - 1} steps): what all blocks add together was 0, NaN or "
                f"inf there. Look at a video of full compute before calibrating."
            )


def _by_branch(trace: Trace, column: str) -> dict[str, list[float]]:
    out: dict[str, list[float]] = defaultdict(list)
    for row, value in sorted(trace.logged(column).items()):
        out[trace.branch[row]].append(value)
    return dict(out)
