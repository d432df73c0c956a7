"""Small parts of the report's pictures: SVG text, ticks, the runs' markers, PNG. Colours come from report.css."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from html import escape

import numpy as np

NUM_COLOURS = 7
"""Colours of runs in report.css (`.run-0` ...); further runs begin again with another marker shape."""


def text(x: float, y: float, content: str, kind: str = "tick", anchor: str = "middle", turned: bool = False) -> str:
    """A `<text>` of CSS class `kind`; `turned` reads from bottom to top."""
    place = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"' if turned else f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="{kind}" {place} text-anchor="{anchor}">{escape(content)}</text>'


def path(d: str, kind: str) -> str:
    """A `<path>` of CSS class `kind`; nothing for an empty path."""
    return f'<path class="{kind}" d="{d}"/>' if d else ""


def svg(content: list[str], width: int, height: int, kind: str, label: str, extra: str = "") -> str:
    """An `<svg>` that scales with the page; `label` is what a screen reader says."""
    inside = "".join(content)
    head = f'class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
    return f"<svg {head} {extra}>{inside}</svg>" if extra else f"<svg {head}>{inside}</svg>"


def marker(run: int, x: float, y: float, size: float = 6) -> str:
    """The run's sign: its shape and, through the CSS class, its colour."""
    r = size
    side, peak, base, tip = 0.9 * r, 1.15 * r, 1.1 * r, 1.3 * r
    diamond = f"l{tip:.1f} {tip:.1f}l{-tip:.1f} {tip:.1f}l{-tip:.1f} {-tip:.1f}z"
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"',
        f'<rect x="{x - side:.1f}" y="{y - side:.1f}" width="{2 * side:.1f}" height="{2 * side:.1f}"',
        f'<path d="M{x:.1f} {y - peak:.1f}l{base:.1f} {1.75 * peak:.1f}h{-2 * base:.1f}z"',
        f'<path d="M{x:.1f} {y - tip:.1f}{diamond}"',
    )
    shape = shapes[(run + run // NUM_COLOURS) % len(shapes)]
    return f'{shape} class="mark run-{run % NUM_COLOURS}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(count, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def step_ticks(num_steps: int, count: int) -> list[int]:
    """Some of the steps 0 .. num_steps-1, evenly, from 0."""
    return [int(value) for value in ticks(0, num_steps - 1, count) if value == int(value)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; where there are fewer than two, also their multiples."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), tuple(range(1, 10))):
        found = [f * 10.0**e for e in exponents for f in factors if low * 0.999 <= f * 10.0**e <= high * 1.001]
        if len(found) >= 2:
            break
    return found[:: max(1, math.ceil(len(found) / 4))] or [low]


def power(value: float) -> str:
    """1e-05 as 10⁻⁵, 2e-05 as 2·10⁻⁵."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**exponent
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if abs(factor - 1) < 1e-6 else f"{factor:.2g}·10{raised}"


def png(rgba: np.ndarray) -> str:
    """A uint8 image [H, W, 4] as a data: URI; the same pixels give the same text."""
    height, width, _ = rgba.shape
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rgba.reshape(height, -1)], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()
