"""Small clips by formula, so that numbers do not depend on a random generator."""

import math

import torch
from torch import Tensor


def waves(side: int = 64, num_frames: int = 2) -> Tensor:
    """Coloured waves of four sizes with a bright disc on them, moving a pixel per frame; float32 [T, side, side, 3]."""
    t, y, x = (torch.arange(n, dtype=torch.float64) for n in (num_frames, side, side))
    t, y, x = t[:, None, None], y[:, None], x[None, :]
    planes = []
    for phase in (0.0, 1.0, 2.5):
        plane = sum(torch.sin(k * (x + t) / 5 + phase * k) * torch.cos(k * y / 7 - phase) / k for k in (0.3, 1, 2, 5))
        disc = ((x - side / 2 + t).square() + (y - side / 3).square() < (side / 5) ** 2).double()
        planes.append(0.5 + 0.07 * plane + 0.25 * disc * math.cos(phase))
    return torch.stack(torch.broadcast_tensors(*planes), dim=-1).clamp(0, 1).float()


def noisy(clip: Tensor, amount: float) -> Tensor:
    """The clip with a fixed fine pattern on it that looks like noise, +- `amount`."""
    place = torch.arange(clip.numel(), dtype=torch.float64).reshape(clip.shape)
    pattern = torch.sin(place * 12.9898 + 78.233) * 43758.5453
    return (clip + amount * (2 * (pattern - pattern.floor()) - 1)).clamp(0, 1).float()


def blurred(clip: Tensor) -> Tensor:
    """Every pixel the mean of its 3 x 3 neighbourhood inside the frame."""
    images = clip.permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1)
