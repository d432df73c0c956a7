"""A sweep: one method at several settings, and what is read off between them at equal compute or equal quality.

Everything here is arithmetic on arrays; where the numbers come from is another file's business.

**At equal compute.** Each video has its own line: its quality at each setting against the share of full compute that it
took there (an adaptive method takes another share for each video). At a given share the value is read off between the
video's own two neighbouring settings. Beyond its last setting a line is followed by at most `reach`, and by no more than
its last two settings lie apart; a video that ends farther away is left out, and n says so. What was read beyond the last
setting is counted.

**At equal quality.** The curve "quality of all videos at this share" is the one above, over the shares that every video
reaches. A method reaches a quality at the *least* compute at which its curve comes up to it. The curve need not rise
everywhere; where it falls below the quality again at more compute, that is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsframework.metrics import METRICS
from fsframework.metrics.statistics import ClusterMeans, cluster_means

REACH = 0.05
"""Of full compute: how far beyond a video's last setting its line is followed."""
MOST_DB = 90.0
"""PSNR of identical videos, so that a line can be drawn to them; 8-bit rounding alone is 59 dB."""
GRID_STEP = 0.0025
"""Of full compute: between two points at which a curve is evaluated to find where it reaches a quality."""
_SAME = 1e-6
"""Shares closer than this are one."""
Clip = tuple[str, int]
"""Prompt and seed."""


@dataclass(frozen=True)
class Scale:
    """How a quality metric is averaged over videos: what `to_mean` makes of it, turned back by `from_mean`."""

    name: str
    unit: str
    higher_is_better: bool
    to_mean: Callable[[np.ndarray], np.ndarray]
    from_mean: Callable[[np.ndarray], np.ndarray]

    @property
    def title(self) -> str:
        """`psnr dB`."""
        return f"{self.name} {self.unit}".strip()

    def bounded(self, values: np.ndarray) -> np.ndarray:
        """With identical videos at `MOST_DB` where the unit is dB."""
        return np.minimum(values, MOST_DB) if self.unit == "dB" else values


def scale_of(name: str) -> Scale:
    """The scale of a metric's value: PSNR pools squared errors, as `METRICS["psnr"]` does; all others take the mean."""
    metric = next((metric for _, metric in METRICS.items() if name in metric.value_names()), None)
    unit, higher = (metric.unit, metric.higher_is_better) if metric is not None else ("", True)
    if name == "psnr":
        return Scale(name, unit, higher, lambda db: np.power(10.0, -np.asarray(db) / 10), _decibels)
    return Scale(name, unit, higher, np.asarray, np.asarray)


