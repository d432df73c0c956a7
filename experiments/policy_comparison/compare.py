"""Tables and pictures of what `sweep.py measure` made: every method at the same share of full compute.

    python experiments/policy_comparison/compare.py [--out FOLDER]

Per clip, a method's quality at a fraction is read off the straight line between its own two settings around that
fraction (PSNR in dB and seconds; SSIM and adherence likewise); the settings are tuned to lie near. A clip whose settings
end more than 0.05 from the fraction is left out, and n says how many remain. Intervals are 95 % bootstrap over clips, PSNR
pools squared errors.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sweep import NUM_STEPS, RUNS

from fsframework.metrics import METRICS
from fsframework.metrics.statistics import Interval, bootstrap
from fsframework.run.report_svg import path, text, ticks

FRACTIONS = (0.75, 0.5, 0.33)
MOST_DB = 90.0
"""PSNR of identical clips, so that a line can be drawn to them."""
REACH = 0.05
"""How far beyond its own settings a method's line is followed to a fraction."""
FEWEST = 4
"""Clips a method must reach a fraction with to be compared there."""


@dataclass(frozen=True)
class At:
    """A method at one fraction."""

    psnr: Interval
    ssim: Interval
    adherence: Interval
    speedup: Interval
    per_clip: dict[int, float]
    """PSNR in dB by clip."""


def read(model: str) -> dict[str, list[dict[str, Any]]]:
    """Method -> its records, of the settings that are in `settings.json`."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    settings = json.loads((RUNS / model / "settings.json").read_text())
    wanted = {(name, json.dumps(one["options"])) for name, all_of in settings.items() for one in all_of}
    for line in (RUNS / model / "videos.jsonl").read_text().splitlines():
        record = json.loads(line)
        if (record["method"], json.dumps(record["options"])) not in wanted:
            continue  # a setting of an earlier tuning
        record["psnr"] = min(record["psnr"], MOST_DB)
        record["speedup"] = record["full_cpu_seconds"] / record["cpu_seconds"]
        out[record["method"]].append(record)
    return dict(out)


def whole(methods: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The methods with at least `FEWEST` clips of every setting, and of those the clips that all of them have."""
    clips: dict[str, set[int]] = {}
    for name, rows in methods.items():
        settings = {json.dumps(r["options"]) for r in rows}
        have = [{r["clip"] for r in rows if json.dumps(r["options"]) == one} for one in settings]
        clips[name] = set.intersection(*have)
    known = {name: have for name, have in clips.items() if len(have) >= FEWEST}
    common = set.intersection(*known.values()) if known else set()
    return {name: [r for r in methods[name] if r["clip"] in common] for name in known}


def at_fraction(records: Sequence[dict[str, Any]], fraction: float) -> At | None:
    """A method's numbers at a fraction, None where too few clips reach it."""
    found: dict[str, dict[int, float]] = {key: {} for key in ("psnr", "ssim", "adherence", "speedup")}
    for clip in sorted({r["clip"] for r in records}):
        line = sorted(((r["fraction"], i, r) for i, r in enumerate(records) if r["clip"] == clip), key=lambda e: e[:2])
        distinct = [entry for k, entry in enumerate(line) if k == 0 or entry[0] > line[k - 1][0] + 1e-6]
        if len(distinct) < 2:
            continue
        # The pair of settings around the fraction; at the ends of the line the last pair, if it ends close by.
        k = min(max(sum(entry[0] <= fraction for entry in distinct), 1), len(distinct) - 1)
        (low, _, a), (high, _, b) = distinct[k - 1], distinct[k]
        if not low - REACH <= fraction <= high + REACH:
            continue
        share = (fraction - low) / (high - low)
        for key in found:
            # Speedups are read off in 1 / speedup: time is what is a straight line in compute.
            values = (1 / a[key], 1 / b[key]) if key == "speedup" else (a[key], b[key])
            value = values[0] + share * (values[1] - values[0])
            found[key][clip] = 1 / value if key == "speedup" else value
    if len(found["psnr"]) < FEWEST:
        return None
    psnr = METRICS["psnr"]().aggregate(list(found["psnr"].values()))
    others = {key: bootstrap(list(found[key].values())) for key in ("ssim", "adherence", "speedup")}
    return At(psnr, per_clip=found["psnr"], **others)


