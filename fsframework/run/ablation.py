"""`ablate`: from an ablation's YAML to finished runs, one per cell, and a table and a report that compare them.

Every cell is an ordinary run directory, `<runs_dir>/<ablation>-<hash>`. What the ablation itself keeps, in
`<runs_dir>/_ablations/<ablation>`, says which cells there are and how each went; the table and the report are functions
of it and of the run directories.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.config.grid import Ablation, Cell, Executor, several_problems
from fsframework.config.schema import RunConfig
from fsframework.run import artifacts, launch
from fsframework.run.artifacts import RunDirectory
from fsframework.run.job import directory_name, expected_pixels, load
from fsframework.run.resolve import make_plan

if TYPE_CHECKING:
    from fsframework.core import LoadedModel

FOLDER = "_ablations"
"""Below `runs_dir`."""
ASSUMED_SECONDS_PER_STEP = 1.0
"""Of full compute, where nothing was measured yet and the user says nothing."""
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


@dataclass(frozen=True)
class Result:
    """What `ablate` left on disk."""

    folder: Path
    cells: list[dict[str, Any]]
    """The rows of ablation.json."""
    numbers: frozenset[int]
    """Of the cells that this call was to see to: all, or those of its part."""
    report: Path | None
    is_first: bool
    """Whether this process talks to the user."""

    @property
    def is_complete(self) -> bool:
        """Whether every cell that this call was to see to is finished."""
        return all(row["state"] == FINISHED for row in self.cells if row["number"] in self.numbers)

    def text(self) -> str:
        """What to print: a row per finished cell, what failed and why, and where everything is."""
        from fsframework.run.results import table

        metrics = [(row["cell"], json.loads((self.folder.parents[1] / row["directory"] / "metrics.json").read_text()))
                   for row in self.cells if row["state"] == FINISHED and row["same_as"] is None]  # fmt: skip
        lines = [table(metrics), ""] if metrics else []
        states = [row["state"] for row in self.cells]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines.append(f"{len(self.cells)} cells: {counts}")
        for row in self.cells:
            if row["state"] == FAILED:
                log = f" ({self.folder / row['log']})" if row["log"] else ""
                lines.append(f"  {row['cell']}: {row['error'].splitlines()[0]}{log}")
        if FAILED in states:
            lines.append("the same command tries the failed ones again")
        lines.append(f"table:  {self.folder / 'ablation.md'}, .csv, .json")
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return "\n".join(lines)


def ablate(ablation: Ablation, executor: Executor | None = None, part: tuple[int, int] = (0, 1)) -> Result:
    """Run the cells that are not finished, those that failed again included; then table and report.

    Args:
        ablation: see `fsframework.config.grid.load_ablation`.
        executor: where to run, instead of what the file says.
        part: (i, n): only the cells i, i + n, i + 2n, ...; n jobs of a cluster share an ablation so.

    Raises:
        ValueError: something the user can mend about any cell, before anything runs.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    executor = executor or ablation.executor
    planned = plan_cells(ablation)
    book = Book(ablation, planned)
    num_processes = ablation.cells[0].config.launch.num_processes
    processes = launch.launcher(num_processes)
    if processes.per_node * processes.num_nodes > 1 and (executor.name != "local" or executor.jobs > 1):
        raise ValueError(
            f"{processes.per_node * processes.num_nodes} processes per cell and cells side by side can not be combined: use "
            f"launch.num_processes or torchrun (processes share the videos of a cell), or jobs or ray (they share the cells)"
        )
    artifacts.check_writable(book.folder)
    device = make_plan(ablation.cells[0].config).device
    world = launch.start(num_processes, device)
    own = [p for p in by_model(planned) if p.same_as is None][part[0] :: part[1]]
    todo = [p for p in own if not book.is_finished(p)]
    with world.together():  # all have looked before any of them writes
        if world.is_first:
            book.open()
    clock = Clock(book, todo, executor.jobs, quiet=not world.is_first)
    try:
        if todo:
            _runner_of(executor)(todo, book, clock, executor, world)
    finally:
        if world.is_first:
            book.write()
    report = None
    if world.is_first:
        report = book.write_report(is_new=bool(todo))
    world.barrier()
    return Result(book.folder, book.rows(), frozenset(p.number for p in own), report, world.is_first)


