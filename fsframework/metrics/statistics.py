"""Means with 95 % intervals. No number leaves a run without its interval and n.

Not measured is NaN: such values are left out and n says how many remain. With one value there is no spread to see, so
low and high are NaN, never a zero-width interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A mean (or pooled value) with its 95 % interval over `n` videos; low and high are NaN where n is below 2."""

    mean: float
    low: float
    high: float
    n: int

    def entry(self, unit: str = "", better: str = "higher") -> dict[str, float | int | str]:
        """As it stands in `metrics.json`; `better` is `higher` or `lower`."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "unit": unit, "better": better}


Statistic = Callable[[np.ndarray], np.ndarray]
"""Reduces the last axis: [n] -> scalar, [resamples, n] -> [resamples]."""


def _mean(values: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.mean(values, axis=-1)
    return out


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Statistic = _mean,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over videos: resample them with replacement, take the 2.5 % and 97.5 % points.

    The same values give the same interval: the generator is seeded. NaN values are left out. The interval is too narrow
    for small n (at n = 6 it holds the true mean about 87 % of the time); it still shows which differences are noise.
    Videos count as independent; several seeds of one prompt are not quite.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    centre = float(statistic(known))
    if len(known) == 1:
        return Interval(centre, math.nan, math.nan, 1)
    rows = np.random.default_rng(seed).integers(0, len(known), (num_resamples, len(known)))
    low, high = _percentiles(statistic(known[rows]))
    return Interval(centre, low, high, len(known))


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Sum of numerators over sum of denominators, bootstrapped over videos in pairs.

    For speedups: total reference seconds / total method seconds, so that a long video counts more than a short one and
    a ratio of noisy small times does not. Pairs with a NaN or a denominator of 0 are left out.
    """
    if len(numerators) != len(denominators):
        raise ValueError(
            f"ratio pairs values video by video; got {len(numerators)} numerators and {len(denominators)} denominators"
        )
    pairs = np.array([numerators, denominators], dtype=np.float64).reshape(2, -1)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0) & (pairs[1] != 0)]
    n = pairs.shape[1]
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    centre = float(pairs[0].sum() / pairs[1].sum())
    if n == 1:
        return Interval(centre, math.nan, math.nan, 1)
    rows = np.random.default_rng(seed).integers(0, n, (num_resamples, n))
    low, high = _percentiles(pairs[0][rows].sum(axis=-1) / pairs[1][rows].sum(axis=-1))
    return Interval(centre, low, high, n)


