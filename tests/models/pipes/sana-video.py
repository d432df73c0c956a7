"""A random `SanaVideoPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=12,
        mlp_ratio=1.0, sample_size=4, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=8,
    )  # fmt: skip
    pipe = SanaVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.long),
        negative_prompt=None,
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[1, 1, 0, 0, 0]]),
        height=32, width=32, frames=5, num_inference_steps=num_steps, guidance_scale=4.5, use_resolution_binning=False,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
