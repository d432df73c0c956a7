"""Arguments with one row per sample: as one tensor, and some of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def stacked(latent: Any) -> Tensor:
    """A latent as one tensor; some families take a list with one for each sample."""
    return latent if isinstance(latent, Tensor) else torch.stack(list(latent))


def rows_of(value: Any, rows: slice, axis: int = 0) -> Any:
    """Some samples of an argument: of a tensor along `axis`, of a list its elements, of a dictionary each value's."""
    if isinstance(value, Tensor):
        return value if value.ndim <= axis else value[(*[slice(None)] * axis, rows)]
    if isinstance(value, (list, tuple)):
        return value[rows]
    if isinstance(value, Mapping):
        return {name: rows_of(entry, rows, axis) for name, entry in value.items()}
    return value
