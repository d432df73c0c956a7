"""`Denoiser`: what a family of tiny models must say so that the stages can train, watch and ship it.

Shape suffixes: B clips, C latent channels, F latent frames, H and W latent height and width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsframework.core import Registry
from fsframework.data import bouncing_digits


class Denoiser(nn.Module):
    """A transformer and its text encoder, trained together; one subclass per family.

    Latents are [B, C, F, H, W] here whatever the transformer wants. Timesteps run from 0 (clean) to 1000 (noise). The
    default parametrisation is v-prediction; a family with another one overrides `noisy_and_target` and `scheduler`.
    """

    config_class: ClassVar[type]
    """The dataclass of the `model:` section."""
    num_frames: ClassVar[int] = bouncing_digits.NUM_FRAMES
    """Pixel frames of a shipped clip."""
    sampling: ClassVar[dict[str, Any]]
    """Arguments of the family's pipeline for one clip, besides prompt, steps, guidance scale and generator."""
    tokenizer: Any
    text_encoder: Any
    transformer: Any

    def forward(self, noisy_BCFHW: Tensor, timesteps_B: Tensor, prompts: list[str], **conditions: Any) -> Tensor:
        """The prediction, [B, C, F, H, W], for captions or "" (unconditional)."""
        raise NotImplementedError

    def draw_conditions(self, generator: torch.Generator, latent_frames: int) -> dict[str, Any]:
        """Arguments of `forward` that differ from step to step, for a batch of clips this long; by default none."""
        del generator, latent_frames
        return {}

    def draw_timesteps(self, uniform_B: Tensor, power: float) -> Tensor:
        """Timesteps of a batch from uniform numbers: 1000 u ** power, whole numbers; power < 1 leans to high noise."""
        return (1000 * uniform_B**power).long().clamp(max=999)

    def noisy_and_target(self, clean_BCFHW: Tensor, noise_BCFHW: Tensor, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` is shown and what it should say."""
        return velocity_pair(clean_BCFHW, noise_BCFHW, timesteps_B, self.scheduler().alphas_cumprod)

    def prepare(self, latents_NYXCHW: Tensor) -> None:
        """Measure on the table of single frames' latents what a new denoiser needs before training; here nothing."""

    def clip_latents(self, frames_BCTHW: Tensor) -> Tensor:
        """Latents of clips [B, C, F, H, W] from those of their T single frames; here they are the same."""
        return frames_BCTHW

    def scheduler(self) -> Any:
        """The scheduler of the pipeline, new."""
        raise NotImplementedError

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that only videos train."""
        raise ValueError(f"{type(self).__name__} has no temporal parameters of their own; set trainable to 'all'.")

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the blocks, those that Muon is meant for."""
        raise NotImplementedError

    def pipeline(self, autoencoder: Any) -> Any:
        """The family's pipeline around these very modules (not copies) and a trained `AutoencoderKL` of frames."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(
        self,
        autoencoder: Any,
        prompts: list[str],
        seeds: list[int],
        *,
        num_steps: int,
        guidance_scale: float,
        num_frames: int,
    ) -> Tensor:
        """One video per prompt and seed, float [B, T, H, W, 3] in [0, 1].

        `num_frames` is the stage's: for a stage of single images the T frames may be unrelated. Here the pipeline is called
        as a user calls it, with a list of prompts.
        """
        frames = self.pipeline(autoencoder)(
            prompts,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=generators(seeds),
            output_type="pt",
            **{**self.sampling, "num_frames": num_frames},
        ).frames
        video: Tensor = frames.movedim(2, -1).float().clamp(0, 1)
        return video


FAMILIES: Registry[type[Denoiser]] = Registry("family of tiny models")


def velocity_pair(
    clean_BCFHW: Tensor, noise_BCFHW: Tensor, timesteps_B: Tensor, alphas_cumprod: Tensor
) -> tuple[Tensor, Tensor]:
    """The noisy latent and its velocity a * noise - s * clean, a and s the signal and noise levels of the timesteps."""
    signal_B1 = alphas_cumprod[timesteps_B].sqrt().view(-1, 1, 1, 1, 1)
    noise_B1 = (1 - alphas_cumprod[timesteps_B]).sqrt().view(-1, 1, 1, 1, 1)
    return (
        signal_B1 * clean_BCFHW + noise_B1 * noise_BCFHW,
        signal_B1 * noise_BCFHW - noise_B1 * clean_BCFHW,
    )


VELOCITY_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
"""DDIM settings with zero terminal SNR, so that a black background comes out black."""


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def initialize_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
