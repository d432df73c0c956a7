"""A random `CogVideoXImageToVideoPipeline`: the image's latent is half of the model's channels."""

from __future__ import annotations

from typing import Any

import torch
from pipelines import random_cogvideox
from torch import Tensor


def build() -> Any:
    """Three latent frames of 2 x 2."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=8, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=3, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=16,
    )  # fmt: skip
    text = random_cogvideox()
    pipe = CogVideoXImageToVideoPipeline(
        text.tokenizer, text.text_encoder, text.vae, transformer.eval(), CogVideoXDDIMScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        image=torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
        prompt_embeds=torch.randn(1, 16, 16, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 16, 16, generator=prompt),
        height=16, width=16, num_frames=9, num_inference_steps=num_steps, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
