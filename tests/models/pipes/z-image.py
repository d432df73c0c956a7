"""A random `ZImagePipeline` whose prompts differ in length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import ZImage


def build() -> Any:
    """8x8 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=None, text_encoder=None, tokenizer=None,
        transformer=tiny_transformer(ZImage()),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=[torch.randn(5, 12, generator=prompt)], negative_prompt_embeds=[torch.randn(3, 12, generator=prompt)],
        height=64, width=64, num_inference_steps=num_steps, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).images  # fmt: skip
    return latents
