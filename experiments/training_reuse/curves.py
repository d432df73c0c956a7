"""Tables and pictures of what is in `results/`: python experiments/training_reuse/curves.py [RESULTS] [OUT]"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import HERE, read_json

from fsframework.run.compare_plot import COLOURS
from fsframework.run.report_svg import marker, path, text, ticks

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 860, 300, 66, 200, 30, 48
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600}.grid{stroke:#e3e3e3;fill:none}"
    ".own{fill:none;stroke-width:2}"
)
Line = Sequence[tuple[float, float]]
SHARED = (
    ("held_out_loss", "held-out loss, mean of t = 500, 800, 900, 975"),
    ("frame_digit_accuracy", "digit accuracy"),
)
DISTILLED = (
    ("psnr", "PSNR to the full teacher, dB"),
    ("frame_digit_accuracy", "digit accuracy"),
    ("both", "adherence"),
)


@dataclass(frozen=True)
class Panel:
    """One plot: lines by name; the same name has the same colour in every panel."""

    title: str
    x_title: str
    y_title: str
    lines: Mapping[str, Sequence[Line]]
    """Name -> one line per seed."""


def picture(panels: Sequence[Panel]) -> str:
    """A self-contained SVG, panels one below the other."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    out: list[str] = []
    for k, panel in enumerate(panels):
        out += _panel(panel, names, k * PANEL)
    style = STYLE + "".join(f".run-{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    inside = f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "".join(out)
    height = PANEL * len(panels)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">{inside}</svg>\n'


def _panel(panel: Panel, names: Sequence[str], above: float) -> list[str]:
    every = [point for lines in panel.lines.values() for line in lines for point in line]
    (x0, x1), (y0, y1) = (_limits([point[i] for point in every]) for i in (0, 1))
    top, bottom = above + TOP, above + PANEL - BOTTOM
    x = lambda v: LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
    y = lambda v: bottom - (v - y0) / (y1 - y0) * (bottom - top)
    out = [text(LEFT, above + 18, panel.title, "title", "start")]
    for v in ticks(x0, x1, 7):
        out += [path(f"M{x(v):.1f} {top}V{bottom}", "grid"), text(x(v), bottom + 18, f"{v:g}")]
    for v in ticks(y0, y1, 6):
        out += [path(f"M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}", "grid"), text(LEFT - 8, y(v) + 4, f"{v:g}", anchor="end")]
    out.append(text((LEFT + WIDTH - RIGHT) / 2, above + PANEL - 10, panel.x_title, "title"))
    out.append(text(16, (top + bottom) / 2, panel.y_title, "title", turned=True))
    for name, lines in panel.lines.items():
        i = names.index(name)
        colour = COLOURS[i % len(COLOURS)]
        for seed, line in enumerate(lines):
            dash = ' stroke-dasharray="6 4"' if seed else ""
            drawn = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line)
            out.append(f'<path class="own" d="{drawn}" stroke="{colour}"{dash}/>')
            out += [marker(i, x(a), y(b), 4) for a, b in line]
        row = top + 8 + 18 * list(panel.lines).index(name)
        out.append(marker(i, WIDTH - RIGHT + 20, row, 4))
        out.append(text(WIDTH - RIGHT + 34, row + 4, name, "label", "start"))
    return out


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


# What the experiments found.


def shared_panels(results: Sequence[Mapping[str, Any]], family: str) -> list[Panel]:
    """Held-out loss (from a third of the run on) and digit accuracy against TFLOPs."""
    own = [r for r in results if r.get("family") == family and "batch_clips" in r]
    panels = []
    for key, title in SHARED:
        lines: dict[str, list[Line]] = defaultdict(list)
        for result in own:
            points = [p for p in result["curve"] if key in p and p["step"] >= result["num_steps"] / 3]
            name = result["arm"].removeprefix(f"shared-{family}-").rpartition("-seed")[0]
            if points:
                lines[name].append([(p["flops"] / 1e12, p[key]) for p in points])
        if lines:
            panels.append(Panel(f"tiny-{family}, images: {title}", "TFLOPs of training", title.split(",")[0], lines))
    return panels


def monitor_panels(results: Sequence[Mapping[str, Any]], family: str) -> list[Panel]:
    """Each score over the checkpoints, a line per monitor."""
    own = [r for r in results if r.get("family") == family and "monitor" in r]
    order = list(dict.fromkeys(r["checkpoint"] for r in own))
    panels = []
    for key in ("both", "digit", "frame_digit_accuracy"):
        lines: dict[str, list[Line]] = {}
        for name in dict.fromkeys(r["monitor"] for r in own):
            shares = [r["share"] for r in own if r["monitor"] == name]
            label = f"{name} ({sum(shares) / len(shares):.2f} of full)"
            lines[label] = [[(float(order.index(r["checkpoint"])), r[key]) for r in own if r["monitor"] == name]]
        words = ", ".join(f"{i} {name}" for i, name in enumerate(order))
        panels.append(Panel(f"tiny-{family}: {key.replace('_', ' ')}", f"checkpoint: {words}", "share", lines))
    return panels


