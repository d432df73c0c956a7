"""What is known of an ablation: its cells, and the directory that says how each went."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsframework.config.grid import Ablation, Cell
from fsframework.config.published import Published
from fsframework.run import artifacts
from fsframework.run.artifacts import Busy, RunDirectory, only_one

FOLDER = "_ablations"
"""Below `runs_dir`."""
FINISHED, FAILED, RUNNING, STOPPED, PENDING, ELSEWHERE = (
    "finished",
    "failed",
    "running",
    "stopped",
    "pending",
    "elsewhere",
)


@dataclass
class PlannedCell:
    """A cell whose names were all looked up."""

    number: int
    """In the order of the file, from 0."""
    cell: Cell
    expected: Path
    """Its run directory, as far as it is known without loading the model (see `job.expected_pixels`)."""
    num_videos: int
    num_steps: int
    reference: str
    """Equal for cells that share references."""
    same_as: int | None = None
    """The number of an earlier cell with the same hash."""

    @property
    def key(self) -> str:
        """What its status is kept under."""
        return self.expected.name

    @property
    def model(self) -> tuple[Any, ...]:
        """Cells with equal values can use one loaded model."""
        return dataclasses.astuple(self.cell.config.model)


@dataclass(frozen=True)
class Outcome:
    """How a cell went."""

    state: str
    """finished, failed, or elsewhere: another process is at it."""
    directory: str | None = None
    error: str | None = None


def by_model(planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """In such an order that every model is loaded once."""
    models = list(dict.fromkeys(p.model for p in planned))
    return sorted(planned, key=lambda p: models.index(p.model))


class Book:
    """The ablation's directory: its resolved grid, a status file per cell, the table, the report.

    A status file per cell, so that several commands can work on one ablation.
    """

    def __init__(self, ablation: Ablation, planned: Sequence[PlannedCell]) -> None:
        self.ablation = ablation
        self.planned = list(planned)
        self.runs_dir = Path(ablation.cells[0].config.output.runs_dir)
        self.folder = self.runs_dir / FOLDER / ablation.name
        self._metrics: dict[Path, dict[str, Any]] = {}

    def open(self) -> None:
        """Write what there is to do, and begin the table."""
        from omegaconf import OmegaConf

        for name in ("cells", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        text = OmegaConf.to_yaml(OmegaConf.create(self.ablation.content))
        artifacts.write_text(self.folder / "ablation.yaml", text)
        self.write()

    def status(self, planned: PlannedCell) -> dict[str, Any]:
        """What is on record of a cell; {} if nothing."""
        try:
            content = json.loads(self._status_file(planned).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def directory(self, planned: PlannedCell) -> Path:
        """The cell's run directory, which need not exist."""
        named = self.status(planned).get("directory")
        return planned.expected if named is None else self.runs_dir / named

    def is_finished(self, planned: PlannedCell) -> bool:
        """Whether its run directory is complete."""
        directory = RunDirectory(self.directory(planned))
        return directory.is_finished and len(directory.read_records()) == planned.num_videos

    def state(self, planned: PlannedCell) -> str:
        """finished by its directory; else what its status says."""
        if self.directory(planned) in self._metrics or self.is_finished(planned):
            return FINISHED
        state = str(self.status(planned).get("state", PENDING))
        if state == FINISHED:  # its directory was deleted
            return PENDING
        return STOPPED if state == RUNNING and not self._is_held(planned) else state  # its process was killed

    def begin(self, planned: PlannedCell) -> None:
        """A process is at it now."""
        before = self.status(planned)
        self._log(planned).unlink(missing_ok=True)
        self._write_status(
            planned,
            {
                "state": RUNNING,
                "attempts": int(before.get("attempts", 0)) + 1,
                "begun": _now(),
                "host": socket.gethostname(),
                "seconds": float(before.get("seconds") or 0.0),
            },
        )

    def end(self, planned: PlannedCell, outcome: Outcome, seconds: float) -> None:
        """It came to an end; write the table too."""
        if outcome.state == ELSEWHERE:
            return
        before = self.status(planned)
        log = self._log(planned)
        self._write_status(
            planned,
            {
                **before,
                "state": outcome.state,
                "directory": outcome.directory,
                "error": outcome.error,
                "log": str(log.relative_to(self.folder)) if log.is_file() else None,
                "seconds": round(float(before.get("seconds", 0.0)) + seconds, 3),
                "ended": _now(),
            },
        )
        self.write()

    def stop(self, planned: PlannedCell) -> None:
        """It was interrupted."""
        self._write_status(planned, {**self.status(planned), "state": STOPPED, "ended": _now()})

    def rows(self) -> list[dict[str, Any]]:
        """A row per cell: what it changes, how it went, its numbers."""
        rows = []
        for planned in self.planned:
            owner = planned if planned.same_as is None else self.planned[planned.same_as]
            state = self.state(owner)
            metrics = self._metrics_of(owner) if state == FINISHED else {}
            status = self.status(owner)
            rows.append(
                {
                    "number": planned.number,
                    "cell": planned.cell.label,
                    "group": planned.cell.group,
                    "changes": planned.cell.changes,
                    "state": state,
                    "same_as": planned.same_as,
                    "directory": self.directory(owner).name,
                    "error": status.get("error") if state == FAILED else None,
                    "log": status.get("log") if state == FAILED else None,
                    "num_videos": planned.num_videos,
                    "metrics": {k: v for k, v in metrics.items() if isinstance(v, Mapping) and "mean" in v},
                }
            )
        return rows

    def write(self) -> None:
        """status.json, ablation.json, ablation.csv and ablation.md."""
        from fsframework.run import ablation_table as table

        rows = self.rows()
        states = [row["state"] for row in rows]
        status = {
            "name": self.ablation.name,
            "cells": {state: states.count(state) for state in dict.fromkeys(states)},
            "updated": _now(),
            "by_cell": [
                {
                    "cell": row["cell"],
                    "state": row["state"],
                    "directory": row["directory"],
                    **_brief(self.status(planned)),
                }
                for row, planned in zip(rows, self.planned)
            ],
        }
        artifacts.write_text(self.folder / "status.json", artifacts.to_json(status, indent=2) + "\n")
        content: dict[str, Any] = {"name": self.ablation.name, "keys": self.ablation.keys, "cells": rows}
        if self.ablation.published:
            content["published"] = self.ablation.published
        artifacts.write_text(self.folder / "ablation.json", artifacts.to_json(content, indent=2) + "\n")
        artifacts.write_text(self.folder / "ablation.csv", table.csv_text(rows, self.ablation.keys))
        published = [Published.of(name, content) for name, content in self.ablation.published.items()]
        text = table.markdown(self.ablation.name, rows, self.ablation.keys, published)
        artifacts.write_text(self.folder / "ablation.md", text)

    def write_report(self, is_new: bool) -> Path | None:
        """The comparison page of all finished cells; None if there is none. Kept if nothing `is_new`."""
        from fsframework.run.report import write_report

        folders = dict.fromkeys(self.directory(p) for p in self.planned if p.same_as is None and self.is_finished(p))
        if not folders:
            return None
        out = self.folder / "report.html"
        if is_new or self.ablation.published or not out.is_file():  # published numbers may have been mended since
            write_report([*folders, self.folder], out, self.ablation.name)
        return out

    def _metrics_of(self, planned: PlannedCell) -> dict[str, Any]:
        directory = self.directory(planned)
        if directory not in self._metrics:
            self._metrics[directory] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        return self._metrics[directory]

    def _is_held(self, planned: PlannedCell) -> bool:
        try:
            with only_one(self.lock(planned)):
                return False
        except Busy:
            return True

    def lock(self, planned: PlannedCell) -> Path:
        """The file that the process at work on a cell holds."""
        return self.folder / "cells" / f"{planned.key}.lock"

    def _status_file(self, planned: PlannedCell) -> Path:
        return self.folder / "cells" / f"{planned.key}.json"

    def _log(self, planned: PlannedCell) -> Path:
        return self.folder / "logs" / f"{planned.key}.log"

    def _write_status(self, planned: PlannedCell, content: Mapping[str, Any]) -> None:
        text = artifacts.to_json({"cell": planned.cell.label, **content}, indent=2) + "\n"
        artifacts.write_text(self._status_file(planned), text)


def _brief(status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: status[name] for name in ("attempts", "seconds", "host", "error", "log") if status.get(name) is not None
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
