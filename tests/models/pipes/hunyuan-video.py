"""A random `HunyuanVideoPipeline` with true guidance, so both branches run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        pooled_prompt_embeds=torch.randn(1, 8, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_pooled_prompt_embeds=torch.randn(1, 8, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]),
        height=32, width=32, num_frames=5, num_inference_steps=num_steps, guidance_scale=6.0, true_cfg_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
