"""The report's card of each run: where it reuses, how its distances move, and the numbers behind the hovers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from fsframework.run.report_curves import curve_limits, curve_panel, heatmap_png
from fsframework.run.report_data import RunData, plain
from fsframework.run.report_svg import marker, step_ticks
from fsframework.run.report_trace import TraceGrid

MAX_HEIGHT, ROW_PIXELS = 420, (7, 18)
"""Of a heat map, and the range its rows may have."""


def sign(run: int) -> str:
    """The run's marker as a small picture of its own."""
    return f'<svg viewBox="0 0 16 16" aria-hidden="true">{marker(run, 8, 8)}</svg>'


def run_name(run: RunData, number: int, badge: str = "") -> str:
    """Marker, letter and name, below them the policy if the name is another, its non-default options, and the model where
    the report has several."""
    words = [] if run.names_policy else [run.policy]
    words += [f"{key}={plain(value)}" for key, value in run.options.items()]
    words += [f"on {run.model}"] if run.says_model else []
    options = " ".join(f"<span>{escape(word).replace('_', '_<wbr>').replace('=', '=<wbr>')}</span>" for word in words)
    below = f'<span class="options">{options}</span>' if options else ""
    warning = f'<span class="badge">{escape(badge)}</span>' if badge else ""
    return f'<span class="run-name">{sign(number)}<b>{run.mark}&nbsp;{escape(run.title)}</b>{below}{warning}</span>'


def run_card(run: RunData, number: int, is_open: bool) -> str:
    """Heat map, reuse per step and curves of one run, or a sentence on why they are missing."""
    if run.trace is None:
        body = '<p class="missing">This run has no readable trace.</p>'
    else:
        body = _heatmap(run.trace, number) + _curves(run.trace, number)
    summary = f"<summary>{run_name(run, number)}</summary>"
    return f'<details class="card run" data-row="{number}"{" open" if is_open else ""}>{summary}{body}</details>'


def run_payload(run: RunData) -> dict[str, Any] | None:
    """The trace's numbers for the hovers; None without a trace."""
    grid = run.trace
    if grid is None:
        return None
    return {
        "sites": grid.sites,
        "steps": grid.num_steps,
        "videos": grid.num_videos,
        "timesteps": _numbers(np.array(grid.timesteps)),
        "reuse": _numbers(grid.reuse_ST),
        "lag": _numbers(grid.lag_ST),
        "eliminated": _numbers(np.nan_to_num(grid.eliminated_ST)),
        "forced": _numbers(np.nan_to_num(grid.forced_ST)),
        "curves": {
            branch: {
                "distance": _numbers(curves.distance_ST),
                "threshold": _numbers(curves.threshold_ST),
                "count": np.nan_to_num(curves.count_ST).astype(int).tolist(),
            }
            for branch, curves in grid.curves.items()
        },
    }


