"""What a call does, counted in torch's dispatcher and not taken from anybody's own counter: FLOPs, and host reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsframework.core.live_count import flop_counter

VALUES = frozenset({"aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal"})
"""Operations that give a number to the host."""
SHAPES = frozenset(
    {"aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim", "aten.unique_consecutive"}
)
"""Operations whose output has a shape that depends on values: the host waits to know how much memory it takes."""
METHODS = ("tolist", "numpy", "cpu")


class _Reads(TorchDispatchMode):
    """Notes operations on tensors of one type of device whose result the host has to wait for."""

    def __init__(self, found: list[str], device: str) -> None:
        super().__init__()
        self._found = found
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = str(func), kwargs or {}
        if _waits(name.rpartition(".")[0], args, given) and _device_of(name, args) == self._device:
            self._found.append(name)
        return func(*args, **given)


def _device_of(name: str, args: Sequence[Any]) -> str | None:
    """The type of device of the tensor that is read."""
    read = args[1] if name.startswith("aten.copy_") else next((a for a in args if isinstance(a, Tensor)), None)
    return read.device.type if isinstance(read, Tensor) else None


def _waits(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the host must wait for what the operation was given."""
    if operation in VALUES or operation in SHAPES:
        return True
    if operation == "aten.repeat_interleave":  # as often as a tensor says
        return kwargs.get("output_size") is None
    if operation == "aten.index":  # x[mask] finds the mask's places first
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if operation == "aten._to_copy":
        return not kwargs.get("non_blocking") and _goes_to_the_host(args[0], kwargs.get("device"))
    if operation == "aten.copy_":
        blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return blocks and _goes_to_the_host(args[1], args[0].device)
    return False


def _goes_to_the_host(source: Any, target: Any) -> bool:
    if not isinstance(source, Tensor) or target is None:
        return False
    return torch.device(target).type == "cpu" and source.device.type != "cpu"


@contextmanager
def host_reads(device: torch.device | str = "cpu") -> Iterator[list[str]]:
    """Every read by the host of values that lie on `device`, inside the block, by name: what a GPU's host would wait for.

    `item`, `bool` and `float` of a tensor reach the dispatcher, and so do operations whose output's shape depends on values
    (`nonzero`, `unique`, `x[mask]`). `tolist`, `numpy` and `cpu` of a tensor that lies on the CPU never do, so there they are
    counted at the methods: reads are found on a CPU that would make a GPU's host wait. Two things are not seen on a CPU, for
    they do nothing there: `x.to("cpu")`, and waiting for an event or a stream.
    """
    found: list[str] = []
    lies_on = torch.device(device).type
    originals = {name: getattr(Tensor, name) for name in METHODS}

    def counted(name: str) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if lies_on == "cpu" and self.device.type == "cpu":
                found.append(name)
            return originals[name](self, *args, **kwargs)

        return method

    for name in METHODS:
        setattr(Tensor, name, counted(name))
    try:
        with _Reads(found, lies_on):
            yield found
    finally:
        for name, original in originals.items():
            setattr(Tensor, name, original)


def flops_and_reads(call: Callable[[], object], device: torch.device | str = "cpu") -> tuple[float, int]:
    """(FLOPs of matrix products, convolutions and attention; host reads of values on `device`) of one call."""
    counter = flop_counter()
    with host_reads(device) as found, counter:
        call()
    return float(counter.get_total_flops()), len(found)
