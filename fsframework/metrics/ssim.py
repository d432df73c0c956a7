"""Structural similarity (Wang et al. 2004) against the reference.

Shape suffixes: T frames, H height, W width, C channels (as a batch of T*C grey images here).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fsframework.metrics.base import METRICS, Metric, check_pair

WINDOW = 11
"""Side of the Gaussian window in pixels; its standard deviation is 1.5."""
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""The paper's constants for a range of 1."""


@METRICS.register("ssim")
class SSIM(Metric):
    """Mean SSIM over frames, channels and all places where the 11 x 11 Gaussian window fits whole into the frame.

    On videos with large flat areas (a digit on black) most windows are equal, so values crowd near 1; compare them on
    one data set only.
    """

    name = "ssim"
    description = "Structural similarity, 11 x 11 Gaussian window, mean over frames and channels; identical is 1."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"ssim": -1 to 1}. Frames must be at least 11 x 11."""
        del prompt
        images, references = (as_images(x) for x in check_pair(video, reference, self.name))
        check_size(images, WINDOW, self.name)
        luminance, contrast = ssim_maps(images, references)
        return {"ssim": float((luminance * contrast).mean())}


def as_images(video: Tensor) -> Tensor:
    """[T, H, W, C] as a batch of grey images [T*C, 1, H, W]."""
    return video.permute(0, 3, 1, 2).reshape(-1, 1, *video.shape[1:3])


def check_size(images: Tensor, least: int, metric: str) -> None:
    """ValueError if a side of the frames is below `least` pixels."""
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{metric} needs frames of at least {least} x {least} pixels; these are {height} x {width}")


def ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance and the contrast-structure factor of SSIM at every place of the window, [N, 1, H-10, W-10] each."""
    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a.square()
    variance_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    contrast = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance, contrast


def blur(images: Tensor) -> Tensor:
    """Weighted means under the window, without padding."""
    place = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-place.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return conv2d(conv2d(images, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