def _numbers(array: np.ndarray) -> Any:
    """Nested lists with three digits, null where there is no value: JSON knows no NaN."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [_short(float(value)) for value in array]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.3g}") if abs(value) < 100 else round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded


def _heatmap(grid: TraceGrid, number: int) -> str:
    num_sites = len(grid.sites)
    if not max(np.nansum(grid.reuse_ST), np.nansum(grid.eliminated_ST), np.nansum(grid.forced_ST)) > 0:
        return f'<p class="small">Nothing was reused: all {num_sites} sites ran at all {grid.num_steps} steps.</p>'
    row = min(ROW_PIXELS[1], max(ROW_PIXELS[0], MAX_HEIGHT // num_sites))
    every = math.ceil(12 / row)
    widest = max(map(len, grid.labels))
    labels = "".join(
        f'<span style="top:{100 * (i + 0.5) / num_sites:.2f}%">{escape(label)}</span>'
        for i, label in enumerate(grid.labels)
        if i % every == 0
    )
    steps = "".join(
        f'<span style="left:{100 * (step + 0.5) / grid.num_steps:.2f}%">{step}</span>'
        for step in step_ticks(grid.num_steps, 8)
    )
    bars = "".join(
        f'<rect x="{step}" y="{1 - share:.3f}" width=".944" height="{share:.3f}"/>'
        for step, share in enumerate(np.nan_to_num(grid.reuse_T))
    )
    strip = f'<svg viewBox="0 0 {grid.num_steps} 1" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
    alt = f"share of videos in which each of {num_sites} sites was reused at each of {grid.num_steps} steps"
    return (
        f"<h4>Reuse by site and step</h4>"
        f'<div class="heat"><div class="strip-axis"><span style="top:0">100 %</span><span style="bottom:0">0</span></div>'
        f'<div class="strip" data-tip="share of sites reused in each step">{strip}</div>'
        f'<div class="ylabels" style="width:min({widest}ch,30vw)">{labels}</div>'
        f'<img data-heat="{number}" src="{heatmap_png(grid)}" alt="{alt}" style="height:{row * num_sites}px">'
        f'<div class="xlabels">{steps}</div><div class="xtitle">denoising step</div></div>{_heat_legend(grid)}'
    )


def _heat_legend(grid: TraceGrid) -> str:
    entries = [
        ("recompute", "recomputed in every video"),
        ("ramp", f"reused, few to all of {grid.num_videos} videos"),
    ]
    if np.nansum(grid.eliminated_ST) > 0:
        entries.append(("eliminated", "eliminated: dead, so not run"))
    if np.nansum(grid.forced_ST) > 0:
        entries.append(("forced", "recompute forced: nothing was cached"))
    items = "".join(f'<li><span class="swatch {kind}"></span>{words}</li>' for kind, words in entries)
    return (
        f'<ul class="legend">{items}</ul><p class="small">Sites from top to bottom in execution order; the bars above '
        f"show the share of them reused in each step. {_overall(grid)}</p>"
    )


def _overall(grid: TraceGrid) -> str:
    if not np.nansum(grid.reuse_T) > 0:
        return ""
    first = int(np.flatnonzero(np.nan_to_num(grid.reuse_T) > 0)[0])
    peak = float(np.nanmax(grid.reuse_T))
    return f"The first reuse is at step {first}; at most {100 * peak:.0f} % of the sites are reused in a step."


def _curves(grid: TraceGrid, number: int) -> str:
    limits = curve_limits(grid)
    if limits is None:
        return '<p class="small missing">This policy measures no distance, so there are no curves.</p>'
    panels = "".join(curve_panel(grid, site, limits, number) for site in _with_curves(grid))
    branches = list(grid.curves)
    both = f" Blue: {escape(branches[0])}; green: {escape(branches[1])}." if len(branches) > 1 else ""
    swatch = '<svg class="key" viewBox="0 0 26 10" aria-hidden="true"><path class="{}" d="M0 5H26"/></svg>'
    return (
        f'<h4>Distance and threshold of each block</h4><div class="panels">{panels}</div>'
        f'<ul class="legend"><li>{swatch.format("distance")}distance, mean over videos, where it was measured; '
        f"band: 10th to 90th percentile</li><li>{swatch.format('threshold')}threshold, mean over videos</li></ul>"
        f'<p class="small">x: denoising step. y: in the policy\'s own unit (a mean squared change for Foresight), '
        f"logarithmic, the same for all blocks of this run. A video that reuses a block measures nothing there: pale dots are "
        f"means of fewer than half as many videos as elsewhere.{both}</p>"
    )


def _with_curves(grid: TraceGrid) -> Sequence[int]:
    has = [
        np.isfinite(c.distance_ST).any(axis=1) | np.isfinite(c.threshold_ST).any(axis=1) for c in grid.curves.values()
    ]
    return np.flatnonzero(np.any(has, axis=0)).tolist()
