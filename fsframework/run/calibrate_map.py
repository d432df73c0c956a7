"""Sites by steps as squares of one colour, light to dark: gates, or the steps at which a plan computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from fsframework.run.report_svg import text

if TYPE_CHECKING:
    from fsframework.core import HeatMap

LIGHTEST, DARKEST = "#eaf2f9", "#08306b"
LEFT, TOP, SQUARE, LARGEST, FOOT, SCALE = 150, 34, 15, 24, 60, 120
"""Pixels: of names, of the title, a row's height, a column's largest width, below the squares, the scale's width."""


def map_panel(heat: HeatMap, width: int) -> tuple[str, int]:
    """(content, height) of one panel, `width` pixels wide."""
    columns = max((len(row) for row in heat.rows.values()), default=1)
    across = min(LARGEST, (width - LEFT - 16) / columns)
    bottom = TOP + SQUARE * len(heat.rows)
    out = [text(LEFT, TOP - 12, heat.name, "", "start")]
    for i, (name, row) in enumerate(heat.rows.items()):
        out.append(text(LEFT - 6, TOP + SQUARE * i + 11, name, anchor="end"))
        for step, value in enumerate(row):
            if math.isnan(value):
                continue
            place = (
                f'x="{LEFT + across * step:.1f}" y="{TOP + SQUARE * i}" width="{across - 1:.1f}" height="{SQUARE - 1}"'
            )
            said = f"<title>{escape(name)}, step {step}: {value:.4g}</title>"
            out.append(f'<rect class="square" {place} fill="{_colour(heat, value)}">{said}</rect>')
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if columns / n <= 20)
    out += [text(LEFT + across * (s + 0.5), bottom + 14, str(s)) for s in range(0, columns, every)]
    out.append(text(LEFT + across * columns / 2, bottom + 32, "step", ""))
    end = LEFT + across * columns
    for i in range(SCALE):
        colour = _mixed(i / (SCALE - 1))
        out.append(f'<rect x="{end - SCALE - 30 + i:.1f}" y="{TOP - 22}" width="1.5" height="10" fill="{colour}"/>')
    out.append(text(end - SCALE - 36, TOP - 13, f"{heat.low:g}", anchor="end"))
    out.append(text(end - 26, TOP - 13, f"{heat.high:g}", anchor="start"))
    return "".join(out), bottom + FOOT


def _colour(heat: HeatMap, value: float) -> str:
    share = (value - heat.low) / (heat.high - heat.low) if heat.high > heat.low else 1.0
    return _mixed(min(1.0, max(0.0, share)))


def _mixed(share: float) -> str:
    """Between the lightest colour (0) and the darkest (1)."""
    light, dark = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (LIGHTEST, DARKEST))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(light, dark))
