"""A random `ChromaPipeline` whose prompts differ in length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import Chroma


def build() -> Any:
    """Sixteen packed image tokens."""
    from diffusers import ChromaPipeline, FlowMatchEulerDiscreteScheduler

    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=None, text_encoder=None, tokenizer=None,
        transformer=tiny_transformer(Chroma()),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=torch.randn(1, 3, 12, generator=prompt),
        negative_prompt_attention_mask=torch.ones(1, 3, dtype=torch.bool),
        height=64, width=64,
        num_inference_steps=num_steps, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
        **more,
    ).images  # fmt: skip
    return latents
