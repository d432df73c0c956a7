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
    """Factors of a block with a `scale_shift_table` of six rows [6, C]; the argument `projection` holds 6 C features.

    It may be [B, 6 C], [B, 6, C], or with an axis for tokens after the batch. A table of more rows gives more factors.
    `float32`: the block works them out in that.
    """

    def factors(block: Any, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        rows: Tensor = block.scale_shift_table.flatten(0, -2)
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


def adaln_temb(name: str) -> Probe:
    """The embedding that the transformer's module `name` projects for all blocks: [B, D], [B, N, D] per token.

    The blocks get only the projection, so the embedding is made from the timestep once more. Sizes that some checkpoints
    add (`added_cond_kwargs`) are part of it.
    """

    def temb(transformer: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        embed: Any = transformer.get_submodule(name)
        sizes = arguments.get("added_cond_kwargs") or {"resolution": None, "aspect_ratio": None}
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        value: Tensor = embed.emb(timestep.flatten(), **sizes, batch_size=latent.shape[0], hidden_dtype=latent.dtype)
        return value if timestep.ndim < 2 else value.unflatten(0, timestep.shape)

    return temb


def condition_temb(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """What Wan's `condition_embedder` embeds the timestep to: [B, D], or [B, N, D] with a timestep per token.

    The blocks get its projection only, so it is made once more.
    """
    timestep: Tensor = arguments["timestep"]
    per_token = {"timestep_seq_len": timestep.shape[1]} if timestep.ndim == 2 else {}
    one_word = arguments["encoder_hidden_states"][:, :1]  # the embedder wants text, and gives temb in its dtype
    value: Tensor = transformer.condition_embedder(timestep.flatten(), one_word, **per_token)[0]
    return value


NO_GATES: Mapping[Part, Gate] = {
    part: lambda block, arguments: None for part in (Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP)
}
"""Of a block that adds what its sub-modules give as it is."""


# AdaLN-Zero: a linear layer in the block's norm.


def norm_factors(block: nn.Module, name: str, temb: Tensor, width: int) -> tuple[Tensor, ...]:
    """What the block's norm `name` makes of `temb` [B, D]: its linear layer's features in pieces of `width`, [B, 1, C].

    Raises:
        ValueError: the block has no such norm, as fused blocks have not: no factor belongs to their attention alone.
    """
    norm = norm_of(block, name)
    features: Tensor = norm.linear(norm.silu(temb))
    return features[:, None].split(width, dim=-1)


def norm_of(block: nn.Module, name: str) -> Any:
    """The block's norm `name`; see `norm_factors`."""
    norm = dict(block.named_children()).get(name)
    if norm is None:
        raise ValueError(
            f"{type(block).__name__} has no gate of its attention alone: it projects attention and MLP together before "
            f"the gate, so nothing can be cached after the gate there; use gate='pre'"
        )
    return norm


def context_gate(block: nn.Module, arguments: Mapping[str, Any], temb: str = "temb") -> Tensor | None:
    """Of the attention's text output, from `norm1_context`; None in a last block that drops the text."""
    pieces = norm_factors(block, "norm1_context", arguments[temb], arguments["encoder_hidden_states"].shape[-1])
    return pieces[2] if len(pieces) == 6 else None


def zero_norm_gates(temb: str = "temb") -> Mapping[Part, Gate]:
    """Gates of a block with AdaLN-Zero norms `norm1` and, for its text stream, `norm1_context`.

    The attention returns both streams. The last block's text, which it drops, has no gate.
    """

    def attention(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        video = norm_factors(block, "norm1", arguments[temb], arguments["hidden_states"].shape[-1])[2]
        if "norm1_context" not in dict(block.named_children()):
            return (video,)
        # An adapter for image prompts has a third output, which is added as it is.
        return (video, context_gate(block, arguments, temb), None)

    def mlp(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        return (norm_factors(block, "norm1", arguments[temb], arguments["hidden_states"].shape[-1])[5],)

    return {Part.ATTENTION: attention, Part.MLP: mlp}


def zero_norm_modulated(temb: str = "temb") -> Probe:
    """The video stream as `norm1` of an AdaLN-Zero block gives it to the attention."""

    def modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
        value: Tensor = block.norm1(arguments["hidden_states"], emb=arguments[temb])[0]
        return value

    return modulated


def text_and_video_gates(norm: str, temb: str, video: int, text: int) -> Gate:
    """Gates of an attention that returns both streams, from one norm of the block: pieces number `video` and `text`."""

    def attention(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        pieces = norm_factors(block, norm, arguments[temb], arguments["hidden_states"].shape[-1])
        return (pieces[video], pieces[text])

    return attention


def joined_gate(norm: str, temb: str, video: int, text: int) -> Gate:
    """The gate of an MLP over text and video tokens together, text first, [B, L + N, C]; see `text_and_video_gates`."""

    def mlp(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        tokens, words = arguments["hidden_states"].shape[1], arguments["encoder_hidden_states"].shape[1]
        pieces = norm_factors(block, norm, arguments[temb], arguments["hidden_states"].shape[-1])
        return (joined(pieces[text], pieces[video], words, tokens),)

    return mlp


def two_stream_modulated(temb: str = "temb") -> Probe:
    """The video stream as a `norm1` over both streams gives it to the attention."""

    def modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
        video, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        value: Tensor = block.norm1(video, text, arguments[temb])[0]
        return value

    return modulated


def joined(first: Tensor, then: Tensor, num_first: int, num_then: int) -> Tensor:
    """Two factors [B, 1, C] for so many tokens one after the other: [B, num_first + num_then, C]."""
    return torch.cat([first.expand(-1, num_first, -1), then.expand(-1, num_then, -1)], dim=1)
