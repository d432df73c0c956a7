"""Frames given to the sampler: where they lie in the latent, and which frames are made from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from fsframework.models.opensora_1_2.vae import OpenSoraVAE


def with_reference(
    vae: OpenSoraVAE,
    latents: Tensor,
    video: Any,
    start: int,
    weights: Sequence[float] | Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None,
) -> tuple[Tensor, Tensor | None]:
    """The latents with the reference in them, and the weights [B, T]; None: every frame is made from noise.

    The arguments are those of the pipeline's call; `video` and `weights` may be None. `latents` is not written to.
    """
    placed = None
    if video is not None:
        latents, placed = place(latents, encode_reference(vae, video, latents, generator), start)
    return latents, placed if weights is None else check_weights(weights, latents)


def encode_reference(
    vae: OpenSoraVAE, video: Any, latents: Tensor, generator: torch.Generator | list[torch.Generator] | None
) -> Tensor:
    """The latent of pictures or of a tensor [(B,) T, C, H, W] in 0 to 1, made to fit `latents` [B, C, T, H, W].

    Float32 [B, C, T_ref, H, W], or [1, ...] where one reference and one generator are for all videos. With a generator
    for each video, each draws what it would draw alone.

    Raises:
        ValueError: neither one reference nor one for each video.
    """
    batch, factor = latents.shape[0], vae.spatial_factor
    frames = VideoProcessor(vae_scale_factor=factor).preprocess_video(
        video, latents.shape[3] * factor, latents.shape[4] * factor
    )
    if len(frames) not in (1, batch):
        raise ValueError(
            f"reference_video has a batch of {len(frames)}, but this call makes {batch} videos (prompts times "
            f"num_videos_per_prompt); give one reference for all or one for each"
        )
    frames = frames.to(latents.device, vae.dtype)
    if not isinstance(generator, list):
        return vae.encode(frames, generator).float()
    each = frames.expand(batch, -1, -1, -1, -1).split(1)
    return torch.cat([vae.encode(video, own) for video, own in zip(each, generator, strict=True)]).float()


def place(latents: Tensor, reference: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """A copy of `latents` [B, C, T, H, W] with the reference from frame `start` on, and the weights [B, T]: 0 where it lies.

    Raises:
        ValueError: it does not lie within.
    """
    num_frames, stop = latents.shape[2], start + reference.shape[2]
    if not 0 <= start < stop <= num_frames:
        raise ValueError(
            f"the reference has {reference.shape[2]} latent frames and starts at {start}, but the video has {num_frames}"
        )
    latents, weights = latents.clone(), latents.new_ones(latents.shape[0], num_frames)
    latents[:, :, start:stop] = reference
    weights[:, start:stop] = 0
    return latents, weights


def check_weights(weights: Sequence[float] | Tensor, latents: Tensor) -> Tensor:
    """The user's frame weights as float32 [B, T] on the latents' device.

    Raises:
        ValueError: another shape, or values not in 0 to 1.
    """
    checked = torch.as_tensor(weights, dtype=torch.float32)
    batch, num_frames = latents.shape[0], latents.shape[2]
    if checked.shape not in ((num_frames,), (1, num_frames), (batch, num_frames)):
        raise ValueError(
            f"frame_weights have shape {tuple(checked.shape)}; needed is [{num_frames}] or [{batch}, {num_frames}], one "
            f"number for each latent frame"
        )
    if not bool(((checked >= 0) & (checked <= 1)).all()):
        raise ValueError("frame_weights must be 0 to 1: 0 keeps a frame, 1 makes it from noise")
    return checked.expand(batch, -1).to(latents.device)
