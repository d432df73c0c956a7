"""FLOPs of a model and its parts from shapes alone: one forward of a weightless twin on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core.bound import BoundModel
from fsframework.core.site import Part, Site

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


def site_flops(bound: BoundModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Site, float]:
    """FLOPs of one full visit of every block and sub-module site, and of the whole model under its MODEL site."""
    by_path = count_flops(bound.transformer, args, kwargs)
    out = {bound.model_site(): by_path[""]}
    for index, block in enumerate(bound.blocks):
        path = f"{block.facts.path}.{block.ordinal}"
        out[bound.block_site(index)] = by_path.get(path, 0.0)
        for site in bound.part_sites(index, frozenset(Part)):
            out[site] = by_path.get(f"{path}.{block.facts.submodule(site.part)}", 0.0)
    return out


def shapes(value: Any) -> Any:
    """The shapes in a nest of arguments, as something that prints the same iff they are the same."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [shapes(v) for v in value]
    if isinstance(value, Mapping):
        return {k: shapes(v) for k, v in value.items()}
    return value


class ShapeFlops:
    """FLOPs of a model's forwards, counted from shapes when first needed, once for each set of shapes."""

    def __init__(self, bound: BoundModel) -> None:
        self._bound = bound
        self._found: dict[str, dict[Site, float]] = {}

    def counter(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], warn: Callable[[str, str], None]
    ) -> Callable[[], dict[Site, float]]:
        """What gives the FLOPs of a call like this one, as `site_flops`; nothing, with a warning, where they can not be had.
        Of the arguments only the shapes are kept."""
        shapes_only = (to_meta(args), to_meta(kwargs))
        return lambda: self._count(*shapes_only, warn)

    def _count(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], warn: Callable[[str, str], None]
    ) -> dict[Site, float]:
        key = repr(shapes((args, kwargs)))
        if key not in self._found:
            try:
                self._found[key] = site_flops(self._bound, args, kwargs)
            except Exception as error:
                self._found[key] = {}
                name = type(self._bound.transformer).__name__
                warn(
                    "flops",
                    f"FLOPs of {name} could not be counted from shapes (counted_live = True may help): {error!r}",
                )
        return self._found[key]