def _runner_of(executor: Executor) -> Any:
    if executor.name == "ray":
        from fsframework.run.ablation_ray import run_on_ray

        return run_on_ray
    if executor.jobs > 1:
        from fsframework.run.ablation_jobs import run_in_processes

        return run_in_processes
    return run_here


def plan_cells(ablation: Ablation) -> list[PlannedCell]:
    """Look every name of every cell up, without loading a model.

    Raises:
        ValueError: all cells that are wrong, by name.
    """
    planned: list[PlannedCell] = []
    problems: list[tuple[str, str]] = []
    seen: dict[Path, int] = {}
    for number, cell in enumerate(ablation.cells):
        try:
            plan = make_plan(cell.config)
            pixels = expected_pixels(plan)
            expected = Path(cell.config.output.runs_dir) / directory_name(plan, pixels)
        except ValueError as error:
            problems.append((cell.label, str(error)))
            continue
        clips = [(clip.prompt, clip.seed) for clip in plan.clips]
        reference = artifacts.digest([pixels, clips])
        same_as = seen.setdefault(expected, number)
        planned.append(
            PlannedCell(
                number,
                cell,
                expected,
                len(clips),
                int(pixels["sampling"]["num_steps"]),
                reference,
                None if same_as == number else same_as,
            )
        )
    if problems:
        raise ValueError(several_problems(ablation.name, problems, len(ablation.cells)))
    return planned


