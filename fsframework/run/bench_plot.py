"""A benchmark's picture: speedup against FLOPs speedup. On the line, all saved compute has become saved time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fsframework.run.bench_table import flops_speedup, middle, speedups
from fsframework.run.report_svg import path, svg, text, ticks

if TYPE_CHECKING:
    from fsframework.run.bench import Row, Section

COLOURS = {"bare": "#444444", "ours": "#1b6ca8", "diffusers": "#c2571a", "cache-dit": "#2e7d32"}
WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 64, 250, 30, 52
STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:13px}.heading{font-size:14px;font-weight:600}"
    ".grid{stroke:#e3e3e3;fill:none}.axis{stroke:#444;fill:none}.ideal{stroke:#888;stroke-dasharray:5 4;fill:none}"
    ".key{font-size:11px}.number{font-size:11px;font-weight:600}"
)


def plot(section: Section) -> str:
    """A section as a self-contained SVG. Points are numbered as in the key beside them; whiskers are 95 % intervals."""
    points = _points(section)
    most = max([1.05, *(max(x, high) for _, x, _, _, high in points)]) * 1.06
    least = min([0.9, *(min(x, low) for _, x, _, low, _ in points)]) * 0.97
    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT

    def at_x(value: float) -> float:
        return LEFT + (value - least) / (most - least) * (end - LEFT)

    def at_y(value: float) -> float:
        return floor - (value - least) / (most - least) * (floor - TOP)

    out = [f'<style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for value in ticks(least, most, 7):
        out += [path(f"M{at_x(value):.1f} {TOP}V{floor}", "grid"), text(at_x(value), floor + 17, f"{value:g}")]
        out += [
            path(f"M{LEFT} {at_y(value):.1f}H{end}", "grid"),
            text(LEFT - 7, at_y(value) + 4, f"{value:g}", "tick", "end"),
        ]
    out.append(path(f"M{at_x(least):.1f} {at_y(least):.1f}L{at_x(most):.1f} {at_y(most):.1f}", "ideal"))
    out.append(path(f"M{LEFT} {TOP}V{floor}H{end}", "axis"))
    out.append(text((LEFT + end) / 2, HEIGHT - 12, "FLOPs speedup", "title"))
    out.append(text(18, (TOP + floor) / 2, "speedup in time", "title", turned=True))
    out.append(text(LEFT, 18, section.title, "heading", "start"))
    for number, (row, x, y, low, high) in enumerate(points, start=1):
        colour, left = COLOURS[row.kind], at_x(x)
        if math.isfinite(low):
            out.append(f'<path d="M{left:.1f} {at_y(low):.1f}V{at_y(high):.1f}" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<circle cx="{left:.1f}" cy="{at_y(y):.1f}" r="4.5" fill="{colour}"/>')
        out.append(text(left + 7, at_y(y) - 5 + 11 * (number % 2), str(number), "number", "start"))
        out.append(f'<circle cx="{end + 16}" cy="{TOP + 17 * number - 4}" r="4" fill="{colour}"/>')
        name = row.name if len(row.name) <= 36 else row.name[:35] + "…"
        out.append(text(end + 26, TOP + 17 * number, f"{number}  {name}", "key", "start"))
    label = f"Speedup in time against FLOPs speedup, {section.title}"
    return svg(out, WIDTH, HEIGHT, "bench", label, 'xmlns="http://www.w3.org/2000/svg"')


def _points(section: Section) -> list[tuple[Row, float, float, float, float]]:
    """(row, FLOPs speedup, speedup, low, high) of what was measured; low and high are the median where there is no interval."""
    out = []
    for row in section.rows[1:]:
        x = flops_speedup(row, section.bare)
        if not row.seconds or row.failed or not math.isfinite(x):
            continue
        y = middle(speedups(row, section.bare))
        known = math.isfinite(y.low)
        out.append((row, x, y.mean, y.low if known else y.mean, y.high if known else y.mean))
    return out
