"""A random `HunyuanDiTPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import HunyuanDiT


def build() -> Any:
    """8x8 latents."""
    from diffusers import DDIMScheduler, HunyuanDiTPipeline

    pipe = HunyuanDiTPipeline(
        vae=None, text_encoder=None, tokenizer=None, transformer=tiny_transformer(HunyuanDiT()), scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 3, 12, generator=prompt),
        prompt_embeds_2=torch.randn(1, 2, 16, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 3, 12, generator=prompt),
        negative_prompt_embeds_2=torch.randn(1, 2, 16, generator=prompt),
        prompt_attention_mask=torch.ones(1, 3), prompt_attention_mask_2=torch.ones(1, 2),
        negative_prompt_attention_mask=torch.ones(1, 3), negative_prompt_attention_mask_2=torch.ones(1, 2),
        height=64, width=64, use_resolution_binning=False,
        num_inference_steps=num_steps, guidance_scale=5.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
        **more,
    ).images  # fmt: skip
    return latents