def by_model(planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """In such an order that every model is loaded once."""
    models = list(dict.fromkeys(p.model for p in planned))
    return sorted(planned, key=lambda p: models.index(p.model))


# One cell.


class CellRunner:
    """Runs cells one after the other in this process; a model stays loaded while cells share it."""

    def __init__(self) -> None:
        import torch

        self._model: tuple[tuple[Any, ...], LoadedModel] | None = None
        self._num_threads = torch.get_num_threads()

    def run(self, config: RunConfig, book_folder: Path, key: str) -> Outcome:
        """Run one cell. An exception is its outcome, with the traceback in `<book folder>/logs/<key>.log`.

        Raises:
            KeyboardInterrupt: stopped.
        """
        import torch

        from fsframework.run.runner import run

        torch.set_num_threads(self._num_threads)  # a cell before may have set its own
        try:
            world = launch.start(config.launch.num_processes, make_plan(config).device)
            with contextlib.ExitStack() as stack:
                with world.together():
                    if world.is_first:
                        stack.enter_context(_only_one(book_folder / "cells" / f"{key}.lock"))
                with world.together():
                    model = self._load(config, world)
                return Outcome(FINISHED, run(config, model).name)
        except _Busy:
            return Outcome(ELSEWHERE, error="another process is running it")
        except Exception as error:
            if not isinstance(error, ValueError):  # what the failure left behind may not be sound
                self._model = None
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            if launch.is_first_process():
                log = book_folder / "logs" / f"{key}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as file:
                    file.write("".join(traceback.format_exception(error)))
            return Outcome(FAILED, error=f"{type(error).__name__}: {error}")

    def _load(self, config: RunConfig, world: launch.World) -> LoadedModel:
        key = dataclasses.astuple(config.model)
        if self._model is None or self._model[0] != key:
            self._model = None  # before the next comes: both may not fit
            plan = make_plan(config)
            if world.device is not None:
                plan = dataclasses.replace(plan, device=world.device)
            self._model = (key, load(plan))
        return self._model[1]


class _Busy(RuntimeError):
    """Another process holds the cell."""


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Inside, no other process on this file system is inside with the same path. The system lets go when a process dies.

    Raises:
        _Busy: one is.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two commands apart
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Busy(str(path)) from None
        except OSError:  # a file system without locks
            pass
        yield


def run_here(todo: Sequence[PlannedCell], book: Book, clock: Clock, executor: Executor, world: launch.World) -> None:
    """Run cells one after the other in this process, or in lockstep in all processes of the world."""
    runner = CellRunner()
    for planned in todo:
        if world.is_first:
            book.begin(planned)
            clock.begin(planned)
        begun = time.perf_counter()
        try:
            outcome = runner.run(planned.cell.config, book.folder, planned.key)
        except KeyboardInterrupt:
            if world.is_first:
                book.stop(planned)
                clock.stopped()
            raise
        if world.is_first:
            book.end(planned, outcome, time.perf_counter() - begun)
            clock.end(planned, outcome)


# What is known of the cells.


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
        content = {"name": self.ablation.name, "keys": self.ablation.keys, "cells": rows}
        artifacts.write_text(self.folder / "ablation.json", artifacts.to_json(content, indent=2) + "\n")
        artifacts.write_text(self.folder / "ablation.csv", table.csv_text(rows, self.ablation.keys))
        artifacts.write_text(self.folder / "ablation.md", table.markdown(self.ablation.name, rows, self.ablation.keys))

    def write_report(self, is_new: bool) -> Path | None:
        """The comparison page of all finished cells; None if there is none. Kept if nothing `is_new`."""
        from fsframework.run.report import write_report

        folders = dict.fromkeys(self.directory(p) for p in self.planned if p.same_as is None and self.is_finished(p))
        if not folders:
            return None
        out = self.folder / "report.html"
        if is_new or not out.is_file():
            write_report(list(folders), out, self.ablation.name)
        return out

    def _metrics_of(self, planned: PlannedCell) -> dict[str, Any]:
        directory = self.directory(planned)
        if directory not in self._metrics:
            self._metrics[directory] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        return self._metrics[directory]

    def _is_held(self, planned: PlannedCell) -> bool:
        try:
            with _only_one(self.lock(planned)):
                return False
        except _Busy:
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


# Time.


@dataclass(frozen=True)
class Estimate:
    """Seconds of every cell that is not finished, and where they come from."""

    seconds: dict[int, float]
    """By the cell's number."""
    how: str

    @property
    def total(self) -> float:
        """All of them, one after the other."""
        return sum(self.seconds.values())


def estimate(book: Book, seconds_per_step: float | None = None) -> Estimate:
    """What the cells will take: videos x steps x seconds of a step, for the method and for the full compute beside it.

    A method is counted as full compute, which it should not exceed. Seconds of a step are those given, or the median of
    full compute in finished runs of the same model, size and kind of device below `runs_dir`, or assumed.
    """
    measured = {} if seconds_per_step is not None else _measured(book.runs_dir)
    seconds: dict[int, float] = {}
    sources: dict[str, None] = {}
    with_reference: set[str] = set()
    for planned in by_model(book.planned):
        config = planned.cell.config
        if planned.same_as is not None:
            continue
        finished = book.is_finished(planned)
        known = measured.get(_size_key(config.model.name, planned))
        if seconds_per_step is not None:
            step, source = seconds_per_step, f"{seconds_per_step:g} s of full compute per step, as you said"
        elif known:
            step = statistics.median(known)
            source = f"{step:.3g} s of full compute per step of {config.model.name}, measured in {len(known)} runs"
        else:
            step = ASSUMED_SECONDS_PER_STEP
            source = f"{step:g} s of full compute per step of {config.model.name}, assumed: no finished run to go by"
        video = step * planned.num_steps
        if not finished:
            sources[source] = None
            asked = config.reference.timing_videos
            # As the runner does it: see runner.SLOW_REFERENCE_SECONDS.
            timed = asked if asked is not None else (planned.num_videos if video <= 60 else 3)
            if planned.reference not in with_reference:
                timed = planned.num_videos
            seconds[planned.number] = video * (planned.num_videos + min(timed, planned.num_videos))
        with_reference.add(planned.reference)
    how = "videos x steps x seconds per step, once under the method, counted as full compute, and once for each full-"
    return Estimate(
        seconds, how + "compute video beside it; loading, metrics and files not counted; " + "; ".join(sources)
    )


def _size_key(model: str, planned: PlannedCell) -> tuple[Any, ...]:
    sampling = dataclasses.asdict(planned.cell.config.sampling)
    return (model, *(sampling[name] for name in ("height", "width", "num_frames")))


def _measured(runs_dir: Path) -> dict[tuple[Any, ...], list[float]]:
    """Seconds per step of full compute in the finished runs below a folder, by model and size as configs state them."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for file in sorted(runs_dir.glob("*/metrics.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            metrics = json.loads(file.read_text(encoding="utf-8"))
            mean = metrics["reference_wall_seconds"]["mean"]
            sampling = metrics["sampling"]
            if mean is None:
                continue
            step = float(mean) / int(sampling["num_steps"])
            size = [sampling[name] for name in ("height", "width", "num_frames")]
            for key in ((metrics["model"], *size), (metrics["model"], None, None, None)):
                found.setdefault(key, []).append(step)
    return found


def rehearsal(ablation: Ablation, executor: Executor, seconds_per_step: float | None = None) -> str:
    """The cells, which of them are finished, and what the rest is estimated to take; nothing is run or written.

    Raises:
        ValueError: as `ablate`.
    """
    planned = plan_cells(ablation)
    book = Book(ablation, planned)
    costs = estimate(book, seconds_per_step)
    rows = [("", "cell", "videos", "steps", "state", "estimate", "directory")]
    for p in planned:
        if p.same_as is not None:
            state, cost = f"same as {p.same_as + 1}", ""
        else:
            state = book.state(p)
            cost = duration(costs.seconds[p.number]) if p.number in costs.seconds else ""
        videos, steps = str(p.num_videos), str(p.num_steps)
        rows.append((str(p.number + 1), p.cell.label, videos, steps, state, cost, book.directory(p).name))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += ["", f"{len(planned)} cells, {len(costs.seconds)} to do -> {book.folder}"]
    if costs.seconds:
        jobs = executor.jobs if executor.name == "local" else 1
        spread = f", {duration(costs.total / jobs)} in {jobs} processes that do not slow each other" if jobs > 1 else ""
        lines.append(f"estimate: {duration(costs.total)} of computing{spread}")
        lines.append(f"how: {costs.how}")
    return "\n".join(lines)


class Clock:
    """Says which cell is at work, how each went, and how long the rest will take."""

    def __init__(self, book: Book, todo: Sequence[PlannedCell], jobs: int, quiet: bool) -> None:
        self._book = book
        self._quiet = quiet
        self._left = [p.number for p in todo]
        self._weights = {p.number: float(p.num_videos * p.num_steps) for p in todo}
        self._done_weight = 0.0
        self._begun = time.perf_counter()
        total = len([p for p in book.planned if p.same_as is None])
        self._total, self._number = total, total - len(todo)
        duplicates = len(book.planned) - total
        if not quiet:
            more = f", {duplicates} the same as another" if duplicates else ""
            self._say(f"{book.ablation.name}: {len(book.planned)} cells{more}, {len(todo)} to do -> {book.folder}")

    def begin(self, planned: PlannedCell) -> None:
        """A cell begins."""
        self._say(f"cell {planned.number + 1} of {len(self._book.planned)}: {planned.cell.label}")

    def end(self, planned: PlannedCell, outcome: Outcome) -> None:
        """A cell ended; with the time that the rest will take at this pace."""
        self._left.remove(planned.number)
        self._number += 1
        self._done_weight += self._weights[planned.number]
        elapsed = time.perf_counter() - self._begun
        rest = sum(self._weights[number] for number in self._left)
        left = f", about {duration(elapsed / self._done_weight * rest)} left" if rest else ""
        text = outcome.state if outcome.error is None else f"{outcome.state}: {outcome.error.splitlines()[0]}"
        self._say(f"{self._number} of {self._total} cells, {planned.cell.label}: {text}{left}")

    def stopped(self) -> None:
        """Interrupted."""
        self._say(f"{self._number} of {self._total} cells done; the same command goes on from there")

    def again(self, planned: PlannedCell, why: str) -> None:
        """A cell's process died and the cell is begun again."""
        self._say(f"{planned.cell.label}: {why}; going on with it")

    def _say(self, text: str) -> None:
        if not self._quiet:
            width = shutil.get_terminal_size((200, 20)).columns if sys.stderr.isatty() else 10_000
            print(text[: max(width, 40)], file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def redirect_output(path: Path) -> None:
    """Send this process's output and errors to a file from here on, those of libraries in C too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target in (1, 2):
        os.dup2(handle, target)
    os.close(handle)
