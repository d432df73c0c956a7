"""Flux (black-forest-labs/flux): joint blocks with a text and an image stream, then parallel single-stream blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("flux")
class Flux(ModelAdapter):
    """`FluxTransformer2DModel`: dev, schnell, Kontext, Fill. The single blocks join and part the streams themselves.

    The guidance scale is an input of the model; a negative prompt adds true guidance, one more call per step.
    """

    transformer_classes = ("FluxTransformer2DModel",)
    pipeline_classes = (
        "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxKontextPipeline",
        "FluxKontextInpaintPipeline", "FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline",
        "FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline",
    )  # fmt: skip
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
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            mlp=None,
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    checkpoints = {
        "flux-dev": Checkpoint(
            "black-forest-labs/FLUX.1-dev", guidance_scale=3.5, height=1024, width=1024, dtype="bfloat16", num_branches=1,
        ),
        "flux-schnell": Checkpoint(
            "black-forest-labs/FLUX.1-schnell", num_steps=4, guidance_scale=0.0, height=1024, width=1024, dtype="bfloat16",
            num_branches=1,
        ),
        "flux-kontext-dev": Checkpoint(
            "black-forest-labs/FLUX.1-Kontext-dev", num_steps=28, guidance_scale=2.5, height=1024, width=1024,
            dtype="bfloat16", num_branches=1,
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Sixteen packed image tokens, five text tokens and their positions."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 16, 4), "encoder_hidden_states": noise(batch, 5, 12),
            "pooled_projections": noise(batch, 6), "txt_ids": torch.zeros(5, 3),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        }  # fmt: skip
