"""What a call does, counted in torch's dispatcher and not taken from anybody's own counter: FLOPs, and host reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsframework.core.live_count import flop_counter

READS = ("_local_scalar_dense", "is_nonzero", "aten.equal", "aten.item")
METHODS = ("tolist", "numpy", "cpu")


class _Reads(TorchDispatchMode):
    """Notes operations whose result the host has to wait for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(read in name for read in READS) or _leaves_the_device(name, args, kwargs or {}):
            self._found.append(name)
        return func(*args, **(kwargs or {}))


def _leaves_the_device(name: str, args: Any, kwargs: Any) -> bool:
    """A copy to the host that blocks."""
    if not name.startswith("aten._to_copy") or kwargs.get("non_blocking"):
        return False
    target = kwargs.get("device")
    source = args[0].device if args and isinstance(args[0], Tensor) else None
    return target is not None and source is not None and torch.device(target).type == "cpu" and source.type != "cpu"


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Every read of a tensor's values by Python inside the block, by name.

    `item`, `bool` and `float` of a tensor reach the dispatcher; `tolist`, `numpy` and `cpu` of a tensor that lies on the CPU
    never do, so those are counted at the methods. So reads are found on a CPU that would make a GPU's host wait.
    """
    found: list[str] = []
    originals = {name: getattr(Tensor, name) for name in METHODS}

    def counted(name: str) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(name)
            return originals[name](self, *args, **kwargs)

        return method

    for name in METHODS:
        setattr(Tensor, name, counted(name))
    try:
        with _Reads(found):
            yield found
    finally:
        for name, original in originals.items():
            setattr(Tensor, name, original)


def flops_and_reads(call: Callable[[], object]) -> tuple[float, int]:
    """(FLOPs of matrix products, convolutions and attention; host reads) of one call."""
    counter = flop_counter()
    with host_reads() as found, counter:
        call()
    return float(counter.get_total_flops()), len(found)
