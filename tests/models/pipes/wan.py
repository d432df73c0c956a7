"""A random `WanPipeline` of two denoisers, as Wan 2.2 A14B has them; the second takes over halfway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    config = dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16,
        num_layers=2, rope_max_seq_len=8,
    )  # fmt: skip
    torch.manual_seed(0)
    denoisers = [WanTransformer3DModel(**config).eval() for _ in range(2)]
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=denoisers[0],
        transformer_2=denoisers[1],
        boundary_ratio=0.5,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        height=32, width=32, num_frames=5, num_inference_steps=num_steps, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