def distill_panels(results: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """PSNR to the full teacher and adherence of the student against the FLOPs of teacher and student."""
    own = [r for r in results if "teacher_flops" in r]
    panels = []
    for key, title in DISTILLED:
        lines: dict[str, list[Line]] = defaultdict(list)
        for r in own:
            name = r["arm"].removeprefix("distill-").rpartition("-seed")[0]
            lines[f"{name} ({r['num_trajectories']})"].append([(p["flops"] / 1e12, p[key]) for p in r["curve"]])
        panels.append(Panel(f"Student of 8 steps: {title}", "TFLOPs, teacher and student", title, lines))
    return panels


def pairs_agree(full: Sequence[float], other: Sequence[float]) -> tuple[int, int, int]:
    """(same order, other order, tied in one of them) over all pairs of checkpoints."""
    same = against = tied = 0
    for i in range(len(full)):
        for j in range(i):
            product = (full[i] - full[j]) * (other[i] - other[j])
            same, against, tied = same + (product > 0), against + (product < 0), tied + (product == 0)
    return same, against, tied


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; floats with three decimals, "-" for None."""
    words = lambda v: "-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)
    lines = [head, ["---"] * len(head), *[[words(v) for v in row] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def shared_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The end of each arm of `shared.py`."""
    rows = []
    for r in (r for r in results if "batch_clips" in r):
        last = next(p for p in reversed(r["curve"]) if "held_out_loss" in p)
        seen = next((p["frame_digit_accuracy"] for p in reversed(r["curve"]) if "frame_digit_accuracy" in p), None)
        losses = [last["held_out_loss"], *(last[f"loss_at_{t}"] for t in (500, 800, 900, 975))]
        cost = round(r["flops_per_step"] / 1e9, 2)
        rows.append([r["arm"].removeprefix("shared-"), r["batch_clips"], str(cost), last["step"], *losses, seen])
    head = "family, arm, seed|clips|GFLOPs a step|steps|held-out loss|at 500|at 800|at 900|at 975|digit accuracy"
    return table(head.split("|"), rows)


def monitor_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Each checkpoint under each monitor, and how the monitors order the checkpoints."""
    own = [r for r in results if "monitor" in r]
    if not own:
        return ""
    keys = ("digit", "motion", "both", "frame_digit_accuracy")
    rows = [[r["checkpoint"], r["monitor"], r["share"], r["psnr"], *(r[key] for key in keys)] for r in own]
    out = table(["checkpoint", "monitor", "share of FLOPs", "PSNR", *keys], rows)
    order, names = (list(dict.fromkeys(r[key] for r in own)) for key in ("checkpoint", "monitor"))
    by = {(r["monitor"], r["checkpoint"]): r for r in own}
    rows = []
    for name in names[1:]:
        common = [c for c in order if (name, c) in by and (names[0], c) in by]
        for key in keys:
            full, other = ([by[who, c][key] for c in common] for who in (names[0], name))
            rows.append([name, key, *pairs_agree(full, other)])
    return out + "\n" + table(["monitor", "score", "pairs in full's order", "reversed", "tied in one"], rows)


def distill_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The baselines, and the end of each arm of `distill.py`."""
    keys = ("psnr", "digit", "motion", "both", "frame_digit_accuracy")
    rows = []
    for r in (r for r in results if r.get("arm") == "distill-baselines"):
        for name in ("teacher", "few steps, guided", "few steps, unguided"):
            rows.append([name, None, None, None, *(r[name][key] for key in keys)])
    for r in (r for r in results if "teacher_flops" in r):
        last = r["curve"][-1]
        cost = [r["teacher_flops"] / 1e12, (last["flops"] - r["teacher_flops"]) / 1e12]
        rows.append([r["arm"].removeprefix("distill-"), r["num_trajectories"], *cost, *(last[key] for key in keys)])
    return table(["student", "trajectories", "teacher TFLOPs", "student TFLOPs", *keys], rows) if rows else ""


def main(results: str = str(HERE / "results"), out: str = str(HERE)) -> None:
    """Draw what there is; print the tables."""
    found = [read_json(file) for file in sorted(Path(results).glob("*.json"), key=lambda file: file.stat().st_mtime)]
    pictures = {"distill": distill_panels(found)}
    for family in dict.fromkeys(r["family"] for r in found if "family" in r):
        pictures[f"shared-{family}"] = shared_panels(found, family)
        pictures[f"monitor-{family}"] = monitor_panels(found, family)
    for name, panels in pictures.items():
        if panels and all(panel.lines for panel in panels):
            (Path(out) / f"{name}.svg").write_text(picture(panels))
    print("\n".join(make(found) for make in (shared_table, monitor_table, distill_table)))


if __name__ == "__main__":
    main(*sys.argv[1:])
