"""`ablate`: from an ablation's YAML to finished runs, one per cell, and a table and a report that compare them.

Every cell is an ordinary run directory, `<runs_dir>/<ablation>-<hash>`. What the ablation itself keeps, in
`<runs_dir>/_ablations/<ablation>`, says which cells there are and how each went; the table and the report are functions
of it and of the run directories.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.config.grid import Ablation, Executor, several_problems
from fsframework.config.schema import RunConfig
from fsframework.run import artifacts, launch
from fsframework.run.ablation_book import (
    ELSEWHERE,
    FAILED,
    FINISHED,
    Book,
    Outcome,
    PlannedCell,
    by_model,
)
from fsframework.run.ablation_time import Clock, duration, estimate
from fsframework.run.artifacts import Busy, only_one
from fsframework.run.job import directory_name, expected_pixels, load
from fsframework.run.resolve import make_plan

if TYPE_CHECKING:
    from fsframework.core import LoadedModel


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
                        stack.enter_context(only_one(book_folder / "cells" / f"{key}.lock"))
                with world.together():
                    model = self._load(config, world)
                return Outcome(FINISHED, run(config, model).name)
        except Busy:
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


def redirect_output(path: Path) -> None:
    """Send this process's output and errors to a file from here on, those of libraries in C too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target in (1, 2):
        os.dup2(handle, target)
    os.close(handle)
