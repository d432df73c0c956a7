"""The norm of a prompt's embedding: one number per video that tells prompts apart, cheap to work out on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

NEUTRAL = 1.0
"""The norm where a model takes no prompt."""


def prompt_norm(embeddings: Sequence[Any], device: torch.device) -> Tensor:
    """Root of the mean square of all numbers of a prompt's embedding, a 0-d float32 tensor on `device`, the model's.

    `embeddings` are the model's arguments that hold it: tensors of any shape, [B, L, C] as a rule, lists of them, or None.
    Padding and both guidance halves are in the mean, so the number compares prompts of one model and no models. Never waits
    for the device. `NEUTRAL` where there is no tensor.
    """
    tensors = list(_tensors(embeddings))
    if not tensors:
        return torch.full((), NEUTRAL, device=device)
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    whole = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return whole / sum(tensor.numel() for tensor in tensors) ** 0.5


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
