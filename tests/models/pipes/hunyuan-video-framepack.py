"""A random `HunyuanVideoFramepackPipeline`: one section of a video, with true guidance in unnamed calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS_PER_STEP = 2


def build() -> Any:
    """One section of one frame of 4 x 4 latents."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4), has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    image_encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    pipe = HunyuanVideoFramepackPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=image_encoder.eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 8, "width": 8}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The image's latent and the final one."""
    from PIL import Image

    prompt = torch.Generator().manual_seed(prompt_seed)
    sections = pipe(
        image=Image.new("RGB", (32, 32), (90, 120, 40)),
        prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        pooled_prompt_embeds=torch.randn(1, 8, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5),
        negative_prompt_embeds=torch.randn(1, 5, 12, generator=prompt),
        negative_pooled_prompt_embeds=torch.randn(1, 8, generator=prompt),
        negative_prompt_attention_mask=torch.ones(1, 5),
        height=32, width=32, num_frames=1, latent_window_size=1, num_inference_steps=num_steps, guidance_scale=6.0,
        true_cfg_scale=4.0, generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    last: Tensor = sections[-1]
    return last
