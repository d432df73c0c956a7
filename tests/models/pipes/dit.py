"""A random `DiTPipeline`; its prompts are ImageNet classes, and it always decodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import DiT


def build() -> Any:
    """8x8 latents and a VAE that keeps their size."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    pipe = DiTPipeline(transformer=tiny_transformer(DiT()), vae=vae, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The pixels of one image."""
    generator = torch.Generator().manual_seed(seed)
    images: Tensor = pipe(
        [7 + prompt_seed],
        guidance_scale=4.0,
        generator=generator,
        num_inference_steps=num_steps,
        output_type="pt",
        **more,
    ).images
    return images