def _decibels(error: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        out: np.ndarray = -10 * np.log10(error)
    return out + 0.0  # no -0.0


@dataclass(frozen=True)
class Sweep:
    """One method: n videos at K settings."""

    name: str
    settings: Sequence[str]
    """K labels, such as `gamma=0.5`."""
    clips: Sequence[Clip]
    """n prompts and seeds."""
    fraction: np.ndarray
    """[n, K] executed FLOPs / full compute's."""
    time: np.ndarray
    """[n, K] seconds / seconds of full compute beside it; NaN where that was not timed."""
    reference_seconds: np.ndarray
    """[n] of full compute; NaN where never timed. The weight of a video in a speedup of totals."""
    quality: Mapping[str, np.ndarray]
    """Metric value -> [n, K]; NaN where not measured."""

    @property
    def prompts(self) -> list[str]:
        """Of each video."""
        return [prompt for prompt, _ in self.clips]

    def rows(self, clips: Sequence[Clip]) -> list[int]:
        """Where these videos are."""
        place = {clip: i for i, clip in enumerate(self.clips)}
        return [place[clip] for clip in clips]

    def of(self, clips: Sequence[Clip]) -> Sweep:
        """The same of some of its videos, in their order."""
        rows = self.rows(clips)
        quality = {name: values[rows] for name, values in self.quality.items()}
        return Sweep(
            self.name, self.settings, list(clips), self.fraction[rows], self.time[rows], self.reference_seconds[rows],
            quality,
        )  # fmt: skip

    @property
    def covers(self) -> tuple[float, float]:
        """The mean over videos of the least and of the greatest share it took."""
        return float(self.fraction.min(axis=1).mean()), float(self.fraction.max(axis=1).mean())


@dataclass(frozen=True)
class Reading:
    """A sweep's videos at shares of full compute; NaN where a video's settings end too far away."""

    at: np.ndarray
    """[G] shares."""
    quality: dict[str, np.ndarray]
    """Metric value -> [n, G]; PSNR in dB, at most `MOST_DB`."""
    time: np.ndarray
    """[n, G] seconds / full compute's."""
    beyond: np.ndarray
    """[n, G] how far outside of its settings a value was read, 0 between them."""


def read_off(
    sweep: Sweep, at: Sequence[float] | np.ndarray, reach: float = REACH, metric: str | None = None
) -> Reading:
    """Every video's quality and time at shares of full compute, on straight lines between its own settings.

    Of one `metric`, or (None) of all.

    PSNR is a line in dB. Time is a line as such: seconds, not speedups, are what is a straight line in compute. Settings
    that cost a video the same share count as one, with the mean of their values.
    """
    grid = np.asarray(at, dtype=np.float64)
    shape = (len(sweep.clips), len(grid))
    names = [name for name in sweep.quality if metric in (None, name)]
    quality = {name: np.full(shape, math.nan) for name in names}
    time, beyond = np.full(shape, math.nan), np.full(shape, math.nan)
    bounded = {name: scale_of(name).bounded(sweep.quality[name]) for name in names}
    for i in range(shape[0]):
        x, groups = _distinct(sweep.fraction[i])
        if len(x) < 2:
            continue
        single = np.concatenate(groups) if all(len(group) == 1 for group in groups) else None
        k = np.clip(np.searchsorted(x, grid, side="right"), 1, len(x) - 1)
        low, high = x[k - 1], x[k]
        outside = np.maximum(np.maximum(x[0] - grid, grid - x[-1]), 0.0)
        usable = outside <= np.minimum(reach, high - low) + 1e-9
        share = (grid - low) / (high - low)
        beyond[i] = np.where(usable, outside, math.nan)
        for out, values in ((time, sweep.time), *((quality[name], bounded[name]) for name in quality)):
            own = values[i]
            y = own[single] if single is not None else np.array([own[group].mean() for group in groups])
            line = y[k - 1] + share * (y[k] - y[k - 1])
            out[i] = np.where(usable, line, math.nan)
    return Reading(grid, quality, time, beyond)


def _distinct(fraction: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rising shares, and the settings that have each."""
    order = [i for i in np.argsort(fraction, kind="stable") if not math.isnan(fraction[i])]
    groups: list[list[int]] = []
    for i in order:
        if groups and fraction[i] - fraction[groups[-1][0]] <= _SAME:
            groups[-1].append(i)
        else:
            groups.append([i])
    return np.array([fraction[group[0]] for group in groups]), [np.array(group) for group in groups]


@dataclass(frozen=True)
class Curve:
    """Quality and time of all videos of a sweep against the share of full compute, with every resample of the prompts."""

    at: np.ndarray
    """[G] shares that all videos reach, rising."""
    means: ClusterMeans
    """Of the columns: quality in its averaged form at G shares, seconds at G shares, seconds of full compute, others."""
    scale: Scale
    num_timed: int
    """Videos that a speedup is of."""

    def quality(self, means: np.ndarray) -> np.ndarray:
        """[..., G] of means [..., k]."""
        return self.scale.from_mean(means[..., : len(self.at)])

    def speedup(self, means: np.ndarray) -> np.ndarray:
        """[..., G]: total seconds of full compute / total seconds of the method; NaN where nothing was timed."""
        with np.errstate(invalid="ignore", divide="ignore"):
            out: np.ndarray = means[..., 2 * len(self.at), None] / means[..., len(self.at) : 2 * len(self.at)]
        return out

    def others(self, means: np.ndarray) -> np.ndarray:
        """[..., m], the further columns."""
        return means[..., 2 * len(self.at) + 1 :]


def curve(sweep: Sweep, metric: str, reach: float = REACH, others: np.ndarray | None = None) -> Curve | None:
    """The curve of a sweep over the shares that every video reaches; None if there are none.

    Args:
        sweep: the method.
        metric: a key of its quality.
        reach: see `read_off`.
        others: [n, m] further columns to resample together with it.
    """
    ends = [_ends(row, reach) for row in sweep.fraction]
    known = [pair for pair in ends if pair is not None]
    if not known:
        return None
    low, high = max(pair[0] for pair in known), min(pair[1] for pair in known)
    if not low < high:
        return None
    grid = np.unique(np.append(np.arange(low, high, GRID_STEP), high))
    reading, scale = read_off(sweep, grid, reach, metric), scale_of(metric)
    seconds, full, timed = timed_columns(reading.time, sweep.reference_seconds)
    further = np.empty((len(sweep.clips), 0)) if others is None else others
    columns = np.concatenate([scale.to_mean(reading.quality[metric]), seconds, full, further], axis=1)
    return Curve(grid, cluster_means(columns, sweep.prompts), scale, int(timed.sum()))


def timed_columns(time: np.ndarray, reference_seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of the method [n, G] and of full compute [n, 1], 0 in both for a video that was not timed; and which were.

    Their means' ratio is then the speedup of totals of the timed videos, while an untimed one still counts for quality.
    """
    timed = ~np.isnan(time).any(axis=1) & ~np.isnan(reference_seconds)
    full = np.where(timed, reference_seconds, 0.0)[:, None]
    return np.where(timed[:, None], np.nan_to_num(time) * full, 0.0), full, timed


def _ends(fraction: np.ndarray, reach: float) -> tuple[float, float] | None:
    """From where to where a video's line may be followed."""
    x, _ = _distinct(fraction)
    if len(x) < 2:
        return None
    return float(x[0] - min(reach, x[1] - x[0])), float(x[-1] + min(reach, x[-1] - x[-2]))


def crossing(at: np.ndarray, quality: np.ndarray, level: np.ndarray | float, higher_is_better: bool) -> np.ndarray:
    """The least share at which a curve comes up to a level.

    Args:
        at: [G] shares, rising.
        quality: [..., G].
        level: [...].
        higher_is_better: whether to come up or down to it.

    Returns:
        [...]: the share, on the straight line between two points of the curve; inf where the curve never reaches the level
        (it takes more compute than was tried), -inf where it is reached at the first point already (it may take less).
    """
    sign = 1.0 if higher_is_better else -1.0
    gap = sign * (quality - np.asarray(level)[..., None])
    reached = gap >= 0
    first = reached.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    a = np.take_along_axis(gap, before[..., None], -1)[..., 0]
    b = np.take_along_axis(gap, first[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(b > a, -a / (b - a), 0.0)
    found = at[before] + share * (at[first] - at[before])
    found = np.where(first == 0, -math.inf, found)
    return np.where(reached.any(axis=-1), found, math.inf)
