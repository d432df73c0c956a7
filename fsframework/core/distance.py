"""How far a fresh value is from a cached one, at the cost of reading both once. Nothing is read back to the host.

Every function takes two tensors of one shape [B, N, C] (batch, tokens, channels; any float dtype, also canonical
[B, F, N, C]) and returns a 0-d float32 tensor on their device, or [B] with `per_sample=True`. It carries no gradient.

All sums are float32 whatever the inputs: in half precision activations of 300 already overflow when squared. Inputs are
never cast as a whole. They are taken in pieces through a small buffer, or on an accelerator by one compiled kernel
(`core.fused`), so a distance needs no memory worth mentioning. The result is within 1e-5 (relative) of the one in float64.

`stride` compares every stride-th token only, which costs that much less. Tokens lie row by row, so a stride that shares a factor
with the number of tokens in a row sees some columns only: take an odd one. Relative error of the mean squared difference,
median / 95th percentile over all blocks and steps of one clip on the trained tiny models (rows of 4 to 8 tokens; larger
videos are smoother from token to token):

    stride                      2            3            4            5            7
    tiny-latte, spatial    0.04 / 0.11  0.03 / 0.08  0.06 / 0.19  0.04 / 0.12  0.08 / 0.19
    tiny-latte, temporal   0.01 / 0.03  0.01 / 0.03  0.01 / 0.04  0.01 / 0.05  0.02 / 0.08
    tiny-cogvideox         0.02 / 0.05  0.02 / 0.07  0.08 / 0.28  0.04 / 0.13  0.02 / 0.09
    tiny-opensora          0.02 / 0.09  0.02 / 0.07  0.18 / 0.33  0.11 / 0.20  0.04 / 0.12
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsframework.core.fused import FUSED, Sums

Distance = Callable[..., Tensor]

PIECE_ON_CPU = 1 << 17
"""Elements taken at a time on a CPU: the pieces stay within the caches, and the calls do not count (measured)."""
PIECE_ELSEWHERE = 1 << 22
"""Elements taken at a time on an accelerator where no kernel could be compiled: few launches, 16 MB."""


def mse(fresh: Tensor, cached: Tensor, stride: int = 1, per_sample: bool = False) -> Tensor:
    """Mean squared difference, the distance of Foresight (arXiv:2506.00329)."""
    fresh, cached = _prepare(fresh, cached, stride)
    (squares,) = _sums("squares", _squares, 1, fresh, cached, per_sample)
    return squares / (fresh[0].numel() if per_sample else fresh.numel())


def relative_l1(fresh: Tensor, cached: Tensor, stride: int = 1, per_sample: bool = False) -> Tensor:
    """mean|fresh - cached| / mean|cached|, the distance of TeaCache and First-Block-Cache. 0/0 is 0."""
    fresh, cached = _prepare(fresh, cached, stride)
    difference, size = _sums("absolutes", _absolutes, 2, fresh, cached, per_sample)
    return torch.where(difference == 0, torch.zeros_like(difference), difference / size)


def cosine(fresh: Tensor, cached: Tensor, stride: int = 1, per_sample: bool = False) -> Tensor:
    """1 - cosine similarity of the flattened values, in 0..2. Near 0 it is exact to 1e-6 only, absolute."""
    fresh, cached = _prepare(fresh, cached, stride)
    product, own, other = _sums("products", _products, 3, fresh, cached, per_sample)
    return 1 - product / (own.sqrt() * other.sqrt()).clamp_min(torch.finfo(torch.float32).tiny)


def _prepare(fresh: Tensor, cached: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    if fresh.shape != cached.shape:
        raise ValueError(
            f"a distance needs two tensors of one shape; fresh is {tuple(fresh.shape)}, cached {tuple(cached.shape)}"
        )
    fresh, cached = fresh.detach(), cached.detach()
    if stride > 1 and fresh.ndim > 1:
        every = (*[slice(None)] * max(fresh.ndim - 2, 1), slice(None, None, stride))  # the axis before the channels
        fresh, cached = fresh[every], cached[every]
    return fresh, cached


# Sums of a piece, [rows, n] and float32: over each row, or over everything. The first may be overwritten.

Piece = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, ...]]


def _squares(a: Tensor, b: Tensor, buffer: Tensor, rows: bool) -> tuple[Tensor, ...]:
    difference = _subtract(a, b, buffer)
    return (_dot(difference, difference, rows),)


def _absolutes(a: Tensor, b: Tensor, buffer: Tensor, rows: bool) -> tuple[Tensor, ...]:
    difference = _absolute(_subtract(a, b, buffer), rows)
    return difference, _absolute(buffer.copy_(b), rows)


def _products(a: Tensor, b: Tensor, buffer: Tensor, rows: bool) -> tuple[Tensor, ...]:
    x, y = buffer.copy_(a), b.float()
    return _dot(x, y, rows), _dot(x, x, rows), _dot(y, y, rows)


def _subtract(a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
    if a.dtype is torch.float32 and b.dtype is torch.float32:
        return torch.sub(a, b, out=buffer)
    return buffer.copy_(a).sub_(b)  # in float32: the difference of two half-precision numbers may not fit in theirs


def _dot(x: Tensor, y: Tensor, rows: bool) -> Tensor:
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1)) if rows else torch.dot(x.flatten(), y.flatten())


def _absolute(x: Tensor, rows: bool) -> Tensor:
    return x.abs_().flatten(1).sum(dim=1) if rows else x.abs_().sum()


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _sums(name: str, piece: Piece, number: int, fresh: Tensor, cached: Tensor, per_sample: bool) -> tuple[Tensor, ...]:
    """`number` sums over everything, 0-d, or over each sample, [B]."""
    on_cpu = _is_on_cpu(fresh)
    if not on_cpu:
        found: Sums | None = FUSED.sums(name, fresh, cached, per_sample)
        if found is not None:
            return found
    size = PIECE_ON_CPU if on_cpu else PIECE_ELSEWHERE
    if not per_sample:
        return _whole(piece, number, fresh, cached, size)
    if fresh[0].numel() > size:
        rows = [_whole(piece, number, a, b, size) for a, b in zip(fresh, cached)]
        return tuple(torch.stack(column) for column in zip(*rows))
    found_rows = _in_pieces(piece, fresh, cached, max(1, size // max(1, fresh[0].numel())), True)
    return tuple(torch.cat(column) for column in zip(*found_rows))


def _whole(piece: Piece, number: int, fresh: Tensor, cached: Tensor, size: int) -> tuple[Tensor, ...]:
    if fresh.numel() == 0:
        return (torch.full((), float("nan"), device=fresh.device),) * number
    if fresh.is_contiguous() and cached.is_contiguous():
        fresh, cached = fresh.view(-1), cached.view(-1)
    elif fresh[0].numel() > size:
        rows = [_whole(piece, number, a, b, size) for a, b in zip(fresh, cached)]
        return tuple(torch.stack(column).sum() for column in zip(*rows))
    found = _in_pieces(piece, fresh, cached, max(1, size // fresh[0].numel()), False)
    return tuple(torch.stack(column).sum() for column in zip(*found))


def _in_pieces(piece: Piece, fresh: Tensor, cached: Tensor, length: int, rows: bool) -> list[tuple[Tensor, ...]]:
    """`piece` of `length` rows of the first axis at a time."""
    buffer = torch.empty((min(length, len(fresh)), *fresh.shape[1:]), dtype=torch.float32, device=fresh.device)
    return [
        piece(a, b, buffer[: len(a)] if len(a) < len(buffer) else buffer, rows)
        for a, b in zip(fresh.split(length), cached.split(length))
    ]


DISTANCES: dict[str, Distance] = {"mse": mse, "relative_l1": relative_l1, "cosine": cosine}
"""Names that policies accept for their `distance` option."""
