"""A random `BriaPipeline`; without a negative prompt it guides away from zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import Bria


def build() -> Any:
    """Sixteen packed image tokens. The pipeline reads its VAE's settings."""
    from diffusers import AutoencoderKL, BriaPipeline, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=1, norm_num_groups=4, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipe = BriaPipeline(
        transformer=tiny_transformer(Bria()), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae,
        text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(prompt_seed)),
        height=64, width=64, num_inference_steps=num_steps, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).images  # fmt: skip
    return latents
