"""Means with 95 % intervals. No number leaves a run without its interval and n.

Not measured is NaN: such values are left out and n says how many remain. With one value there is no spread to see, so
low and high are NaN, never a zero-width interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
