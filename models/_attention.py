"""Weights of attention to the text, which fused attention gives none of: worked out once more from queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

WAN_TEXT_TOKENS = 512
"""Of Wan's text, the last tokens of what the cross-attention gets; an image's come before them."""


def attention_map(attention: Any, arguments: Mapping[str, Any]) -> Tensor:
    """[B, N, L] for N tokens `hidden_states` and L of text `encoder_hidden_states`: the mean over heads, which are made one at
    a time.

    `attention` has `to_q` and `to_k`, and norms after them over all heads together or none: diffusers' `Attention` without a
    norm for each head, and Wan's. An `attention_mask`, [B, 1, L], is added to the scores.
    """
    query, key = attention.to_q(arguments["hidden_states"]), attention.to_k(arguments["encoder_hidden_states"])
    if attention.norm_q is not None:
        query, key = attention.norm_q(query), attention.norm_k(key)
    mask, heads = arguments.get("attention_mask"), attention.heads
    scale = (query.shape[-1] // heads) ** -0.5
    total: Tensor | None = None
    for q, k in zip(query.chunk(heads, dim=-1), key.chunk(heads, dim=-1)):
        scores = (q @ k.transpose(1, 2)).float() * scale
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        total = weights if total is None else total.add_(weights)
    assert total is not None
    return total / heads


def wan_attention_map(attention: Any, arguments: Mapping[str, Any]) -> Tensor:
    """See `attention_map`; of the text alone where the video is made from an image, which has keys of its own."""
    text: Tensor = arguments["encoder_hidden_states"]
    if attention.add_k_proj is not None:
        text = text[:, -WAN_TEXT_TOKENS:]
    return attention_map(attention, {**arguments, "encoder_hidden_states": text})
