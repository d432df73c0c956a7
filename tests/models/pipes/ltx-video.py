"""A random `LTXPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def build() -> Any:
    """Two frames of 2 x 3 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, cross_attention_dim=16, num_layers=3,
        caption_channels=12,
    )  # fmt: skip
    pipe = LTXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[True, True, False, False, False]]),
        height=64, width=96, num_frames=9, num_inference_steps=num_steps, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
