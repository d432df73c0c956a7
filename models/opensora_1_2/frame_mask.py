"""Frames that are given, or given in part, during sampling."""

from __future__ import annotations

import torch
from torch import Tensor


class FrameMask:
    """Which latent frames are denoised when, over one video.

    Args:
        weight: [B, T] in 0 to 1: 1 makes a frame from noise, 0 keeps it as it is given, and a value e between leaves it
            until the time falls to e * num_train_timesteps, puts that much noise on it, and denoises it from there.
        num_train_timesteps: the time of pure noise.
    """

    def __init__(self, weight: Tensor, num_train_timesteps: int = 1000) -> None:
        self._start = weight * num_train_timesteps
        self._noised = weight == 1
        self._num_train_timesteps = num_train_timesteps

    def begin_step(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The latent with noise on the frames whose time has come, and which frames are denoised now: [B, T] bool.

        Args:
            sample: [B, C, T, H, W].
            noise: the same, drawn anew for every step, also where it is not needed.
            timestep: 0-d or [B].
        """
        denoised = self._start >= timestep.reshape(-1, 1)
        new = denoised & ~self._noised
        share = (timestep.float() / self._num_train_timesteps).reshape(-1, 1, 1, 1, 1)
        sample = torch.where(new[:, None, :, None, None], (1 - share) * sample + share * noise, sample)
        self._noised = denoised
        return sample, denoised
