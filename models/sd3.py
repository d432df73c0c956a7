"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): joint blocks with a text and an image stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("sd3")
class StableDiffusion3(ModelAdapter):
    """`SD3Transformer2DModel`. The last block updates the image stream only and returns None for the text.

    Skip-layer guidance (3.5 medium) calls the model once more in some early steps, without some blocks.
    """

    transformer_classes = ("SD3Transformer2DModel",)
    pipeline_classes = (
        "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline",
    )  # fmt: skip
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    extra_calls = ("skip_layers",)
    batched_inputs = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    checkpoints = {
        "sd3-medium": Checkpoint(
            "stabilityai/stable-diffusion-3-medium-diffusers", num_steps=28, guidance_scale=7.0, height=1024, width=1024,
            dtype="float16",
        ),
        "sd3.5-medium": Checkpoint(
            "stabilityai/stable-diffusion-3.5-medium", num_steps=40, guidance_scale=4.5, height=1024, width=1024,
            dtype="bfloat16",
        ),
        "sd3.5-large": Checkpoint(
            "stabilityai/stable-diffusion-3.5-large", num_steps=28, guidance_scale=3.5, height=1024, width=1024,
            dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12),
            "pooled_projections": noise(batch, 6),
        }  # fmt: skip
