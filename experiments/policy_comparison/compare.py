"""Tables and pictures of what `sweep.py measure` made: every method at the same share of full compute.

    python experiments/policy_comparison/compare.py [--out FOLDER]

The arithmetic is that of `fsf compare` (fsframework/run/compare_sweep.py): per clip, between its own two neighbouring
settings, which are tuned to lie near; a clip whose settings end more than 0.05 from the fraction is left out, and n says so.
Intervals are 95 % bootstrap over captions, all seeds of one together, paired with static; PSNR pools squared errors.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sweep import NUM_STEPS, RUNS

from fsframework.config.grid import plain
from fsframework.run.compare_cells import Cell, Row, Table
from fsframework.run.compare_plot import front, points, sweep_plot
from fsframework.run.compare_quality import baseline_table
from fsframework.run.compare_sweep import Sweep, scale_of
from fsframework.run.compare_tables import compute_table
from fsframework.run.compare_text import table_markdown

FRACTIONS = (0.75, 0.5, 0.33)
MIDDLE = 1
"""Of FRACTIONS, where SSIM, adherence, speedup and the difference to static are shown."""
METRICS = ("psnr", "ssim", "adherence")
BASELINE = "static"
FEWEST = 12
"""Clips a method must have, and reach a fraction with, to be compared."""


def read(model: str, runs: Path = RUNS) -> dict[str, list[dict[str, Any]]]:
    """Method -> its records, of the settings that are in `settings.json`."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    settings = json.loads((runs / model / "settings.json").read_text())
    wanted = {(name, json.dumps(one["options"])) for name, all_of in settings.items() for one in all_of}
    for line in (runs / model / "videos.jsonl").read_text().splitlines():
        record = json.loads(line)
        if (record["method"], json.dumps(record["options"])) in wanted:  # else of an earlier tuning
            out[record["method"]].append(record)
    return dict(out)


def sweeps_of(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Sweep]:
    """The methods with at least `FEWEST` clips of every setting, and of those the clips that all of them have."""
    by_setting: dict[str, dict[str, dict[tuple[str, int], Mapping[str, Any]]]] = {}
    for name, records in methods.items():
        settings: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
        for r in records:
            settings[json.dumps(r["options"])][str(r["prompt"]), int(r["seed"])] = r
        if len(set.intersection(*map(set, settings.values()))) >= FEWEST:
            by_setting[name] = settings
    every = [set(clips) for settings in by_setting.values() for clips in settings.values()]
    common = sorted(set.intersection(*every)) if every else []

    def sweep(name: str, settings: Mapping[str, Mapping[tuple[str, int], Mapping[str, Any]]]) -> Sweep:
        column = lambda read: np.array(
            [[read(clips[clip]) for clips in settings.values()] for clip in common], dtype=float
        )
        full = column(lambda r: r["full_cpu_seconds"])
        quality = {metric: column(lambda r, metric=metric: r[metric]) for metric in METRICS}
        time = column(lambda r: r["cpu_seconds"]) / full
        labels = [plain(json.loads(one)) for one in settings]
        return Sweep(name, labels, common, column(lambda r: r["fraction"]), time, full.mean(axis=1), quality)

    return [sweep(name, settings) for name, settings in by_setting.items()]


def overview(sweeps: Sequence[Sweep]) -> Table:
    """A row per method: PSNR at every fraction, and what belongs to the middle one; the best there first."""
    static = next((sweep for sweep in sweeps if sweep.name == BASELINE), None)
    at = [compute_table(sweeps, fraction, METRICS, static) for fraction in FRACTIONS]
    cells = [{row.label: list(row.cells) for row in table.rows} for table in at]
    few = lambda cell: Cell(text="-") if cell.num_videos < FEWEST and cell.text != "" else cell
    rows = []
    for name in [row.label for row in at[MIDDLE].rows]:
        middle = cells[MIDDLE][name]
        # After the three metrics: speedup, difference to static, ratio of speedups.
        shown = [*(one[name][0] for one in cells), *middle[1:4], *middle[4:5]]
        rows.append(Row(name, [few(cell) for cell in shown]))
    where = f"at {FRACTIONS[MIDDLE]}"
    titles = [
        *(f"PSNR dB at {f}" for f in FRACTIONS),
        f"SSIM {where}",
        f"adherence {where}",
        f"CPU-time speedup {where}",
    ]
    titles += [f"minus {BASELINE} {where}, dB"] if static is not None else []
    notes = [f"{table.title}: {' '.join(table.notes)}" for table in at if table.notes]
    marks = [1] * len(FRACTIONS) + [0] * (len(titles) - len(FRACTIONS))
    return Table("compute", "At equal compute", "", "method", titles, rows, notes, marks)


def at_static(sweeps: Sequence[Sweep]) -> Table | None:
    """What every method takes for the PSNR that static has at its setting nearest to the middle fraction."""
    static = next((sweep for sweep in sweeps if sweep.name == BASELINE), None)
    if static is None:
        return None
    nearest = int(np.abs(static.fraction.mean(axis=0) - FRACTIONS[MIDDLE]).argmin())
    return baseline_table(sweeps, "psnr", static, nearest)


def section(model: str, sweeps: Sequence[Sweep]) -> str:
    """Markdown of one model."""
    if not sweeps:
        return f"### {model}\n\nNo method has {FEWEST} clips of every setting.\n"
    table, equal = overview(sweeps), at_static(sweeps)
    best = front([(sweep.name, points(sweep, "psnr")) for sweep in sweeps], scale_of("psnr"))
    parts = [f"### {model}", table_markdown(table), "\n".join(f"- {note}" for note in table.notes)]
    parts.append(f"On the Pareto front of mean FLOPs and pooled PSNR ({model}): {'; '.join(best)}.")
    if equal is not None:
        parts += [
            f"{equal.title}. {equal.about}",
            table_markdown(equal),
            "\n".join(f"- {note}" for note in equal.notes),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def picture(model: str, sweeps: Sequence[Sweep]) -> str:
    """An SVG: pooled PSNR against the share of full compute; the front's methods, static and Foresight in colour."""
    best = front([(sweep.name, points(sweep, "psnr")) for sweep in sweeps], scale_of("psnr"))
    return sweep_plot(sweeps, "psnr", f"{model}, {NUM_STEPS} steps", {*best, BASELINE, "foresight"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where sweep.py wrote")
    parser.add_argument("--out", type=Path, help="default: where sweep.py wrote")
    options = parser.parse_args()
    out = options.out or options.runs
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for file in sorted(options.runs.glob("*/videos.jsonl")):
        model = file.parent.name
        sweeps = sweeps_of(read(model, options.runs))
        sections.append(section(model, sweeps))
        if sweeps:
            (out / f"{model}.svg").write_text(picture(model, sweeps))
    (out / "comparison.md").write_text("\n".join(sections))
    print("\n".join(sections))


if __name__ == "__main__":
    main()
