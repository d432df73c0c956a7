"""A random `MochiPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=12, in_channels=4,
        text_embed_dim=16, time_embed_dim=8, max_sequence_length=5,
    )  # fmt: skip
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 16, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=torch.randn(1, 5, 16, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[True, True, False, False, False]]),
        height=32, width=32, num_frames=7, num_inference_steps=num_steps, guidance_scale=4.5,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
