"""Cells side by side in processes of this machine. Each keeps its model; one that dies is replaced."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fsframework.config.grid import Executor
from fsframework.config.schema import RunConfig
from fsframework.run.ablation import CellRunner, redirect_output
from fsframework.run.ablation_book import FAILED, Book, Outcome, PlannedCell
from fsframework.run.ablation_time import Clock
from fsframework.run.launch import World

_POLL_SECONDS = 0.5
_STOP_SECONDS = 10.0


@dataclass
class _Worker:
    """A process and the cell it is at."""

    process: Any
    pipe: connections.Connection
    number: int
    model: tuple[Any, ...] | None = None
    planned: PlannedCell | None = None
    begun: float = 0.0


def run_in_processes(todo: Sequence[PlannedCell], book: Book, clock: Clock, executor: Executor, world: World) -> None:
    """Run cells in `executor.jobs` processes; on CUDA, each on one device, in turn."""
    left = list(todo)
    deaths: dict[int, int] = {}
    num_devices = _num_devices(todo)
    workers = [_start(number, num_devices) for number in range(min(executor.jobs, len(left)))]
    try:
        for worker in workers:
            _give(worker, left, workers, book, clock)
        while any(worker.planned is not None for worker in workers):
            busy = [worker for worker in workers if worker.planned is not None]
            ready = connections.wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe not in ready:
                    continue
                planned = worker.planned
                assert planned is not None
                try:
                    outcome: Outcome = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    deaths[planned.number] = deaths.get(planned.number, 0) + 1
                    why = _cause(worker.process.exitcode)
                    fresh = _start(worker.number, num_devices)
                    workers[workers.index(worker)] = fresh
                    if deaths[planned.number] <= executor.retries:
                        clock.again(planned, why)
                        _give(fresh, [planned], workers, book, clock)
                        continue
                    outcome, begun, worker = Outcome(FAILED, error=why), worker.begun, fresh
                else:
                    begun = worker.begun
                worker.planned = None
                book.end(planned, outcome, time.perf_counter() - begun)
                clock.end(planned, outcome)
                _give(worker, left, workers, book, clock)
    except KeyboardInterrupt:
        for worker in workers:
            if worker.planned is not None:
                book.stop(worker.planned)
        clock.stopped()
        raise
    finally:
        _stop(workers)


def _num_devices(todo: Sequence[PlannedCell]) -> int:
    """CUDA devices to spread the processes over; 0 if the cells run on the CPU or on a device they name."""
    if not any(planned.cell.config.model.device in ("auto", "cuda") for planned in todo):
        return 0
    import torch

    return torch.cuda.device_count()


def _start(number: int, num_devices: int) -> _Worker:
    context = get_context("spawn")
    here, there = context.Pipe()
    device = None
    if num_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(i) for i in range(num_devices)]
        device = names[number % num_devices]
    process = context.Process(target=_work, args=(there, device, os.getpid()), daemon=True)
    process.start()
    there.close()  # so that its death closes the pipe
    return _Worker(process, here, number)


def _give(worker: _Worker, left: list[PlannedCell], workers: Sequence[_Worker], book: Book, clock: Clock) -> None:
    """Hand a worker its next cell: one of the model it holds, else of one that no other holds."""
    if not left:
        return
    held = {other.model for other in workers if other is not worker}
    same = [planned for planned in left if planned.model == worker.model]
    free = [planned for planned in left if planned.model not in held]
    planned = (same or free or left)[0]
    left.remove(planned)
    worker.planned, worker.model, worker.begun = planned, planned.model, time.perf_counter()
    book.begin(planned)
    clock.begin(planned)
    with contextlib.suppress(OSError):  # it died while it started: the wait finds its pipe closed
        worker.pipe.send((planned.cell.config, book.folder, planned.key))


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        hint = ", as the system does when memory runs out" if exitcode == -9 else ""
        return f"its process was killed by signal {-exitcode}{hint}"
    return f"its process ended with exit code {exitcode}"


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()  # an idle one ends at this
        if worker.planned is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_STOP_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()


def _work(pipe: connections.Connection, device: str | None, parent: int) -> None:
    """The process: cells until the pipe closes."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA is first used
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    runner: CellRunner | None = None
    while True:
        try:
            config, folder, key = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            runner = runner or CellRunner()
            outcome = _run_one(runner, config, folder, key)
        except KeyboardInterrupt:  # the parent knows
            return
        pipe.send(outcome)


def _run_one(runner: CellRunner, config: RunConfig, folder: Path, key: str) -> Outcome:
    redirect_output(folder / "logs" / f"{key}.log")
    return runner.run(config, folder, key)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: the next command would meet it at the same cell."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