def table(model: str, methods: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row per method, three columns of PSNR, and what belongs to the middle fraction."""
    at = {name: [at_fraction(rows, f) for f in FRACTIONS] for name, rows in methods.items()}
    best = [max((a[i].psnr.mean for a in at.values() if a[i]), default=math.nan) for i in range(len(FRACTIONS))]
    lines = [
        "| method | " + " | ".join(f"PSNR dB at {f}" for f in FRACTIONS) + " | SSIM at 0.5 | adherence at 0.5 | "
        "CPU-time speedup at 0.5 | minus static at 0.5, dB |",
        "|---|" + "---|" * (len(FRACTIONS) + 4),
    ]
    order = sorted(at, key=lambda name: -(at[name][1].psnr.mean if at[name][1] else -1))
    static = at.get("static", [None] * 3)[1]
    for name in order:
        cells = []
        for i, one in enumerate(at[name]):
            if one is None:
                cells.append("-")
                continue
            mark = "**" if one.psnr.mean >= best[i] - 1e-9 else ""
            cells.append(f"{mark}{one.psnr.mean:.1f}{mark} ({one.psnr.low:.1f} to {one.psnr.high:.1f}, n={one.psnr.n})")
        middle = at[name][1]
        if middle is None:
            cells += ["-"] * 4
        else:
            cells += [_cell(middle.ssim, 3), _cell(middle.adherence, 2), _cell(middle.speedup, 2)]
            gains = (
                [v - static.per_clip[c] for c, v in middle.per_clip.items() if c in static.per_clip] if static else []
            )
            gain = bootstrap(gains)
            cells.append(
                "" if name == "static" or not gains else f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    front = pareto(methods)
    lines += ["", f"On the Pareto front of mean FLOPs and pooled PSNR ({model}): " + "; ".join(front) + "."]
    return "\n".join(lines)


def _cell(value: Interval, digits: int) -> str:
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def points(records: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(fraction, pooled PSNR) of each setting that has all its clips, from little to much compute."""
    by_setting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in records:
        by_setting[json.dumps(r["options"])].append(r)
    most = max(map(len, by_setting.values()))
    aggregate = METRICS["psnr"]().aggregate
    return sorted(
        (float(np.mean([r["fraction"] for r in rows])), aggregate([r["psnr"] for r in rows]).mean)
        for rows in by_setting.values()
        if len(rows) == most
    )


def pareto(methods: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Methods with a setting that no setting of any method beats in both compute and quality."""
    every = [(name, x, y) for name, rows in methods.items() for x, y in points(rows)]
    return list(
        dict.fromkeys(
            name
            for name, x, y in sorted(every, key=lambda row: row[1])
            if not any(a <= x and b >= y and (a < x or b > y) for _, a, b in every)
        )
    )


def picture(model: str, methods: dict[str, list[dict[str, Any]]]) -> str:
    """An SVG: pooled PSNR against the share of full compute; the front's methods, static and Foresight in colour."""
    width, height, left, top, bottom, right = 860, 520, 56, 30, 46, 250
    lines = {name: points(rows) for name, rows in methods.items()}
    shown = list(dict.fromkeys([*pareto(methods), "static", "foresight"]))
    shown = [name for name in shown if name in lines]
    flat = [p for line in lines.values() for p in line if p[1] < MOST_DB]
    x0, x1 = 0.2, 0.9
    y0, y1 = max(10.0, min(p[1] for p in flat)), max(p[1] for p in flat if p[0] < x1)
    x = lambda v: left + (v - x0) / (x1 - x0) * (width - left - right)
    y = lambda v: height - bottom - (v - y0) / (y1 - y0) * (height - bottom - top)
    colours = [
        "#1b6ca8",
        "#c8553d",
        "#2e8b57",
        "#8e44ad",
        "#b8860b",
        "#008b8b",
        "#c71585",
        "#556b2f",
        "#4b0082",
        "#a0522d",
    ]
    out = [
        "<style>text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600}.grid{stroke:#e3e3e3;fill:none}"
        ".other{stroke:#c4c4c4;fill:none;stroke-width:1}.own{fill:none;stroke-width:2}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        text(left, 18, f"{model}, {NUM_STEPS} steps", "title", "start"),
    ]
    for v in ticks(x0, x1, 7):
        out += [path(f"M{x(v):.1f} {top}V{height - bottom}", "grid"), text(x(v), height - bottom + 18, f"{v:g}")]
    for v in ticks(y0, y1, 7):
        out += [path(f"M{left} {y(v):.1f}H{width - right}", "grid"), text(left - 8, y(v) + 4, f"{v:g}", anchor="end")]
    out.append(text((left + width - right) / 2, height - 8, "FLOPs / full compute", "title"))
    out.append(text(14, (top + height - bottom) / 2, "PSNR to full compute, dB", "title", turned=True))

    def line(name: str) -> str:
        inside = [(a, b) for a, b in lines[name] if x0 <= a <= x1 and y0 <= b <= y1]
        return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in inside) if inside else ""

    out += [path(line(name), "other") for name in lines if name not in shown]
    for i, name in enumerate(shown):
        colour, dash = colours[i % len(colours)], ' stroke-dasharray="6 4"' if i >= len(colours) else ""
        out.append(f'<path class="own" d="{line(name)}" stroke="{colour}"{dash}/>')
        for a, b in lines[name]:
            if x0 <= a <= x1 and y0 <= b <= y1:
                out.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5" fill="{colour}"/>')
        row = top + 8 + 18 * i
        out.append(f'<path class="own" d="M{width - right + 14} {row}h22" stroke="{colour}"{dash}/>')
        out.append(text(width - right + 42, row + 4, name, "label", "start"))
    row = top + 8 + 18 * len(shown)
    out += [
        path(f"M{width - right + 14} {row}h22", "other"),
        text(width - right + 42, row + 4, "other methods", "label", "start"),
    ]
    inside = "".join(out)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">{inside}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sections = []
    for folder in sorted(RUNS.glob("*/videos.jsonl")):
        model = folder.parent.name
        methods = whole(read(model))
        sections.append(f"### {model}\n\n{table(model, methods)}\n")
        (options.out / f"{model}.svg").write_text(picture(model, methods))
    (options.out / "comparison.md").write_text("\n".join(sections))
    print("\n".join(sections))


if __name__ == "__main__":
    main()
