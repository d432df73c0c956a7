"""Cells on Ray: any number of machines, cells with needs of their own (`resources`). `pip install fsframework[ray]`.

Every cell runs in an actor that reserves what the cell needs and keeps its model for the next cell with the same needs.
Where an actor's process or machine dies, Ray begins the cell again elsewhere, and it goes on after its last finished
video, so `runs_dir` must be on a file system that all machines share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsframework.config.grid import Executor, Resources
from fsframework.config.schema import RunConfig
from fsframework.run.ablation import CellRunner, redirect_output
from fsframework.run.ablation_book import FAILED, Book, Outcome, PlannedCell
from fsframework.run.ablation_time import Clock
from fsframework.run.launch import World

_OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray of our own: configs and outcomes pass through it, no tensors."""
_PATIENCE = {
    "worker_register_timeout_seconds": 600,
    "agent_register_timeout_ms": 600_000,
    "health_check_failure_threshold": 40,
}
"""For a Ray of our own on a busy machine, on which Ray's usual minute is over while its processes still import."""
_START_ATTEMPTS = 5
"""Ray gives its own processes about half a minute to come up, and its node dies if its agent has not by then; neither can be set.
The next attempt finds the files in memory."""


class _Actor:
    """Runs cells one after the other in a process of Ray's."""

    def __init__(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # not there on another machine; absolute paths need none
            os.chdir(folder)
        self._runner: CellRunner | None = None

    def run(self, config: RunConfig, folder: Path, key: str) -> Outcome:
        """One cell; its output goes to its log."""
        redirect_output(folder / "logs" / f"{key}.log")
        self._runner = self._runner or CellRunner()
        return self._runner.run(config, folder, key)


def run_on_ray(todo: Sequence[PlannedCell], book: Book, clock: Clock, executor: Executor, world: World) -> None:
    """Run cells wherever Ray has room for what they need.

    Raises:
        ValueError: ray is not installed, or a cell needs more than a Ray of our own has.
    """
    ray = _ray()
    begun_here = not ray.is_initialized()
    if begun_here:
        _init(ray, executor)
    try:
        _check_room(ray, todo, executor)
        _schedule(ray, todo, book, clock, executor)
    finally:
        if begun_here:
            ray.shutdown()


def _ray() -> Any:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing anywhere
        import ray
    except ImportError:
        raise ValueError(
            "executor ray needs ray: pip install 'fsframework[ray]'; or use --jobs N on this machine"
        ) from None
    return ray


def _init(ray: Any, executor: Executor) -> None:
    import logging

    address = executor.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_system_config": _PATIENCE}
        if executor.jobs > 1:
            options["num_cpus"] = executor.jobs * executor.num_cpus
    attempts = _START_ATTEMPTS if address is None else 1
    for attempt in range(1, attempts + 1):
        before = _children()
        try:
            ray.init(address=address, **options)
            return
        except Exception as error:  # Ray raises plain ones, such as after a minute on a machine too busy to start it
            with contextlib.suppress(Exception):
                ray.shutdown()
            for left in _children() - before:  # `shutdown` knows nothing of a Ray that came up halfway
                with contextlib.suppress(Exception):
                    left.kill()
            if attempt == attempts:
                what = "could not start ray here" if address is None else f"could not reach ray at {address}"
                raise ValueError(f"{what}: {_first_line(error)}") from error


def _children() -> set[Any]:
    """The processes that this one began, and theirs."""
    import psutil

    return set(psutil.Process().children(recursive=True))


def _check_room(ray: Any, todo: Sequence[PlannedCell], executor: Executor) -> None:
    """A cluster may grow; a Ray of our own does not, and would wait forever."""
    if executor.address or os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    for planned in todo:
        need = planned.cell.resources
        if need.num_gpus > there.get("GPU", 0) or need.num_cpus > there.get("CPU", 0):
            raise ValueError(
                f"cell {planned.cell.label!r} needs {need.num_cpus:g} CPUs and {need.num_gpus:g} GPUs; this machine has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )


def _schedule(ray: Any, todo: Sequence[PlannedCell], book: Book, clock: Clock, executor: Executor) -> None:
    left: dict[Resources, list[PlannedCell]] = {}
    for planned in todo:
        left.setdefault(planned.cell.resources, []).append(planned)
    running: dict[Any, tuple[Any, PlannedCell, float]] = {}

    def begin(actor: Any, planned: PlannedCell) -> None:
        book.begin(planned)
        clock.begin(planned)
        reference = actor.run.remote(planned.cell.config, book.folder, planned.key)
        running[reference] = (actor, planned, time.perf_counter())

    def new_actor(need: Resources) -> Any:
        retries = {"max_restarts": executor.retries, "max_task_retries": executor.retries}
        remote = ray.remote(_Actor).options(num_cpus=need.num_cpus, num_gpus=need.num_gpus, **retries)
        return remote.remote(os.getcwd())

    for need, cells in left.items():
        for _ in range(min(len(cells), _num_at_once(ray, need))):
            begin(new_actor(need), cells.pop(0))
    try:
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            actor, planned, begun = running.pop(ready)
            try:
                outcome: Outcome = ray.get(ready)
            except ray.exceptions.RayError as error:  # the process died, more often than `retries`
                outcome = Outcome(FAILED, error=f"{type(error).__name__}: {_first_line(error)}")
                actor = None
            book.end(planned, outcome, time.perf_counter() - begun)
            clock.end(planned, outcome)
            need, cells = planned.cell.resources, left[planned.cell.resources]
            if cells:
                if actor is None:
                    actor = new_actor(need)
                same = [other for other in cells if other.model == planned.model]
                chosen = (same or cells)[0]
                cells.remove(chosen)
                begin(actor, chosen)
            elif actor is not None:
                ray.kill(actor)  # others wait for what it holds
    except KeyboardInterrupt:
        for actor, planned, _ in running.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
            book.stop(planned)
        clock.stopped()
        raise


def _num_at_once(ray: Any, need: Resources) -> int:
    """How many cells with this need the cluster holds now, at least one. More would only wait."""
    there = ray.cluster_resources()
    fits = there.get("CPU", 0) // need.num_cpus
    if need.num_gpus:
        fits = min(fits, there.get("GPU", 0) // need.num_gpus)
    return max(1, int(fits))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
