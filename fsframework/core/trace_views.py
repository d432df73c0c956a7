"""What a `Trace` is looked at as: sites over steps, and the bytes of the cache over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsframework.core.site import Part

if TYPE_CHECKING:
    from fsframework.core.trace import Trace

NAN = math.nan


@dataclass(frozen=True)
class Heatmap:
    """A grid of sites (rows) by steps (columns); NaN where a site was not visited."""

    sites: list[str]
    steps: list[int]
    values: list[list[float]]

    def of(self, site: str) -> list[float]:
        """The row of one site."""
        return self.values[self.sites.index(site)]


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of the cache in each denoising step, from the first; NaN for a step that did not come to its end."""

    held: list[float]
    """Bytes held when the step's last forward is over. What no later step reads is freed when the next step begins."""
    most: list[float]
    """The most bytes held at once within the step: from that freeing at its beginning to its end."""

    @property
    def peak(self) -> float:
        """The most bytes held at once in the video; 0 if no step was finished."""
        return max((bytes_ for bytes_ in self.most if not math.isnan(bytes_)), default=0.0)

    @property
    def peak_step(self) -> int | None:
        """The first step in which so many were held; None if no step was finished."""
        return self.most.index(self.peak) if self.peak in self.most else None


def heatmap(trace: Trace, column: str, part: Part | None, branch: str | None) -> Heatmap:
    """See `Trace.heatmap`."""
    if part is None:
        inside = [p for p in Part if p.inside_block and p in trace.parts]
        part = inside[0] if inside and Part.BLOCK not in trace.parts else Part.BLOCK
    sites = list(dict.fromkeys(s for s in trace.site if s.part is part))
    values = trace.column(column)
    if column == "decision":
        values = [float(decision != "recompute") for decision in values]
    num_steps = len(trace.timesteps)
    sums = {site: [0.0] * num_steps for site in sites}
    counts = {site: [0] * num_steps for site in sites}
    for site, step, row_branch, value in zip(trace.site, trace.step, trace.branch, values):
        if site.part is part and (branch is None or row_branch == branch) and not math.isnan(value):
            sums[site][step] += value
            counts[site][step] += 1
    grid = [[s / c if c else NAN for s, c in zip(sums[site], counts[site])] for site in sites]
    return Heatmap([site.name for site in sites], list(range(num_steps)), grid)


def cache_curves(trace: Trace) -> CacheBytes:
    """See `Trace.cache_bytes`."""
    noted = [trace.cache.get(step, (NAN, NAN)) for step in range(len(trace.timesteps))]
    return CacheBytes([float(held) for held, _ in noted], [float(most) for _, most in noted])
