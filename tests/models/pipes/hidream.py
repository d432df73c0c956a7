"""A random `HiDreamImagePipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import HiDream


def build() -> Any:
    """8x8 latents, and a choice of two experts for each image token."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline

    adapter = HiDream()
    adapter.tiny_config = {**adapter.tiny_config, "num_routed_experts": 2, "num_activated_experts": 1}
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, text_encoder_3=None, tokenizer_3=None, text_encoder_4=None, tokenizer_4=None,
        transformer=tiny_transformer(adapter),
    )  # fmt: skip
    pipe.default_sample_size = 8  # it scales every size to the same number of pixels
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds_t5=torch.randn(1, 3, 12, generator=prompt),
        prompt_embeds_llama3=torch.randn(3, 1, 2, 10, generator=prompt),
        pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        negative_prompt_embeds_t5=torch.randn(1, 3, 12, generator=prompt),
        negative_prompt_embeds_llama3=torch.randn(3, 1, 2, 10, generator=prompt),
        negative_pooled_prompt_embeds=torch.randn(1, 6, generator=prompt),
        height=64, width=64,
        num_inference_steps=num_steps, guidance_scale=5.0, generator=torch.Generator().manual_seed(seed), output_type="latent",
        **more,
    ).images  # fmt: skip
    return latents
