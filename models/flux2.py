"""Flux 2 (black-forest-labs/flux2): a few joint blocks, then many single-stream blocks on the joined tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part


def _piece(arguments: Mapping[str, Any], stream: str, number: int) -> Tensor:
    """One of the six factors [B, 1, C] that all blocks share."""
    features: Tensor = arguments[f"temb_mod_{stream}"]
    features = features[:, None] if features.ndim == 2 else features
    return features.chunk(6, dim=-1)[number]


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    normed: Tensor = block.norm1(arguments["hidden_states"])
    return (1 + _piece(arguments, "img", 1)) * normed + _piece(arguments, "img", 0)


@ADAPTERS.register("flux2")
class Flux2(ModelAdapter):
    """`Flux2Transformer2DModel`: dev and Klein. A single block's attention and MLP are one fused module.

    The guidance scale is an input of dev; Klein base calls once per branch and names them.
    """

    transformer_classes = ("Flux2Transformer2DModel",)
    pipeline_classes = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline")
    unsupported_pipelines = {
        "Flux2KleinKVPipeline": "after the first step its blocks see fewer tokens, so nothing cached there fits"
    }
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            partial={Part.MLP: "video"},
        ),
        BlockList(
            "single_transformer_blocks",
            Kind.SINGLE,
            attention=None,
            mlp=None,
            concatenated=("encoder_hidden_states", "hidden_states"),
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "timestep", "guidance", "txt_ids", "img_ids")
    gates = {
        Part.ATTENTION: lambda block, arguments: (_piece(arguments, "img", 2), _piece(arguments, "txt", 2)),
        Part.MLP: lambda block, arguments: (_piece(arguments, "img", 5),),
    }
    block_probes = {"modulated": _modulated}
    checkpoints = {
        "flux2-dev": Checkpoint(
            "black-forest-labs/FLUX.2-dev", guidance_scale=4.0, height=1024, width=1024, dtype="bfloat16", num_branches=1,
        ),
        "flux2-klein-4b": Checkpoint(
            "black-forest-labs/FLUX.2-klein-4B", num_steps=4, guidance_scale=1.0, height=1024, width=1024,
            dtype="bfloat16", num_branches=1,
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Sixteen packed image tokens, five text tokens and their positions."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        zero, side = torch.zeros(1), torch.arange(4.0)
        return {
            "hidden_states": noise(batch, 16, 4), "encoder_hidden_states": noise(batch, 5, 12),
            "txt_ids": torch.cartesian_prod(zero, zero, zero, torch.arange(5.0)).expand(batch, -1, -1),
            "img_ids": torch.cartesian_prod(zero, side, side, zero).expand(batch, -1, -1),
        }  # fmt: skip
