"""Running a module on some tokens only, for `Partial`. `index` is int64, [k] for all samples alike or [B, k]."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fsframework.core.site import Site


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """[B, N, C] -> [B, k, C]."""
    if index.ndim == 1:
        return x.index_select(1, index)
    return x.gather(1, index[..., None].expand(*index.shape, x.shape[-1]))


def put_tokens(whole: Tensor, few: Tensor, index: Tensor) -> Tensor:
    """A copy of `whole` [B, N, C] with the tokens at `index` replaced by `few` [B, k, C]."""
    if index.ndim == 1:
        return whole.index_copy(1, index, few)
    return whole.scatter(1, index[..., None].expand(*index.shape, whole.shape[-1]), few)


def cut_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """A sub-module's arguments with only some tokens of its first [B, N, C] tensor, and that N."""
    listed, named = list(args), dict(kwargs)
    for i, value in enumerate(listed):
        if isinstance(value, Tensor) and value.ndim == 3:
            listed[i] = take_tokens(value, index)
            return value.shape[1], tuple(listed), named
    for name, value in named.items():
        if isinstance(value, Tensor) and value.ndim == 3:
            named[name] = take_tokens(value, index)
            return value.shape[1], tuple(listed), named
    raise ValueError("Partial needs a sub-module with a [B, N, C] input")


def cut_tables(kwargs: dict[str, Any], names: Iterable[str], index: Tensor, site: Site) -> None:
    """Cut, in place of the dictionary, the tables with one row per token (rotary embeddings)."""
    for name in names:
        if kwargs.get(name) is None:
            continue
        if index.ndim != 1:
            raise ValueError(
                f"{site} has a table per token ({name}): Partial needs the same tokens for the whole batch"
            )
        kwargs[name] = tuple(table.index_select(0, index) for table in kwargs[name])
