"""The report's Pareto plot: quality against compute, one marker per run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fsframework.run.report_svg import NUM_COLOURS, marker, path, svg, text, ticks

Box = tuple[float, float, float, float]
TOP_LINE = 20
"""Where runs identical to the reference are drawn, in pixels from the top."""


@dataclass(frozen=True)
class Point:
    """A run in the plot; low and high are NaN where there is no interval."""

    run: int
    mark: str
    tip: str
    """What the hover shows."""
    x: tuple[float, float, float]
    """mean, low, high."""
    y: tuple[float, float, float]
    """mean, low, high; the mean may be infinite (identical to the reference)."""
    model: str = ""
    """Runs of different models do not compete: each has a front of its own."""


@dataclass(frozen=True)
class _Frame:
    """The axes: from values to pixels."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: int
    left: int = 54
    right: int = 18
    bottom: int = 44

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        if math.isinf(value):
            return TOP_LINE
        floor = self.height - self.bottom
        return floor - (value - self.y_low) / (self.y_high - self.y_low) * (floor - self.top)

    def at(self, point: Point) -> tuple[float, float]:
        return self.x(point.x[0]), self.y(point.y[0])


def pareto(
    points: Sequence[Point], x_title: str, y_title: str, higher: bool, width: int, height: int, kind: str
) -> str:
    """An SVG of CSS class `kind`; to the right is cheaper, `higher` says whether up is better.

    A thin line joins the runs of a model that no other run of it beats in both. Infinite quality (identical to the
    reference) has a line of its own at the top.
    """
    points = [p for p in points if math.isfinite(p.x[0]) and not math.isnan(p.y[0])]
    if not points:
        return f'<p class="missing {kind}">No run has both values.</p>'
    finite = [p for p in points if math.isfinite(p.y[0])]
    identical = len(finite) < len(points)
    x_low, x_high = _limits([v for p in points for v in p.x])
    y_low, y_high = _limits([v for p in finite for v in p.y]) if finite else (0.0, 1.0)
    frame = _Frame(width, height, x_low, x_high, y_low, y_high, top=48 if identical else 14)
    out = _axes(frame, x_title, y_title, bool(finite), identical)

    for model in dict.fromkeys(p.model for p in points):
        own = [p for p in points if p.model == model]
        rivals = [p for p in own if math.isfinite(p.y[0])]
        front = sorted((p for p in rivals if not any(_beats(q, p, higher) for q in own)), key=lambda p: p.x[0])
        if len(front) > 1:
            out.append(path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in map(frame.at, front)), "front"))
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in map(frame.at, points)]
    for p in points:
        x, y = frame.at(p)
        bars = ""
        if all(map(math.isfinite, p.x)):
            bars += f"M{frame.x(p.x[1]):.1f} {y:.1f}H{frame.x(p.x[2]):.1f}"
        if all(map(math.isfinite, p.y)):
            bars += f"M{x:.1f} {frame.y(p.y[1]):.1f}V{frame.y(p.y[2]):.1f}"
        label_x, label_y, anchor = _place_label(x, y, 9.0 * len(p.mark), taken, width - frame.right)
        tip = escape(p.tip)
        out += [
            f'<g class="point" tabindex="0" data-row="{p.run}" data-tip="{tip}" aria-label="{tip}">',
            f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="16"/>',
            path(bars, f"whisker run-{p.run % NUM_COLOURS}"),
            marker(p.run, x, y),
            text(label_x, label_y, p.mark, "label", anchor),
            "</g>",
        ]
    return svg(out, width, height, f"plot {kind}", f"{y_title} against {x_title}")


def _axes(frame: _Frame, x_title: str, y_title: str, any_finite: bool, identical: bool) -> list[str]:
    left, end, floor = frame.left, frame.width - frame.right, frame.height - frame.bottom
    out = []
    for value in ticks(frame.x_low, frame.x_high, 6 if frame.width > 500 else 4):
        x = frame.x(value)
        out += [path(f"M{x:.1f} {frame.top}V{floor}", "grid"), text(x, floor + 16, f"{value:g}")]
    for value in ticks(frame.y_low, frame.y_high) if any_finite else []:
        y = frame.y(value)
        out += [path(f"M{left} {y:.1f}H{end}", "grid"), text(left - 6, y + 4, f"{value:g}", anchor="end")]
    if identical:
        out += [path(f"M{left} {TOP_LINE}H{end}", "grid broken"), text(left - 6, TOP_LINE + 5, "∞", anchor="end")]
        out.append(text(end, TOP_LINE - 7, "identical to the reference", "note", "end"))
    out.append(path(f"M{left} {floor}H{end}", "axis"))
    out.append(text((left + end) / 2, frame.height - 6, x_title, "title"))
    out.append(text(13, (frame.top + floor) / 2, y_title, "title", turned=True))
    return out


def _limits(values: Sequence[float]) -> tuple[float, float]:
    known = [v for v in values if math.isfinite(v)]
    low, high = min(known), max(known)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


def _beats(a: Point, b: Point, higher: bool) -> bool:
    gain = a.y[0] - b.y[0] if a.y[0] != b.y[0] else 0.0  # inf - inf is no number
    gain = gain if higher else -gain
    return a.x[0] >= b.x[0] and gain >= 0 and (a.x[0] > b.x[0] or gain > 0)


def _place_label(x: float, y: float, wide: float, taken: list[Box], right: float) -> tuple[float, float, str]:
    """Where a label covers no marker and no other label: right, left, above or below its point; claims the place."""
    choices = (
        (x + 10, y + 4, "start", (x + 10, y - 8, x + 10 + wide, y + 6)),
        (x - 10, y + 4, "end", (x - 10 - wide, y - 8, x - 10, y + 6)),
        (x, y - 11, "middle", (x - wide / 2, y - 23, x + wide / 2, y - 10)),
        (x, y + 20, "middle", (x - wide / 2, y + 9, x + wide / 2, y + 22)),
    )
    for label_x, label_y, anchor, box in choices:
        free = not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
        if free and box[2] <= right:
            taken.append(box)
            return label_x, label_y, anchor
    return choices[0][:3]
