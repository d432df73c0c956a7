"""A random `StableDiffusion3Pipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import StableDiffusion3


def build() -> Any:
    """8x8 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, text_encoder_3=None, tokenizer_3=None, transformer=tiny_transformer(StableDiffusion3()),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        height=64, width=64,
        num_inference_steps=num_steps, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
        **more,
    ).images  # fmt: skip
    return latents
