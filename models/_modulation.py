"""Gates and probes in the forms that many families share: what blocks do with the timestep around their sub-modules.

A block adds gate * f(norm(x) * (1 + scale) + shift) for its attention and then for its MLP. Where the six factors come
from is what differs: a table in the block added to a projection all blocks share (AdaLN-single, arXiv:2310.00426), or a
linear layer of the block's own norm applied to the time embedding (AdaLN-Zero, arXiv:2212.09748).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import Part
from fsframework.core.adapter import Gate, Probe

Factors = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, ...]]
"""(block, its arguments by name) -> shift, scale, gate of the attention, then of the MLP; each broadcasts to [B, N, C]."""


def argument(name: str) -> Probe:
    """The block's argument `name` itself."""
    return lambda block, arguments: arguments[name]


# AdaLN-single: scale_shift_table + projection.


def table(projection: str, float32: bool = False) -> Factors:
    """Factors of a block with a `scale_shift_table` of six rows; the argument `projection` holds six times C features.

    It may be [B, 6 C], [B, 6, C], or with an axis for tokens after the batch. `float32`: the block works them out in that.
    """

    def factors(block: Any, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        rows: Tensor = block.scale_shift_table.reshape(6, -1)
        given: Tensor = arguments[projection]
        given = given.reshape(given.shape[0], -1, *rows.shape)
        return (rows + (given.float() if float32 else given)).unbind(2)

    return factors


def gates_of(factors: Factors) -> Mapping[Part, Gate]:
    """Gates of a block with one stream: of attention and MLP from `factors`, none for cross-attention."""
    return {
        Part.ATTENTION: lambda block, arguments: (factors(block, arguments)[2],),
        Part.CROSS_ATTENTION: lambda block, arguments: (None,),
        Part.MLP: lambda block, arguments: (factors(block, arguments)[5],),
    }


def modulated_by(factors: Factors, stream: str = "hidden_states", float32: bool = False) -> Probe:
    """norm1(x) * (1 + scale) + shift, in the dtype of `stream`. `float32`: the block works it out in that."""

    def modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
        shift, scale = factors(block, arguments)[:2]
        x: Tensor = arguments[stream]
        return (block.norm1(x.float() if float32 else x) * (1 + scale) + shift).to(x.dtype)

    return modulated


def adaln_single_temb(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The embedding [B, D] that `transformer.adaln_single` projects for all blocks.

    The blocks get only the projection, so the embedding is made from the timestep once more. Sizes that some checkpoints
    add (`added_cond_kwargs`) are part of it.
    """
    sizes = arguments.get("added_cond_kwargs") or {"resolution": None, "aspect_ratio": None}
    latent: Tensor = arguments["hidden_states"]
    value: Tensor = transformer.adaln_single.emb(
        arguments["timestep"], **sizes, batch_size=latent.shape[0], hidden_dtype=latent.dtype
    )
    return value


# AdaLN-Zero: a linear layer in the block's norm.


def norm_factors(block: nn.Module, name: str, temb: Tensor, width: int) -> tuple[Tensor, ...]:
    """What the block's norm `name` makes of `temb` [B, D]: its linear layer's features in pieces of `width`, [B, 1, C].

    Raises:
        ValueError: the block has no such norm, as fused blocks have not: no factor belongs to their attention alone.
    """
    norm: Any = dict(block.named_children()).get(name)
    if norm is None or not isinstance(getattr(norm, "linear", None), nn.Module):
        raise ValueError(
            f"{type(block).__name__} has no gate between its sub-module's output and the sum (it projects attention and "
            f"MLP together), so nothing can be cached after the gate there; use gate='pre'"
        )
    features: Tensor = norm.linear(norm.silu(temb))
    return features[:, None].split(width, dim=-1)


def zero_norm_gates(temb: str = "temb", text: str = "encoder_hidden_states") -> Mapping[Part, Gate]:
    """Gates of a block with AdaLN-Zero norms `norm1` and, for its text stream, `norm1_context`.

    The attention returns both streams. The last block's text, which it drops, has no gate.
    """

    def attention(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        width = arguments["hidden_states"].shape[-1]
        video = norm_factors(block, "norm1", arguments[temb], width)[2]
        if "norm1_context" not in dict(block.named_children()):
            return (video,)
        pieces = norm_factors(block, "norm1_context", arguments[temb], arguments[text].shape[-1])
        # An adapter for image prompts has a third output, which is added as it is.
        return (video, pieces[2] if len(pieces) == 6 else None, None)

    def mlp(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        return (norm_factors(block, "norm1", arguments[temb], arguments["hidden_states"].shape[-1])[5],)

    return {Part.ATTENTION: attention, Part.MLP: mlp}


def zero_norm_modulated(temb: str = "temb") -> Probe:
    """The video stream as `norm1` of an AdaLN-Zero block gives it to the attention."""

    def modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
        value: Tensor = block.norm1(arguments["hidden_states"], emb=arguments[temb])[0]
        return value

    return modulated


def joined(text: Tensor, video: Tensor, text_tokens: int, video_tokens: int) -> Tensor:
    """The factors [B, 1, C] of two streams for their tokens one after the other, text first: [B, L + N, C]."""
    return torch.cat([text.expand(-1, text_tokens, -1), video.expand(-1, video_tokens, -1)], dim=1)
