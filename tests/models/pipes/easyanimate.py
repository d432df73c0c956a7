"""A random `EasyAnimatePipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import (
        AutoencoderKLMagvit,
        EasyAnimatePipeline,
        EasyAnimateTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    torch.manual_seed(0)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, num_layers=3, mmdit_layers=2,
        sample_width=4, sample_height=4, text_embed_dim=12, time_embed_dim=8,
    )  # fmt: skip
    vae = AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(2, 2, 2, 2), layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    pipe = EasyAnimatePipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        height=32, width=32, num_frames=5, num_inference_steps=num_steps, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
