"""How long an ablation will take: estimated beforehand, and told on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsframework.run.ablation_book import Book, Outcome, PlannedCell, by_model

ASSUMED_SECONDS_PER_STEP = 1.0
"""Of full compute, where nothing was measured yet and the user says nothing."""


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
