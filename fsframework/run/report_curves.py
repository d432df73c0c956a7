"""The report's pictures of a trace: the heat map of reuse and the distance and threshold curves of each block.

Shape suffixes: S sites in execution order, T denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fsframework.run.report_svg import log_ticks, path, png, power, step_ticks, svg, text
from fsframework.run.report_trace import Curves, TraceGrid

REUSE_RGB, ELIMINATED_RGB, FORCED_RGB = (0, 114, 178), (230, 159, 0), (213, 94, 0)
"""Okabe and Ito's colours, told apart by colour-blind readers; as strong on dark as on light ground."""
RECOMPUTE_RGBA = (128, 128, 128, 32)
CELL_HEIGHT, CELL_WIDTH = 9, 18
"""Pixels of a cell in the heat map's image, the last row and column of them a gap."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 196, 128, 46, 6, 20, 20
"""A curve panel and its margins."""


def heatmap_png(grid: TraceGrid) -> str:
    """A cell per site and step as a data: URI. Opacity is the share reused; a dot marks recomputes that were forced."""
    visited = ~np.isnan(grid.reuse_ST)
    cells_STC = np.zeros((*grid.reuse_ST.shape, 4))
    cells_STC[visited] = RECOMPUTE_RGBA
    for share_ST, rgb in ((grid.reuse_ST, REUSE_RGB), (grid.eliminated_ST, ELIMINATED_RGB)):
        shown = visited & (share_ST > 0)
        cells_STC[shown, :3] = rgb
        cells_STC[shown, 3] = 255 * (0.15 + 0.85 * share_ST[shown])
    image = cells_STC.repeat(CELL_HEIGHT, axis=0).repeat(CELL_WIDTH, axis=1)
    image[CELL_HEIGHT - 1 :: CELL_HEIGHT, :, 3] = 0
    image[:, CELL_WIDTH - 1 :: CELL_WIDTH, 3] = 0
    for s, t in zip(*np.nonzero(np.nan_to_num(grid.forced_ST) > 0)):
        top, left = s * CELL_HEIGHT + 2, t * CELL_WIDTH + 5
        image[top : top + 4, left : left + 7] = (*FORCED_RGB, 255)
    return png(image.round().astype(np.uint8))


def curve_limits(grid: TraceGrid) -> tuple[float, float] | None:
    """Lowest and highest positive distance or threshold of a run, for one log axis over all its blocks."""
    arrays = [a for c in grid.curves.values() for a in (c.distance_ST, c.low_ST, c.high_ST, c.threshold_ST)]
    values = np.concatenate([a.ravel() for a in arrays]) if arrays else np.array([])
    values = values[np.isfinite(values) & (values > 0)]
    return (float(values.min()) / 1.15, float(values.max()) * 1.15) if len(values) else None


def curve_panel(grid: TraceGrid, site: int, limits: tuple[float, float], run: int) -> str:
    """Distance and threshold of one site over the steps: log axis with shared limits, band from 10th to 90th percentile."""
    log_low, log_high = (math.log10(value) for value in limits)
    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x(step: int) -> float:
        return LEFT + (step + 0.5) / grid.num_steps * (end - LEFT)

    def y(value: float) -> float:
        # A distance of 0 has no place on a log axis: it lies on the floor.
        return floor - (math.log10(max(value, limits[0])) - log_low) / (log_high - log_low) * (floor - TOP)

    def places(row_T: np.ndarray, steps: Sequence[int]) -> list[str]:
        return [f"{x(t):.1f} {y(row_T[t]):.1f}" for t in steps]

    out = [text(LEFT, 12, grid.labels[site], "label", "start")]
    for value in log_ticks(*limits):
        out.append(path(f"M{LEFT} {y(value):.1f}H{end}", "grid"))
        out.append(text(LEFT - 4, y(value) + 3.5, power(value), anchor="end"))
    out += [text(x(step), HEIGHT - 7, str(step)) for step in step_ticks(grid.num_steps, 4)]
    for number, curves in enumerate(grid.curves.values()):
        measured = np.flatnonzero(np.isfinite(curves.distance_ST[site])).tolist()
        compared = np.flatnonzero(np.isfinite(curves.threshold_ST[site])).tolist()
        branch = f"branch-{number % 2}"
        if _has_spread(curves, site):
            ring = places(curves.high_ST[site], measured) + places(curves.low_ST[site], measured)[::-1]
            out.append(path(f"M{'L'.join(ring)}Z", f"band {branch}"))
        if compared:
            out.append(path("M" + "L".join(places(curves.threshold_ST[site], compared)), f"threshold {branch}"))
        if measured:
            marks = places(curves.distance_ST[site], measured)
            out.append(path("M" + "L".join(marks), f"distance {branch}"))
            most = np.nanmax(curves.count_ST[site])
            few = [2 * curves.count_ST[site][t] < most for t in measured]
            for kind, chosen in (("dots", False), ("dots few", True)):
                dots = "".join(f"M{mark}h0" for mark, is_few in zip(marks, few) if is_few == chosen)
                out.append(path(dots, f"{kind} {branch}"))
    out.append(path(f"M{LEFT} {floor}H{end}", "axis"))
    return svg(
        out, WIDTH, HEIGHT, "panel", f"distance and threshold of {grid.sites[site]}", f'data-panel="{run}:{site}"'
    )


def _has_spread(curves: Curves, site: int) -> bool:
    counts_T = curves.count_ST[site]
    return bool(np.nansum(counts_T > 0) > 1 and np.nanmax(counts_T) > 1)
