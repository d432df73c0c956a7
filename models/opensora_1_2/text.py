"""Prompts to text states: preparation, tokens, encoder, and as many tokens as the longest prompt has."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from fsframework.models.opensora_1_2 import caption


def prepare(prompts: list[str], clean: bool, **scores: Any) -> list[str]:
    """Prompts with their scores (see `caption.add_scores`), cleaned; plain lower case where cleaning's packages are absent."""
    prompts = [caption.add_scores(prompt, **scores) for prompt in prompts]
    if clean and (lacking := caption.cleaning_lacks()):
        warnings.warn(
            f"prompts are not cleaned as in training, because {' and '.join(lacking)} can not be imported. Install with "
            f"pip install 'fsframework[opensora]', or say clean_caption=False.",
            stacklevel=4,
        )
        clean = False
    return [caption.clean(prompt) if clean else caption.plain(prompt) for prompt in prompts]


@torch.no_grad()
def encode(tokenizer: Any, text_encoder: Any, prompts: list[str], length: int, device: Any) -> tuple[Tensor, Tensor]:
    """The encoder's last states [B, L, C] and which of them are text, int64 [B, L], for L = `length`."""
    tokens = tokenizer(
        prompts, max_length=length, padding="max_length", truncation=True, return_attention_mask=True,
        add_special_tokens=True, return_tensors="pt",
    )  # fmt: skip
    mask = tokens.attention_mask
    mask[:, 0] = 1  # a prompt of nothing at all is one token, not none: attention to no token is undefined
    states = text_encoder(tokens.input_ids.to(device), attention_mask=mask.to(device))[0]
    return states, mask


def trim(states: Tensor, mask: Tensor | None, longest_allowed: int) -> tuple[Tensor, Tensor | None]:
    """Cut [B, L, C] to the longest prompt's tokens; the mask is None where nothing is left to mask.

    Text comes first and is followed by padding. Reads the mask on the host, once per video.

    Raises:
        ValueError: the mask is not [B, L] of ones followed by zeros, or what is left is longer than `longest_allowed`.
    """
    if mask is not None:
        counts = _num_tokens(mask, states)
        longest = max(counts)
        states, mask = states[:, :longest], None if min(counts) == longest else mask[:, :longest]
    if states.shape[1] > longest_allowed:
        raise ValueError(
            f"a prompt has {states.shape[1]} tokens, but this transformer's captions have at most {longest_allowed}; lower "
            f"max_sequence_length"
        )
    return states, mask


def _num_tokens(mask: Tensor, states: Tensor) -> list[int]:
    """How many tokens of each prompt are text, at least 1; arguments and errors as of `trim`."""
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"prompt_attention_mask has shape {tuple(mask.shape)}, but prompt_embeds have {tuple(states.shape)}; give a row "
            f"for each prompt and a number for each token, {tuple(states.shape[:2])}"
        )
    mask = mask.cpu()
    counts = (mask == 1).sum(dim=1)
    differs = mask != (torch.arange(mask.shape[1]) < counts[:, None])
    wrong = differs.any(dim=1) | (counts == 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        token = int(differs[row].long().argmax())
        raise ValueError(
            f"row {row} of prompt_attention_mask must be ones for text, at least one, followed by zeros for padding; it has "
            f"{int(counts[row])} ones, and {mask[row, token].item()} at token {token}. Put the padding behind the text."
        )
    numbers: list[int] = counts.tolist()
    return numbers


def for_each_video(rows: Tensor, num_videos: int) -> Tensor:
    """Each row `num_videos` times in a row."""
    return rows if num_videos == 1 else repeat(rows, "B ... -> (B n) ...", n=num_videos)
