"""A random `LTX2Pipeline`; its two further kinds of guidance are a call each per step, with names of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BRANCHES = ["joint", "uncond_stg", "uncond_modality"]


def build() -> Any:
    """Two frames of 2 x 2 video latents and five frames of audio latents."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    torch.manual_seed(0)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=3, caption_channels=16, rope_double_precision=False, perturbed_attn=True,
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=1, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=8, rope_double_precision=False,
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(4,), down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(4,), layers_per_block=(1,), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,), patch_size=4,
        spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8,
    )  # fmt: skip
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        text_encoder=None,
        tokenizer=None,
        connectors=connectors.eval(),
        transformer=transformer.eval(),
        vocoder=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt_seed: int = 0, seed: int = 0, num_steps: int = 4, **more: Any) -> Tensor:
    """The final video latent."""
    prompt = torch.Generator().manual_seed(prompt_seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 5, 16, generator=prompt),
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.long),
        negative_prompt_embeds=torch.randn(1, 5, 16, generator=prompt),
        negative_prompt_attention_mask=torch.tensor([[0, 0, 1, 1, 1]]),
        height=64, width=64, num_frames=9, frame_rate=45.0, num_inference_steps=num_steps, guidance_scale=4.0,
        stg_scale=1.0, spatio_temporal_guidance_blocks=[1], modality_scale=3.0,
        generator=torch.Generator().manual_seed(seed), output_type="latent", **more,
    ).frames  # fmt: skip
    return frames
