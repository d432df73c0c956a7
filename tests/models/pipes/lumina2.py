"""A random `Lumina2Pipeline` whose negative prompt is padded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import Lumina2


def build() -> Any:
    """8x8 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

    pipe = Lumina2Pipeline(
        transformer=tiny_transformer(Lumina2()), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None, text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[1, 1, 1, 0, 0]]).bool(),
        height=64, width=64,
        num_inference_steps=num_steps, guidance_scale=4.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
        **more,
    ).images  # fmt: skip
    return latents
