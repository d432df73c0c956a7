"""Sums over two tensors in one pass on an accelerator: compiled by `torch.compile`, which writes Triton for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Sums: TypeAlias = tuple[Tensor, ...]


def _squares(a: Tensor, b: Tensor) -> Sums:
    difference = a.float() - b.float()
    return (difference * difference,)


def _absolutes(a: Tensor, b: Tensor) -> Sums:
    a, b = a.float(), b.float()
    return (a - b).abs(), b.abs()


def _products(a: Tensor, b: Tensor) -> Sums:
    a, b = a.float(), b.float()
    return a * b, a * a, b * b


TERMS: dict[str, Callable[[Tensor, Tensor], Sums]] = {
    "squares": _squares,
    "absolutes": _absolutes,
    "products": _products,
}
"""What is summed, by name: a few terms for each pair of elements."""


def summed(name: str, a: Tensor, b: Tensor, per_sample: bool) -> Sums:
    """The sums of `TERMS[name]` over [B, N, C] inputs: [B] each, or 0-d.

    First over channels, then over the rest: enough rows to fill a GPU with, and shorter sums round less. Run as it is this
    would write every cast and term to memory; compiled, both are read once and nothing is written.
    """
    rows = [term.sum(dim=2).sum(dim=1) for term in TERMS[name](a, b)]
    return tuple([row if per_sample else row.sum() for row in rows])


class Fused:
    """Compiles `summed` when first asked, once per process; says so and gives None for good where that does not work.

    `backend` is torch.compile's. Shapes are dynamic: another resolution is no new compilation.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.works = True
        self._backend = backend
        self._compiled: Callable[..., Any] | None = None

    def sums(self, name: str, fresh: Tensor, cached: Tensor, per_sample: bool) -> Sums | None:
        """The sums of `TERMS[name]`; None where no kernel can be had, and then the caller must do without."""
        if not self.works:
            return None
        # One rank for all callers, or each would be compiled for.
        a, b = (x.reshape(len(x), -1, x.shape[-1] if x.ndim > 2 else 1) for x in (fresh, cached))
        try:
            if self._compiled is None:
                self._compiled = torch.compile(summed, dynamic=True, fullgraph=True, backend=self._backend)
            found: Sums = self._compiled(name, a, b, per_sample)
        except (
            Exception
        ) as error:  # no Triton, no compiler, a device that inductor does not know: all say it differently
            self.works = False
            warnings.warn(
                f"distances on {fresh.device} can not be compiled and are taken in pieces, some launches each: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:400]}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return found


FUSED = Fused()
"""What distances use. Whether a kernel can be compiled is a fact of the process."""
