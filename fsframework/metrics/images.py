"""What the metrics of single frames share: a few frames at a time, their colours, their gradients.

Shape suffixes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from fsframework.metrics.base import check_pair
from fsframework.metrics.ssim import check_size

PIXELS_AT_ONCE = 2**20
"""Frames are compared in groups of about so many pixels, so that memory does not grow with the length of a video."""
PREWITT = ((1 / 3, 0.0, -1 / 3),) * 3
SCHARR = ((3 / 16, 0.0, -3 / 16), (10 / 16, 0.0, -10 / 16), (3 / 16, 0.0, -3 / 16))
"""Horizontal derivatives; the vertical one is the transpose."""


def mean_over_frames(
    score: Callable[[Tensor, Tensor], Tensor], video: Tensor, reference: Tensor | None, metric: str, least: int
) -> float:
    """Mean over frames of `score(video_TCHW, reference_TCHW) -> [T]`, both in 0 to 255 as the papers' constants want it.

    Raises ValueError for a pair that can not be compared or frames with a side below `least` pixels.
    """
    video, reference = check_pair(video, reference, metric)
    at_once = max(1, PIXELS_AT_ONCE // (video.shape[1] * video.shape[2]))
    scores = []
    for frames, references in zip(video.split(at_once), reference.split(at_once)):
        frames_TCHW, references_TCHW = (255 * x.permute(0, 3, 1, 2) for x in (frames, references))
        check_size(frames_TCHW, least, metric)
        scores.append(score(frames_TCHW, references_TCHW))
    return float(torch.cat(scores).mean())


def channel(images_TCHW: Tensor, weights: Sequence[float]) -> Tensor:
    """A weighted sum of red, green and blue, [T, 1, H, W]."""
    return torch.einsum("tchw,c->thw", images_TCHW, images_TCHW.new_tensor(weights))[:, None]


def luma(images_TCHW: Tensor) -> Tensor:
    """The grey value of BT.601, [T, 1, H, W]."""
    return channel(images_TCHW, (0.299, 0.587, 0.114))


def gradient_magnitude(images_T1HW: Tensor, kernel: Sequence[Sequence[float]]) -> Tensor:
    """Length of the gradient at every pixel, black beyond the frame; [T, 1, H, W]."""
    across = images_T1HW.new_tensor(kernel)[None, None]
    dx, dy = (conv2d(images_T1HW, k, padding=1) for k in (across, across.mT))
    return (dx.square() + dy.square()).sqrt()


def shrink(images_TCHW: Tensor, factor: int | None = None) -> Tensor:
    """Means of blocks of `factor` x `factor` pixels; by default as many as bring the shorter side near 256."""
    if factor is None:
        factor = max(1, round(min(images_TCHW.shape[-2:]) / 256))
    return images_TCHW if factor == 1 else avg_pool2d(images_TCHW, factor)


def similarity(a: Tensor, b: Tensor, constant: float) -> Tensor:
    """(2ab + c) / (a^2 + b^2 + c): 1 where equal, towards 0 where one is far larger, blind to values far below sqrt(c)."""
    return (2 * a * b + constant) / (a.square() + b.square() + constant)
