"""A random `Flux2KleinPipeline` (not distilled) whose prompts differ in length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import tiny_transformer

from fsframework.models import Flux2


def build() -> Any:
    """Sixteen packed image tokens. The pipeline scales latents by its VAE's statistics even where it decodes nothing."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, text_encoder=None, tokenizer=None,
        transformer=tiny_transformer(Flux2()), is_distilled=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    latents: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 3, 12, generator=prompt),
        height=64, width=64, num_inference_steps=num_steps, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).images  # fmt: skip
    return latents
