"""A random `WanVACEPipeline`; its control video and mask are empty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


def build() -> Any:
    """Two frames of 4 x 4 latents; hints after the first and the third of three blocks."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanVACEPipeline, WanVACETransformer3DModel

    torch.manual_seed(0)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16,
        num_layers=3, rope_max_seq_len=8, vace_layers=[0, 2], vace_in_channels=2 * 4 + 64,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=2, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
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
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        height=32, width=32, num_frames=5, num_inference_steps=num_steps, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
