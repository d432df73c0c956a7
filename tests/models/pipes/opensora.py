"""A random `OpenSoraPipeline` of 2 + 2 blocks: 17 frames of 16 x 16 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def build() -> Any:
    """With a real tokenizer over a few words."""
    from pipelines import text_parts

    from fsframework.models.opensora_1_2 import OpenSoraPipeline, OpenSoraVAE, RFlowScheduler, STDiT3

    torch.manual_seed(0)
    tokenizer, text_encoder = text_parts()
    transformer = STDiT3(
        hidden_size=16, depth=2, num_heads=2, mlp_ratio=2.0, input_sq_size=16, caption_channels=16, model_max_length=12
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    vae = OpenSoraVAE(
        block_out_channels=(8, 8), layers_per_block=1, spatial_norm_groups=4, filters=8, num_res_blocks=1, num_groups=4
    )
    pipe = OpenSoraPipeline(
        tokenizer, text_encoder.eval(), vae.eval(), transformer.eval(), RFlowScheduler(), aesthetic_score=None,
        clean_caption=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final latent."""
    prompt = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(prompt_seed))
    frames: Tensor = pipe(
        prompt_embeds=prompt, height=16, width=16, num_frames=17, num_inference_steps=num_steps, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
