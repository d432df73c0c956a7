"""FLOPs of a model and its parts from shapes alone: one forward of a weightless twin on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_DROPPED = object()
_HOOKS = ("forward", "cache_context", "_fsf_slot", "_hf_hook", "_diffusers_hook", "_old_forward", "_compiled_call_impl")


def meta_twin(module: nn.Module) -> nn.Module:
    """The module's structure on the meta device: no weight is copied, no hook or wrapper comes along."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name in _HOOKS:
            if (value := part.__dict__.get(name)) is not None:
                memo[id(value)] = _DROPPED
    for tensor in [*module.parameters(), *module.buffers()]:
        twin: Tensor = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        for name in _HOOKS:
            part.__dict__.pop(name, None)
    return copied


def to_meta(value: Any) -> Any:
    """Arguments with every tensor replaced by its shape."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(to_meta(v) for v in value)
    if isinstance(value, Mapping):
        return {k: to_meta(v) for k, v in value.items()}
    return value


def count_flops(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs by module path (`""` is the whole) for one forward with arguments on the meta device.

    A multiply-add counts as two operations. Only matrix products, convolutions and attention are counted, as
    `torch.utils.flop_counter` does; norms and activations are not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    twin = meta_twin(module)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(*args, **kwargs)
    root = type(twin).__name__
    out: dict[str, float] = {"": float(counter.get_total_flops())}
    for path, operations in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            out[path[len(root) + 1 :]] = float(sum(operations.values()))
    return out
