"""A picture of sweeps: quality against the share of full compute, a line per method with intervals at its settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fsframework.metrics.statistics import ClusterInterval, cluster_means
from fsframework.run.compare_sweep import Scale, Sweep, scale_of
from fsframework.run.report_svg import NUM_COLOURS, marker, path, text, ticks

COLOURS = ("#1b6ca8", "#c8553d", "#2e8b57", "#8e44ad", "#b8860b", "#008b8b", "#c71585")
"""Of `.run-0` to `.run-6`; a picture that stands alone carries its own style."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 520, 60, 250, 34, 48
ROW = 18
"""Pixels between two names of the legend."""
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600}.grid{stroke:#e3e3e3;fill:none}"
    ".other{stroke:#c4c4c4;fill:none}.own{fill:none;stroke-width:2}.whisker{fill:none;stroke-width:1.2;opacity:.7}"
)


@dataclass(frozen=True)
class Point:
    """One setting of a method."""

    x: float
    """Share of full compute, mean over videos."""
    y: ClusterInterval


def points(sweep: Sweep, metric: str) -> list[Point]:
    """Every setting that has the metric, from little compute to much."""
    scale, found = scale_of(metric), []
    values = sweep.quality.get(metric)
    for k in range(len(sweep.settings)) if values is not None else ():
        assert values is not None
        means = cluster_means(np.stack([scale.to_mean(values[:, k]), sweep.fraction[:, k]], axis=1), sweep.prompts)
        if means.n:
            found.append(Point(float(means.centre[1]), means.interval(lambda m: scale.from_mean(m[..., 0]))))
    return sorted(found, key=lambda point: point.x)


def front(lines: Sequence[tuple[str, Sequence[Point]]], scale: Scale) -> list[str]:
    """Methods with a setting that no setting of any method beats in both compute and quality, from little compute to much."""
    sign = 1.0 if scale.higher_is_better else -1.0
    every = sorted((p.x, sign * p.y.mean, name) for name, line in lines for p in line)
    beats = lambda a, b, x, y: a <= x and b >= y and (a < x or b > y)
    return list(dict.fromkeys(name for x, y, name in every if not any(beats(a, b, x, y) for a, b, _ in every)))


def sweep_plot(sweeps: Sequence[Sweep], metric: str, title: str, shown: Collection[str] | None = None) -> str:
    """A self-contained SVG; methods that are not in `shown` (default: all are) are thin and grey, without a name.

    Settings whose videos are identical to the reference, and shares above 0.98 or so, have no place on the axes: full compute
    is not drawn.
    """
    scale = scale_of(metric)
    lines = {sweep.name: [p for p in points(sweep, metric) if math.isfinite(p.y.mean)] for sweep in sweeps}
    named = [name for name in lines if lines[name] and (shown is None or name in shown)]
    every = [p for line in lines.values() for p in line]
    if not every:
        return _wrapped([text(LEFT, 18, f"{title}: no setting has {metric}", "title", "start")], HEIGHT)
    height = max(HEIGHT, TOP + ROW * (len(named) + 3) + BOTTOM)
    x0, x1 = _limits([p.x for p in every])
    y0, y1 = _limits([v for p in every for v in (p.y.mean, p.y.low, p.y.high) if math.isfinite(v)])
    x = lambda v: LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
    y = lambda v: height - BOTTOM - (v - y0) / (y1 - y0) * (height - BOTTOM - TOP)
    out = [text(LEFT, 18, title, "title", "start")]
    for v in ticks(x0, x1, 7):
        out += [path(f"M{x(v):.1f} {TOP}V{height - BOTTOM}", "grid"), text(x(v), height - BOTTOM + 18, f"{v:g}")]
    for v in ticks(y0, y1, 7):
        out += [path(f"M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}", "grid"), text(LEFT - 8, y(v) + 4, f"{v:g}", anchor="end")]
    out.append(text((LEFT + WIDTH - RIGHT) / 2, height - 8, "FLOPs / full compute", "title"))
    out.append(text(14, (TOP + height - BOTTOM) / 2, scale.title, "title", turned=True))
    drawn = lambda line: "M" + "L".join(f"{x(p.x):.1f} {y(p.y.mean):.1f}" for p in line) if len(line) > 1 else ""
    out += [path(drawn(line), "other") for name, line in lines.items() if name not in named]
    for i, name in enumerate(named):
        colour, dash = COLOURS[i % NUM_COLOURS], ' stroke-dasharray="6 4"' if i // NUM_COLOURS % 2 else ""
        whiskers = "".join(
            f"M{x(p.x):.1f} {y(p.y.low):.1f}V{y(p.y.high):.1f}"
            for p in lines[name]
            if math.isfinite(p.y.low) and math.isfinite(p.y.high)
        )
        if whiskers:
            out.append(f'<path class="whisker" d="{whiskers}" stroke="{colour}"/>')
        if line := drawn(lines[name]):
            out.append(f'<path class="own" d="{line}" stroke="{colour}"{dash}/>')
        out += [marker(i, x(p.x), y(p.y.mean), 4) for p in lines[name]]
        row = TOP + 8 + ROW * i
        out.append(f'<path class="own" d="M{WIDTH - RIGHT + 14} {row}h22" stroke="{colour}"{dash}/>')
        out += [
            marker(i, WIDTH - RIGHT + 25, row, 4),
            text(WIDTH - RIGHT + 42, row + 4, _short(name), "label", "start"),
        ]
    if len(named) < sum(bool(line) for line in lines.values()):
        row = TOP + 8 + ROW * len(named)
        out.append(path(f"M{WIDTH - RIGHT + 14} {row}h22", "other"))
        out.append(text(WIDTH - RIGHT + 42, row + 4, "other methods", "label", "start"))
    out.append(text(WIDTH - RIGHT + 14, height - BOTTOM, "bars: 95 % over prompts", "label", "start"))
    return _wrapped(out, height)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:31] + "…"


def _wrapped(content: Sequence[str], height: int) -> str:
    style = _STYLE + "".join(f".run-{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    inside = f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "".join(content)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">{inside}</svg>\n'
