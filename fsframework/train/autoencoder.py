"""The tiny KL autoencoder: 32 x 32 x 3 pixels to 8 x 8 x 4 latents, diffusers' `AutoencoderKL` trained on digits.

Shape suffixes: B clips, N frames, T frames of a clip, H height, W width, C channels, Y and X grid positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsframework.data import bouncing_digits
from fsframework.train.stage import MetricsFile, StageModule


@dataclass
class AutoencoderConfig:
    """The autoencoder and its training."""

    block_channels: list[int] = field(default_factory=lambda: [16, 32, 32])
    """Channels per resolution; each one after the first halves height and width, so three give a factor of 4."""
    latent_channels: int = 4
    layers_per_block: int = 1
    num_steps: int = 1600
    batch_frames: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-5
    """Weight of the KL term per latent element against the squared pixel error per pixel."""
    ema_decay: float = 0.99
    source: str = ""
    """A pipeline folder, relative to `fsframework/models` (`tiny-latte`), whose autoencoder is taken instead of training
    one."""
    decoder_steps: int = 0
    """More steps, of the decoder alone, after the 1 x 1 convolutions around the latent were folded into their
    neighbours. For CogVideoX, whose autoencoder has none."""


def build_autoencoder(config: AutoencoderConfig) -> Any:
    """A new `AutoencoderKL` with random weights."""
    from diffusers import AutoencoderKL

    channels = tuple(config.block_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=bouncing_digits.CANVAS_PIXELS,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def to_model_range(frames: np.ndarray | Tensor) -> Tensor:
    """[..., H, W, C] in [0, 1] to [..., C, H, W] in [-1, 1], float32."""
    frames_HWC = torch.as_tensor(frames, dtype=torch.float32)
    return frames_HWC.movedim(-1, -3) * 2 - 1


def random_frames(rng: np.random.Generator, num_frames: int, split: bouncing_digits.Split = "train") -> Tensor:
    """Single frames [N, C, H, W] in [-1, 1] of random digits at random grid positions."""
    images_NHW = bouncing_digits.digit_images(split).images_NHW
    chosen_N = rng.integers(len(images_NHW), size=num_frames)
    rows_N1, columns_N1 = rng.integers(bouncing_digits.NUM_POSITIONS, size=(2, num_frames, 1))
    return to_model_range(bouncing_digits.render(images_NHW[chosen_N], rows_N1, columns_N1)[:, 0])


class AutoencoderStage(StageModule):
    """Trains the autoencoder on single frames: squared and absolute pixel error, and a light KL term."""

    def __init__(
        self,
        autoencoder: nn.Module,
        config: AutoencoderConfig,
        *,
        seed: int,
        metrics: MetricsFile,
        decoder_only: bool = False,
    ) -> None:
        super().__init__(
            autoencoder,
            stage="decoder" if decoder_only else "autoencoder",
            seed=seed,
            num_steps=config.decoder_steps if decoder_only else config.num_steps,
            warmup_steps=50,
            decay_fraction=0.6,
            ema_decay=config.ema_decay,
            clip_norm=1.0,
            log_every=100,
            metrics=metrics,
        )
        self.config, self.decoder_only = config, decoder_only
        if decoder_only:
            self.networks.requires_grad_(False)
            self.networks.decoder.requires_grad_(True)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; a fourth of the learning rate for a decoder that is trained already."""
        return torch.optim.AdamW(
            [p for p in self.networks.parameters() if p.requires_grad],
            lr=self.config.learning_rate * (0.25 if self.decoder_only else 1.0),
            betas=(0.9, 0.99),
            weight_decay=1e-4,
        )

    def loss(self, step: int) -> Tensor:
        """Pixel error of the decoded sample plus the KL term."""
        frames_NCHW = random_frames(self.numpy_generator(step), self.config.batch_frames)
        frames_NCHW = frames_NCHW[self.share(len(frames_NCHW))]
        posterior = self.networks.encode(frames_NCHW).latent_dist  # type: ignore[operator]
        decoded_NCHW = self.networks.decode(posterior.sample(self.generator(step))).sample  # type: ignore[operator]
        squared_error = (decoded_NCHW - frames_NCHW).square().mean()
        absolute_error = (decoded_NCHW - frames_NCHW).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return squared_error + 0.05 * absolute_error + self.config.kl_weight * kl


@torch.no_grad()
def normalize_latents(autoencoder: Any, frames_NCHW: Tensor) -> None:
    """Fold a shift and scale per latent channel into the 1 x 1 convolutions, so latents have mean 0 and deviation 1.

    LattePipeline knows one scaling factor for all channels and no shift; after this the factor is 1. Decoded frames
    are the same as before up to rounding.
    """
    mean_NCHW = autoencoder.encode(frames_NCHW).latent_dist.mean
    shift_C, scale_C = mean_NCHW.mean(dim=(0, 2, 3)), mean_NCHW.std(dim=(0, 2, 3))
    channels = len(shift_C)
    encoder_conv, decoder_conv = autoencoder.quant_conv, autoencoder.post_quant_conv
    encoder_conv.weight[:channels] /= scale_C[:, None, None, None]
    encoder_conv.bias[:channels] = (encoder_conv.bias[:channels] - shift_C) / scale_C
    encoder_conv.bias[channels:] -= 2 * scale_C.log()
    decoder_conv.bias += decoder_conv.weight[:, :, 0, 0] @ shift_C
    decoder_conv.weight *= scale_C[None, :, None, None]


@torch.no_grad()
def reconstruction_psnr(autoencoder: Any, num_frames: int = 500) -> float:
    """PSNR in dB over frames of evaluation digits, from the error pooled over all of them, peak 1.0."""
    frames_NCHW = random_frames(np.random.default_rng(0), num_frames, "eval")
    decoded_NCHW = autoencoder.decode(autoencoder.encode(frames_NCHW).latent_dist.mode()).sample.clamp(-1, 1)
    error = ((decoded_NCHW - frames_NCHW) / 2).square().mean()
    return float(-10 * torch.log10(error))


def look_up(plan: bouncing_digits.ClipPlan, latents_NYXCHW: Tensor) -> Tensor:
    """The latents of a plan's frames in the table of `encode_grid`: float32 [B, C, T, H, W]."""
    images_B1 = torch.from_numpy(plan.image_index_N)[:, None]
    latents_BTCHW = latents_NYXCHW[images_B1, torch.from_numpy(plan.rows_NT), torch.from_numpy(plan.columns_NT)]
    return latents_BTCHW.float().transpose(1, 2)


@torch.no_grad()
def encode_grid(autoencoder: Any, split: bouncing_digits.Split = "train") -> Tensor:
    """The latent of every frame that a clip can contain: float16 [N, Y, X, C, H, W], N digit images."""
    images_NHW = bouncing_digits.digit_images(split).images_NHW
    rows = []
    for image_HW in images_NHW:
        frames_YXCHW = to_model_range(bouncing_digits.grid_frames(image_HW[None])[0])
        latents = autoencoder.encode(frames_YXCHW.flatten(0, 1)).latent_dist.mode()
        rows.append(latents.unflatten(0, frames_YXCHW.shape[:2]).half())
    return torch.stack(rows)
