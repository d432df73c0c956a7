"""Visual saliency-induced index (Zhang, Shen, Li 2014, IEEE Trans. Image Processing 23) against the reference.

Saliency is SDSP (Zhang, Gu, Li 2013): a band-pass filter of the colours, the middle of the frame, and warm colours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fsframework.metrics.base import METRICS, Metric
from fsframework.metrics.images import SCHARR, channel, gradient_magnitude, mean_over_frames, shrink, similarity

C1, C2, C3 = 1.27, 386.0, 130.0
"""The paper's constants for saliency, gradients and colours, pixels in 0 to 255."""
GRADIENT_EXPONENT, COLOUR_EXPONENT = 0.40, 0.02
_L, _M, _N = (0.06, 0.63, 0.27), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17)
_SALIENCY_SIDE = 256
_OMEGA0, _SIGMA_F, _SIGMA_D, _SIGMA_C = 0.0210, 1.34, 145.0, 0.001
"""SDSP's band-pass centre and width, width of the middle in pixels of the 256 x 256 map, and of warm colours."""


@METRICS.register("vsi")
class VSI(Metric):
    """Similarity of saliency, gradients and colours at every place, weighted by how salient the place is.

    Values crowd near 1: on the usual picture sets 0.9 is badly damaged. Saliency prefers the middle of the frame.
    """

    name = "vsi"
    description = "Visual saliency-induced index with colour, mean over frames; identical is 1, 0.9 is bad."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"vsi": 0 to 1}. Frames must be at least 8 x 8."""
        del prompt
        return {"vsi": mean_over_frames(_index, video, reference, self.name, 8)}


def _index(video_TCHW: Tensor, reference_TCHW: Tensor) -> Tensor:
    saliency_a, saliency_b = (shrink(_saliency(x)) for x in (video_TCHW, reference_TCHW))
    video, reference = shrink(video_TCHW), shrink(reference_TCHW)
    a, b = (gradient_magnitude(channel(x, _L), SCHARR) for x in (video, reference))
    colours = torch.ones_like(a)
    for axis in (_M, _N):
        colours = colours * similarity(channel(video, axis), channel(reference, axis), C3)
    # Opposite colours give a product below 0. The paper's code takes the real part of its complex power, so do we.
    turned = torch.where(colours < 0, math.cos(math.pi * COLOUR_EXPONENT), 1.0)
    values = (
        similarity(saliency_a, saliency_b, C1)
        * similarity(a, b, C2) ** GRADIENT_EXPONENT
        * colours.abs() ** COLOUR_EXPONENT
        * turned
    )
    weights = torch.maximum(saliency_a, saliency_b)
    return (values * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def _saliency(images_TCHW: Tensor) -> Tensor:
    """How much each pixel draws the eye, 0 to 1, [T, 1, H, W]."""
    size = images_TCHW.shape[-2:]
    side = (_SALIENCY_SIDE, _SALIENCY_SIDE)
    # Single precision is plenty for a weight, and this is where all of the metric's time goes.
    lab_TCHW = _lab(interpolate(images_TCHW.float(), side, mode="bilinear", align_corners=False) / 255)
    spectrum = torch.fft.rfft2(lab_TCHW) * _log_gabor(lab_TCHW)
    band = torch.fft.irfft2(spectrum, s=side).square().sum(dim=1, keepdim=True).sqrt()
    place = torch.arange(1, _SALIENCY_SIDE + 1, dtype=band.dtype, device=band.device) - _SALIENCY_SIDE / 2
    middle = torch.exp(-(place[:, None].square() + place.square()) / _SIGMA_D**2)
    a, b = (_stretched(lab_TCHW[:, i : i + 1]) for i in (1, 2))
    warm = 1 - torch.exp(-(a.square() + b.square()) / _SIGMA_C)
    whole = interpolate(band * middle * warm, size, mode="bilinear", align_corners=False).to(images_TCHW.dtype)
    # A frame of one colour has no saliency to stretch: every place counts alike.
    flat = whole.amax((1, 2, 3), keepdim=True) - whole.amin((1, 2, 3), keepdim=True) <= 1e-4
    return torch.where(flat, torch.ones_like(whole), _stretched(whole))


def _stretched(images_T1HW: Tensor) -> Tensor:
    """Each image's least value as 0 and its largest as 1; 0 where all are equal."""
    low, high = (f(images_T1HW, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return (images_T1HW - low) / (high - low).clamp(min=1e-12)


def _log_gabor(like: Tensor) -> Tensor:
    """SDSP's band-pass filter over the frequencies of `torch.fft.rfft2`, 0 at frequency 0 and beyond half the rate."""
    down, across = (
        f(_SALIENCY_SIDE, dtype=like.dtype, device=like.device) for f in (torch.fft.fftfreq, torch.fft.rfftfreq)
    )
    radius = (down[:, None].square() + across.square()).sqrt()
    inside = (radius > 0) & (radius <= 0.5)
    distance = (radius.clamp(min=1e-12) / _OMEGA0).log()
    return torch.where(inside, torch.exp(-distance.square() / (2 * _SIGMA_F**2)), 0.0)


def _lab(rgb_TCHW: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB in 0 to 1."""
    linear = torch.where(rgb_TCHW <= 0.04045, rgb_TCHW / 12.92, ((rgb_TCHW + 0.055) / 1.055) ** 2.4)
    matrix = rgb_TCHW.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    white = rgb_TCHW.new_tensor([0.950456, 1.0, 1.088754])
    xyz = torch.einsum("tchw,dc->tdhw", linear, matrix) / white[:, None, None]
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), (903.3 * xyz + 16) / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
