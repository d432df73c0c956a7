"""A random `HunyuanVideo15Pipeline`; its guider names the branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


def build() -> Any:
    """Two frames of 2 x 2 latents."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    torch.manual_seed(0)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=3, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=12, text_embed_2_dim=8, image_embed_dim=6,
        rope_axes_dim=(2, 2, 4), target_size=16,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(2, 2, 2, 2, 2), layers_per_block=1)
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.vision_num_semantic_tokens = 2
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_embeds_mask=torch.ones(1, 5),
        prompt_embeds_2=torch.randn(1, 3, 8, generator=prompt),
        prompt_embeds_mask_2=torch.ones(1, 3),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_embeds_mask=torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]),
        negative_prompt_embeds_2=torch.randn(1, 3, 8, generator=prompt),
        negative_prompt_embeds_mask_2=torch.zeros(1, 3),
        height=32, width=32, num_frames=5, num_inference_steps=num_steps,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
