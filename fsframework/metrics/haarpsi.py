"""Haar wavelet-based perceptual similarity index (Reisenhofer, Bosse, Kutyniok, Wiegand 2018, arXiv:1607.06140)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from fsframework.metrics.base import METRICS, Metric
from fsframework.metrics.images import channel, luma, mean_over_frames, shrink, similarity

CONSTANT = 30.0
"""The paper's C, for pixels in 0 to 255."""
ALPHA = 4.2
"""Slope of the logistic function, from the paper."""
_IN_PHASE, _QUADRATURE = (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)


@METRICS.register("haarpsi")
class HaarPSI(Metric):
    """Similarity of Haar wavelet coefficients of the two finest scales, weighted by those of the third, with colour.

    Frames are halved in size first, as for a screen at the usual distance. Of the metrics here that need no trained
    weights it agrees best, or nearly so, with what people say about still pictures.
    """

    name = "haarpsi"
    description = "Haar wavelet perceptual similarity with colour, mean over frames; identical is 1."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"haarpsi": 0 to 1}. Frames must be at least 16 x 16."""
        del prompt
        return {"haarpsi": mean_over_frames(_index, video, reference, self.name, 16)}


def _index(video_TCHW: Tensor, reference_TCHW: Tensor) -> Tensor:
    video, reference = shrink(video_TCHW, 2), shrink(reference_TCHW, 2)
    grey_a, grey_b = luma(video), luma(reference)
    similarities, weights = [], []
    for upright in (False, True):
        a, b = ([_haar(grey, scale, upright) for scale in (1, 2, 3)] for grey in (grey_a, grey_b))
        similarities.append((similarity(a[0], b[0], CONSTANT) + similarity(a[1], b[1], CONSTANT)) / 2)
        weights.append(torch.maximum(a[2], b[2]))
    colours = []
    for axis in (_IN_PHASE, _QUADRATURE):
        colour_a, colour_b = (_means(channel(x, axis)).abs() for x in (video, reference))
        colours.append(similarity(colour_a, colour_b, CONSTANT))
    similarities.append((colours[0] + colours[1]) / 2)
    weights.append((weights[0] + weights[1]) / 2)
    similarity_T3HW, weight_T3HW = torch.cat(similarities, 1), torch.cat(weights, 1)
    weight_T3HW = weight_T3HW + 1e-9  # a frame without structure in either video: every place counts alike
    share_T = (torch.sigmoid(ALPHA * similarity_T3HW) * weight_T3HW).sum((1, 2, 3)) / weight_T3HW.sum((1, 2, 3))
    return (torch.logit(share_T) / ALPHA).square()


def _haar(grey_T1HW: Tensor, scale: int, upright: bool) -> Tensor:
    """Magnitude of the Haar coefficients: one half of a square of 2^scale pixels less the other half, / 2^scale."""
    side = 2**scale
    kernel = grey_T1HW.new_full((side, side), 2.0**-scale)
    kernel[: side // 2] *= -1
    return _same(grey_T1HW, kernel.T if upright else kernel).abs()


def _means(image_T1HW: Tensor) -> Tensor:
    return _same(image_T1HW, image_T1HW.new_full((2, 2), 0.25))


def _same(image_T1HW: Tensor, kernel: Tensor) -> Tensor:
    """Convolution with an even square, black beyond the frame, of the image's size."""
    side = len(kernel)
    before, after = (side - 1) // 2, side // 2
    return conv2d(pad(image_T1HW, (before, after, before, after)), kernel[None, None])
