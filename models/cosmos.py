"""Cosmos Predict 1, 2 and 2.5 (arXiv:2501.03575, 2511.00062): video tokens, text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part


@ADAPTERS.register("cosmos")
class Cosmos(ModelAdapter):
    """`CosmosTransformer3DModel`: text- and video-to-world, and text-to-image.

    One call per branch, the prompt first, without cache context. Predict 1 asks the sampler twice per step, after both
    calls: for the clean latent, then for the next one.
    """

    transformer_classes = ("CosmosTransformer3DModel",)
    pipeline_classes = (
        "CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline",
    )  # fmt: skip
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            cross_attention="attn2",
            token_inputs=("image_rotary_emb", "extra_pos_emb"),
            partial={Part.MLP: "video"},
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "timestep", "encoder_hidden_states", "attention_mask", "condition_mask")
    checkpoints = {
        "cosmos1-text2world-7b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos1-text2world-14b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-14B-Text2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos1-video2world-7b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-7B-Video2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos2-video2world-2b": Checkpoint(
            "nvidia/Cosmos-Predict2-2B-Video2World",
            num_steps=35, guidance_scale=7.0, height=704, width=1280, num_frames=93, fps=16, dtype="bfloat16",
        ),
        "cosmos2-video2world-14b": Checkpoint(
            "nvidia/Cosmos-Predict2-14B-Video2World",
            num_steps=35, guidance_scale=7.0, height=704, width=1280, num_frames=93, fps=16, dtype="bfloat16",
        ),
        "cosmos2-text2image-2b": Checkpoint(
            "nvidia/Cosmos-Predict2-2B-Text2Image",
            num_steps=35, guidance_scale=7.0, height=768, width=1360, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3, mlp_ratio=2,
        text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 8, 8), concat_padding_mask=False,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 2, 4, 4), "encoder_hidden_states": noise(batch, 5, 12)}