def wilson(values: Sequence[float] | np.ndarray) -> Interval:
    """Share of ones among 0-1 values, with Wilson's score interval: right for small n, and never outside [0, 1].

    Unlike a bootstrap it stays open where all values agree: 6 of 6 gives [0.61, 1], not [1, 1].
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not np.isin(known, (0.0, 1.0)).all():
        raise ValueError(
            f"wilson is for values that are 0 or 1; found {sorted(set(known.tolist()))[:5]}. Use bootstrap."
        )
    n = len(known)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    share, z2 = float(known.mean()), Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def _percentiles(resampled: np.ndarray) -> tuple[float, float]:
    # Nearest ranks, not interpolation: some resamples may be infinite, and inf - inf would give NaN.
    low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
    return float(low), float(high)


@dataclass(frozen=True)
class ClusterInterval(Interval):
    """An interval that resampled whole clusters (prompts with all their seeds); NaN ends where there are fewer than two."""

    num_clusters: int = 0


ManyMeans = Callable[[np.ndarray], np.ndarray]
"""A number of several means, over the last axis: [k] -> scalar, [resamples, k] -> [resamples]."""


@dataclass(frozen=True)
class ClusterMeans:
    """Means of k columns over the same videos, and of every resample of their clusters; see `cluster_means`."""

    centre: np.ndarray
    """[k]; NaN if there is no video."""
    resampled: np.ndarray
    """[resamples, k]; no row where there are fewer than two clusters."""
    n: int
    """Videos."""
    num_clusters: int

    def interval(self, statistic: ManyMeans = lambda means: means[..., 0]) -> ClusterInterval:
        """A statistic of the means with its 95 % percentile interval; by default the first mean itself.

        Resamples that have no such number (NaN: a ratio of which nothing was drawn) do not count.
        """
        if self.n == 0:
            return ClusterInterval(math.nan, math.nan, math.nan, 0, 0)
        centre = float(statistic(self.centre))
        if not len(self.resampled):
            return ClusterInterval(centre, math.nan, math.nan, self.n, self.num_clusters)
        drawn = statistic(self.resampled)
        drawn = drawn[~np.isnan(drawn)]
        low, high = _percentiles(drawn) if len(drawn) else (math.nan, math.nan)
        return ClusterInterval(centre, low, high, self.n, self.num_clusters)


def cluster_means(
    columns: np.ndarray, clusters: Sequence[Hashable], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> ClusterMeans:
    """Means of columns [videos, k] over videos, and of `num_resamples` paired cluster bootstraps of them.

    Each resample draws as many clusters as there are, with replacement, and takes all videos of each: seeds of one prompt
    are alike, so they are no independent evidence. All columns see the same draw, so a difference or ratio of two of them
    is paired. A video that lacks one of the values (NaN) is left out of all of them.

    Args:
        columns: [videos, k], finite or NaN.
        clusters: of each video; the prompt.
        num_resamples: draws.
        seed: of the generator; the same clusters in the same order give the same draws.

    Raises:
        ValueError: a value is infinite (0 times infinity has no mean), or lengths that differ.
    """
    values = np.asarray(columns, dtype=np.float64)
    if len(values) != len(clusters):
        raise ValueError(
            f"cluster_means needs a cluster for each video; got {len(values)} rows, {len(clusters)} clusters"
        )
    known = np.asarray(~np.isnan(values).any(axis=1))
    values, names = values[known], [name for name, there in zip(clusters, known) if there]
    if np.isinf(values).any():
        raise ValueError("cluster_means takes finite values; bound infinite ones, or average what is finite (an error)")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if not names:
        return ClusterMeans(np.full(values.shape[1], math.nan), np.empty((0, values.shape[1])), 0, 0)
    of_video = np.array([number[name] for name in names])
    centre = values.mean(axis=0)
    if len(number) == 1:
        return ClusterMeans(centre, np.empty((0, values.shape[1])), len(values), 1)
    sums = np.zeros((len(number), values.shape[1]))
    np.add.at(sums, of_video, values)
    sizes = np.bincount(of_video, minlength=len(number))
    times = _draws(len(number), num_resamples, seed)
    return ClusterMeans(centre, (times @ sums) / (times @ sizes)[:, None], len(values), len(number))


@functools.lru_cache(maxsize=4)
def _draws(num_clusters: int, num_resamples: int, seed: int) -> np.ndarray:
    """[resamples, clusters]: how often each cluster is drawn. Kept, as one comparison asks for the same draws again and again."""
    drawn = np.random.default_rng(seed).integers(0, num_clusters, (num_resamples, num_clusters))
    flat = drawn + num_clusters * np.arange(num_resamples)[:, None]
    times = np.bincount(flat.ravel(), minlength=flat.size).reshape(flat.shape).astype(np.float64)
    times.flags.writeable = False
    return times


def spread_within_and_between(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Standard deviation between the means of clusters, and within clusters (pooled); NaN where it can not be seen.

    Between prompts: n - 1 in the denominator; it holds what the seeds add to each mean. Between seeds of a prompt: the root
    of the pooled variance, of clusters with at least two values.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, name in zip(values, clusters):
        if not math.isnan(value):
            groups.setdefault(name, []).append(value)
    means = [float(np.mean(group)) for group in groups.values()]
    between = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    freedom = sum(len(group) - 1 for group in groups.values())
    squares = sum(float(np.var(group)) * len(group) for group in groups.values())
    return between, math.sqrt(squares / freedom) if freedom else math.nan
