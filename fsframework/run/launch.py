"""The processes of a run, by Lightning Fabric: on one machine, under torchrun, or under SLURM's srun.

One process starts nothing and imports nothing. The processes exchange nothing but barriers and whether one of them failed,
on the CPU (gloo), so it does not matter which devices they compute on.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(days=7)
"""How long a process waits for the others. A process that died is noticed at once (its connection closes); a slow one
may be a whole video behind."""


@dataclass
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """The device of this process, where each has its own."""
    num_nodes: int = 1
    """Machines."""

    @property
    def is_first(self) -> bool:
        """Whether this process makes the directory, joins the results and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: rank, rank + size, rank + 2 size, ..."""
        return list(items[self.rank :: self.size])

    def barrier(self) -> None:
        """Wait for all. Without a last one the launcher would report success although a process died."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A barrier at the end of the block, at which an exception in one process becomes one in all of them.

        Raises:
            RuntimeError: the block failed in another process. A process that is killed, or interrupted, gives the
                others the error of the closed connection.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        text = None if error is None else f"{type(error).__name__}: {error}"
        texts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(texts, text)
        if error is not None:
            raise error
        failed = [f"process {rank} of {self.size}: {text}" for rank, text in enumerate(texts) if text is not None]
        if failed:
            raise RuntimeError("; ".join(failed))


@dataclass(frozen=True)
class Launcher:
    """Who started the processes, and how many."""

    name: str
    """`here` (nobody yet), `torchrun` or `srun`."""
    per_node: int
    num_nodes: int


def launcher(num_processes: int, environment: Mapping[str, str] = os.environ) -> Launcher:
    """What the environment says. A launcher that started the processes overrules `num_processes`.

    An sbatch script or an salloc shell sets SLURM's variables too, for one process that is not started by srun; only srun
    sets SLURM_STEP_NUM_TASKS.

    Raises:
        ValueError: srun without --ntasks-per-node.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in environment:
        per_node = int(environment["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", per_node, int(environment["WORLD_SIZE"]) // per_node)
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks > 1:
        given = environment.get("SLURM_NTASKS_PER_NODE", "")
        num_nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
        if not given.isdigit() or int(given) * num_nodes != num_tasks:
            raise ValueError(
                f"srun started {num_tasks} processes on {num_nodes} nodes; give it --nodes and --ntasks-per-node "
                f"(equally many on every node) instead of --ntasks"
            )
        return Launcher("srun", int(given), num_nodes)
    return Launcher("here", num_processes, 1)


def start(num_processes: int, device: torch.device) -> World:
    """The world of this process. With more than one process the command line is run again for each of the others.

    Processes that `torchrun` or `srun` started are recognised. A second call in one process gives the same world.

    Args:
        num_processes: processes on this machine, where no launcher started them.
        device: what the run computes on; on CUDA each process gets its own.

    Raises:
        ValueError: more processes than CUDA devices, or not as many as there are.
    """
    found = launcher(num_processes)
    size = found.per_node * found.num_nodes
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if size != torch.distributed.get_world_size():
            raise ValueError(
                f"launch.num_processes={num_processes}, but this command runs in {torch.distributed.get_world_size()} "
                f"processes already; they can not change on the way"
            )
        return _joined(device, found.num_nodes)
    if size == 1:
        return World()
    if found.name == "here" and device.type == "cuda" and num_processes > torch.cuda.device_count():
        available = torch.cuda.device_count()
        raise ValueError(
            f"launch.num_processes={num_processes}, but this machine has {available} CUDA devices; use {available} or fewer"
        )
    import warnings

    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy

    warnings.filterwarnings("ignore", module="lightning")
    # Named, not detected: Fabric takes a plain process in an sbatch script for one of several and waits for the others.
    environment = {"here": LightningEnvironment, "srun": SLURMEnvironment, "torchrun": TorchElasticEnvironment}[
        found.name
    ]
    strategy = DDPStrategy(process_group_backend="gloo", timeout=_TIMEOUT, cluster_environment=environment())
    fabric = Fabric(accelerator="cpu", devices=found.per_node, num_nodes=found.num_nodes, strategy=strategy)
    fabric.launch()
    return _joined(device, found.num_nodes)


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Which of the processes on this machine this one is."""
    return int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0)


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process talks to the user, also before it has joined the others."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return environment.get("SLURM_PROCID", "0") == "0"
    return environment.get("RANK", environment.get("LOCAL_RANK", "0")) == "0"


def _joined(device: torch.device, num_nodes: int) -> World:
    own = torch.device("cpu")
    if device.type == "cuda":
        # SLURM may show each process its own device only: then there is one, whatever the rank.
        own = torch.device("cuda", local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(own)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), own, num_nodes)
