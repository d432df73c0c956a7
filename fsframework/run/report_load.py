"""From the folders given to a report to its rows: run directories, and grids in place of their runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsframework.config.published import Published, check_table
from fsframework.run.report_data import Json, RunData, load_run

GRID = "ablation.json"
"""In a grid's folder, `<runs_dir>/_ablations/<name>`: its cells and the published numbers beside them."""


@dataclass
class Loaded:
    """The rows of a report."""

    runs: list[RunData]
    published: list[Published] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences on cells of a grid that are no rows."""


def load_runs(folders: Sequence[Path]) -> Loaded:
    """Read run directories in the order given, each once.

    A grid's folder stands for its finished cells, in its order, and names them, those given before it too.

    Raises:
        ValueError: a folder that does not exist, a grid whose ablation.json is damaged, or nothing but unfinished cells.
    """
    loaded = Loaded([])
    rows: dict[Path, RunData] = {}

    def row(folder: Path) -> RunData:
        known = folder.resolve()
        if known not in rows:
            rows[known] = load_run(folder, letters(len(rows)))
        return rows[known]

    for folder in folders:
        if not (folder / GRID).is_file():
            row(folder)
            continue
        cells, tables, states = _read_grid(folder)
        for label, group, directory in cells:
            run = row(directory)
            if not run.cell:  # else an earlier cell that came to the same run
                run.cell, run.group = label, group
        if states:
            counts = ", ".join(f"{count} {state}" for state, count in states.items())
            loaded.notes.append(f"Not every cell of {folder.name} is finished: {counts}. They are no rows here.")
        loaded.published += tables
    if not rows:
        raise ValueError(f"{', '.join(map(str, folders))}: no cell is finished; run `fsf ablate` first")
    loaded.runs = list(rows.values())
    several = len({run.model for run in loaded.runs}) > 1
    for run in loaded.runs:
        run.says_model = several
    return loaded


def letters(number: int) -> str:
    """0 -> A .. 25 -> Z, 26 -> AA, 27 -> AB, ..."""
    out = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        out = chr(ord("A") + rest) + out
    return out


def _read_grid(folder: Path) -> tuple[list[tuple[str, str | None, Path]], list[Published], dict[str, int]]:
    """(label, name, run directory) of each finished cell, the published tables, and how many other cells by their state."""
    path, above = folder / GRID, Path(os.path.normpath(folder / ".." / ".."))
    cells: list[tuple[str, str | None, Path]] = []
    states: dict[str, int] = {}
    try:
        grid: Json = json.loads(path.read_text(encoding="utf-8"))
        for cell in grid["cells"]:
            if cell["state"] == "finished":
                group = None if cell["group"] is None else str(cell["group"])
                cells.append((str(cell["cell"]), group, above / cell["directory"]))
            else:
                states[str(cell["state"])] = states.get(str(cell["state"]), 0) + 1
        tables = [Published.of(name, check_table(table, name)) for name, table in grid.get("published", {}).items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} could not be read: {error!r}. The grid's `fsf ablate` writes it anew.") from None
    return cells, tables, states
