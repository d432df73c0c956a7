"""A random `CosmosTextToWorldPipeline`; its sampler is asked twice per step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


class AllowAll:
    """In the place of the guardrail models, which are a package of their own."""

    def to(self, device: Any) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def build() -> Any:
    """Two frames of 4 x 4 latents."""
    from diffusers import CosmosTextToWorldPipeline, CosmosTransformer3DModel, EDMEulerScheduler

    torch.manual_seed(0)
    transformer = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3, mlp_ratio=2,
        text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 8, 8), concat_padding_mask=False,
    )  # fmt: skip
    pipe = CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        vae=None,
        scheduler=EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon", rho=7.0,
            final_sigmas_type="sigma_min",
        ),
        safety_checker=AllowAll(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        height=32, width=32, num_frames=9, num_inference_steps=num_steps, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
