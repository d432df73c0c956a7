"""The picture of a calibration: its curves, those with the same labels in one panel, then its maps. A self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsframework.run.calibrate_map import map_panel
from fsframework.run.report_svg import log_ticks, path, power, svg, text, ticks

if TYPE_CHECKING:
    from fsframework.core import Curve, Fit

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
"""Okabe and Ito's, told apart by colour-blind readers."""
MOST_NAMED = len(COLOURS)
"""Curves of a panel that get a colour and a line in the legend; of more only the first and the last are named, and colours
go from the first to the last."""
MOST_POINTS = 2000
"""Points of one curve that are drawn; of more every second, third, ..."""
LOG_RANGE = 30.0
"""An axis of positive numbers that reach over more than this is logarithmic, unless they are all whole (steps)."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND_LINE = 430, 280, 62, 14, 14, 44, 16
HEAD = 58
STYLE = """\
<style>text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:17px;font-weight:600;fill:#111}
.tick{font-size:11px;fill:#666}.grid{stroke:#e4e4e4;fill:none}.axis{stroke:#999;fill:none}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.dots{fill:none;stroke-width:3.2;stroke-linecap:round;
stroke-opacity:.6}</style>"""


def picture(fit: Fit, title: str, subtitle: str) -> str:
    """The SVG's text; the subtitle may have several lines. Without curves it holds the head only."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    labels = ("", "")
    for curve in fit.curves:
        labels = (curve.x_label, curve.y_label) if curve.x_label or curve.y_label else labels
        panels.setdefault(labels, []).append(curve)
    columns = min(2, max(1, len(panels)))
    width = 2 * WIDTH
    drawn = [_panel(*labels, curves, width // columns) for labels, curves in panels.items()]
    lines = [line for part in subtitle.splitlines() or [""] for line in _wrapped(part, width // 7)]
    top = HEAD + LEGEND_LINE * (len(lines) - 1)
    out = [f'<rect width="{width}" height="100%" fill="#fff"/>', STYLE, text(16, 26, title, "title", "start")]
    out += [text(16, 46 + LEGEND_LINE * i, line, "", "start") for i, line in enumerate(lines)]
    for row in range(0, len(drawn), columns):
        for column, (content, _) in enumerate(drawn[row : row + columns]):
            out.append(f'<g transform="translate({column * width // columns} {top})">{content}</g>')
        top += max(height for _, height in drawn[row : row + columns])
    for heat in fit.maps:
        content, height = map_panel(heat, width)
        out.append(f'<g transform="translate(0 {top})">{content}</g>')
        top += height
    extra = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}"'
    return svg(out, width, top, "calibration", title, extra) + "\n"


def _panel(x_label: str, y_label: str, curves: Sequence[Curve], width: int) -> tuple[str, int]:
    """(content, height) of one panel."""
    points = [_finite(curve) for curve in curves]
    across = _Axis([x for c in points for x, _ in c], LEFT, width - RIGHT)
    up = _Axis([y for c in points for _, y in c], HEIGHT - BOTTOM, TOP)
    out = []
    for value in up.ticks:
        out.append(path(f"M{LEFT} {up.at(value):.1f}H{width - RIGHT}", "grid"))
        out.append(text(LEFT - 6, up.at(value) + 4, up.label(value), anchor="end"))
    out += [text(across.at(value), HEIGHT - BOTTOM + 16, across.label(value)) for value in across.ticks]
    out.append(path(f"M{LEFT} {HEIGHT - BOTTOM}H{width - RIGHT}", "axis"))
    out.append(text((LEFT + width - RIGHT) / 2, HEIGHT - BOTTOM + 34, x_label, ""))
    out.append(text(14, (HEIGHT - BOTTOM + TOP) / 2, y_label, "", turned=True))
    colours = [_colour(i, len(curves)) for i in range(len(curves))]
    for curve, found, colour in sorted(
        zip(curves, points, colours), key=lambda drawn: drawn[0].is_line
    ):  # lines on top
        places = [f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in found]
        if curve.is_line and len(places) > 1:
            out.append(f'<path class="line" stroke="{colour}" d="M{"L".join(places)}"/>')
        elif places:
            places = places[:: math.ceil(len(places) / MOST_POINTS)]
            out.append(f'<path class="dots" stroke="{colour}" d="{"".join(f"M{place}h0" for place in places)}"/>')
    shown = list(zip(curves, colours))
    if len(shown) > MOST_NAMED:
        shown = [shown[0], shown[-1]]
    height = HEIGHT
    for curve, colour in shown if len(curves) > 1 or curves[0].name != y_label else ():
        of = "" if len(curves) <= MOST_NAMED else f"  (one of {len(curves)}, in order of colour)"
        solid = "stroke-opacity:1;" if curve.is_line else ""  # points in the legend as in the panel
        out.append(f'<path class="dots" style="{solid}stroke-width:9" stroke="{colour}" d="M{LEFT} {height}h0"/>')
        out.append(text(LEFT + 12, height + 4, curve.name + of, "", "start"))
        height += LEGEND_LINE
    return "".join(out), height + 12


class _Axis:
    """From numbers to pixels between `start` and `end`; logarithmic where the numbers ask for it."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        are_whole = all(float(value).is_integer() for value in values)
        self.is_log = not are_whole and low > 0 and high / low > LOG_RANGE
        if low == high:
            low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
        margin = 0.03 * (math.log(high / low) if self.is_log else high - low)
        self._from, self._to = (math.log(low), math.log(high)) if self.is_log else (low, high)
        self._from, self._to = self._from - margin, self._to + margin
        self._start, self._end = start, end
        self.ticks = log_ticks(low, high) if self.is_log else ticks(low, high, 5)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        place = math.log(value) if self.is_log else value
        return self._start + (place - self._from) / (self._to - self._from) * (self._end - self._start)

    def label(self, value: float) -> str:
        """A tick's text."""
        return power(value) if self.is_log else f"{value:.6g}"


def _finite(curve: Curve) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(curve.x, curve.y) if math.isfinite(x) and math.isfinite(y)]


def _colour(index: int, count: int) -> str:
    if count <= MOST_NAMED:
        return COLOURS[index]
    share = index / (count - 1)
    first, last = (0, 114, 178), (230, 159, 0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(first, last))


def _wrapped(line: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(line, width) or [""]
