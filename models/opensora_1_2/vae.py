"""The video VAE of Open-Sora 1.2: a picture VAE on every frame, and a temporal one on its latents.

Letters in names: B batch, C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from fsframework.models.opensora_1_2.published import PublishedModel
from fsframework.models.opensora_1_2.temporal_vae import TemporalVAE

SPATIAL_FACTOR = 0.18215
"""What spatial latents are multiplied by: fixed in the released code, whatever the picture VAE's own config says."""


class SpatialVAE(nn.Module):
    """A picture VAE applied to frames, a few at a time."""

    def __init__(self, module: AutoencoderKL, batch_size: int) -> None:
        super().__init__()
        self.module = module
        self.batch_size = batch_size

    def encode(self, video: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
        """[B, 3, T, H, W] to [B, C, T, H / 8, W / 8]."""

        def run(pictures: Tensor) -> Tensor:
            posterior = self.module.encode(pictures).latent_dist
            latent: Tensor = posterior.sample(generator) if sample else posterior.mode()
            return latent * SPATIAL_FACTOR

        return self._per_frame(run, video)

    def decode(self, latent: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 3, T, 8 H, 8 W]."""
        return self._per_frame(lambda z: self.module.decode(z / SPATIAL_FACTOR).sample, latent)

    def _per_frame(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        pictures = rearrange(x, "B C T H W -> (B T) C H W")
        done = torch.cat([run(some) for some in pictures.split(self.batch_size)])
        return rearrange(done, "(B T) C H W -> B C T H W", B=x.shape[0])


class OpenSoraVAE(PublishedModel, ConfigMixin):  # type: ignore[misc]
    """Video to latents with 8 x 8 times fewer pixels and, in chunks of 17 frames, 5 latent frames for each chunk.

    Args:
        micro_frame_size: frames of a chunk; chunks are independent of one another. None: the whole video is one.
        spatial_batch_size: pictures at a time in the picture VAE; fewer take less memory.
        latent_shift: per channel, what a latent is lowered by.
        latent_scale: per channel, what it is divided by after that.
        block_out_channels: widths of the picture VAE; the number of them sets its factor, 2 ** (number - 1).
        layers_per_block: of the picture VAE.
        spatial_norm_groups: groups of the picture VAE's norms.
        filters: see `TemporalVAE`, like those below.
        channel_multipliers: see `TemporalVAE`.
        temporal_downsample: see `TemporalVAE`.
        num_res_blocks: see `TemporalVAE`.
        num_groups: see `TemporalVAE`.
    """

    published_type = "VideoAutoencoderPipeline"
    scale: Tensor
    shift: Tensor

    @register_to_config
    def __init__(
        self,
        micro_frame_size: int | None = 17,
        spatial_batch_size: int = 4,
        latent_shift: Sequence[float] = (-0.10, 0.34, 0.27, 0.98),
        latent_scale: Sequence[float] = (3.85, 2.32, 2.33, 3.06),
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        spatial_norm_groups: int = 32,
        filters: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_downsample: Sequence[bool] = (False, True, True),
        num_res_blocks: int = 4,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        num_levels = len(block_out_channels)
        self.spatial_vae = SpatialVAE(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * num_levels,
                up_block_types=("UpDecoderBlock2D",) * num_levels,
                block_out_channels=tuple(block_out_channels), layers_per_block=layers_per_block,
                latent_channels=len(latent_shift), norm_num_groups=spatial_norm_groups, scaling_factor=SPATIAL_FACTOR,
            ),
            spatial_batch_size,
        )  # fmt: skip
        self.temporal_vae = TemporalVAE(
            len(latent_shift), filters, channel_multipliers, temporal_downsample, num_res_blocks, num_groups
        )
        self.spatial_factor = 2 ** (num_levels - 1)
        self.micro_frame_size = micro_frame_size
        self.register_buffer("scale", torch.tensor(latent_scale).reshape(1, -1, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(latent_shift).reshape(1, -1, 1, 1, 1))

    @classmethod
    def from_published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The published config names its two halves `vae_2d` and `vae_temporal`; what they leave out is as published."""
        nested = {**config.get("vae_2d", {}), **config.get("vae_temporal", {}), **config}
        arguments = super().from_published_config(nested)
        renamed = {"micro_batch_size": "spatial_batch_size", "shift": "latent_shift", "scale": "latent_scale"}
        return arguments | {new: nested[old] for old, new in renamed.items() if old in nested}

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.shift.shape[1]

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns of the latent of a video; 51 frames of 480 x 854 pixels give (15, 60, 106)."""
        frames = self.temporal_vae.latent_frames
        chunk = self.micro_frame_size or num_frames
        full, rest = divmod(num_frames, chunk)
        return full * frames(chunk) + frames(rest), height // self.spatial_factor, width // self.spatial_factor

    @apply_forward_hook
    def encode(self, video: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """The normalised latent [B, C, T_latent, H / 8, W / 8] of a video.

        Args:
            video: [B, 3, T, H, W] in -1 to 1, height and width multiples of 8.
            generator: for the two posteriors' noise.
            sample: False takes their modes instead.
        """
        frames = self.spatial_vae.encode(video, sample, generator)
        posteriors = [
            self.temporal_vae.encode(chunk) for chunk in frames.split(self.micro_frame_size or frames.shape[2], 2)
        ]
        latents = [p.sample(generator) if sample else p.mode() for p in posteriors]
        return (torch.cat(latents, dim=2) - self.shift) / self.scale

    @apply_forward_hook
    def decode(self, latent: Tensor, num_frames: int) -> Tensor:
        """A video [B, 3, num_frames, 8 H, 8 W] of about -1 to 1 from its normalised latent.

        Args:
            latent: [B, C, T, H, W] as `encode` gives it.
            num_frames: of the video, to know how many the last chunk has.

        Raises:
            ValueError: the latent is not of a video of `num_frames`.
        """
        expected = self.latent_size(num_frames, 8, 8)[0]
        if latent.shape[2] != expected:
            raise ValueError(f"a video of {num_frames} frames has {expected} latent frames; got {latent.shape[2]}")
        chunk = self.micro_frame_size or num_frames
        pieces = (latent * self.scale + self.shift).split(self.temporal_vae.latent_frames(chunk), dim=2)
        frames = [self.temporal_vae.decode(z, min(chunk, num_frames - i * chunk)) for i, z in enumerate(pieces)]
        return self.spatial_vae.decode(torch.cat(frames, dim=2))

    def enable_tiling(self) -> None:
        """Decode pictures in overlapping tiles: less memory for large videos, with slight seams."""
        self.spatial_vae.module.enable_tiling()
