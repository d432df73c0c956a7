"""Several processes on one machine, by Lightning Fabric. One process starts nothing and imports nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """The device of this process, where each has its own."""
    _fabric: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process makes the directory, joins the results and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: rank, rank + size, rank + 2 size, ..."""
        return list(items[self.rank :: self.size])

    def barrier(self) -> None:
        """Wait for all. Without a last one the launcher would report success although a process died."""
        if self._fabric is not None:
            self._fabric.barrier()


def start(num_processes: int, device: torch.device) -> World:
    """The world of this process. With more than one process the command line is run again for each of the others.

    A launcher that already started the processes (torchrun) is recognised by its WORLD_SIZE.
    """
    if num_processes == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    available = torch.cuda.device_count() if device.type == "cuda" else num_processes
    if num_processes > available:
        raise ValueError(
            f"launch.num_processes={num_processes}, but this machine has {available} CUDA devices; use {available} or fewer"
        )
    import warnings

    from lightning.fabric import Fabric

    warnings.filterwarnings("ignore", module="lightning")
    count = max(num_processes, int(os.environ.get("WORLD_SIZE", "1")))
    fabric = Fabric(accelerator="cuda" if device.type == "cuda" else "cpu", devices=count, strategy="ddp")
    fabric.launch()
    return World(fabric.global_rank, fabric.world_size, fabric.device, fabric)
