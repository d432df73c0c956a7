"""A random `FluxPipeline` with true guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import Flux


def build() -> Any:
    """Sixteen packed image tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=tiny_transformer(Flux()),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, true_cfg_scale: float = 3.0, **more: Any
) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        height=64, width=64, num_inference_steps=num_steps, true_cfg_scale=true_cfg_scale,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).images  # fmt: skip
    return latents
