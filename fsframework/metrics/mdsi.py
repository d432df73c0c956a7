"""Mean deviation similarity index (Nafchi, Shahkolaei, Hedjam, Cheriet 2016, arXiv:1608.07433) against the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from fsframework.metrics.base import METRICS, Metric
from fsframework.metrics.images import PREWITT, channel, gradient_magnitude, mean_over_frames, shrink, similarity

C1, C2, C3 = 140.0, 55.0, 550.0
"""The paper's constants for the two gradient similarities and the colour similarity, pixels in 0 to 255."""
GRADIENT_SHARE = 0.6
"""Weight of gradients, the rest is colour's."""
EXPONENT = 0.25
_LUMINANCE, _H, _M = (0.2989, 0.5870, 0.1140), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17)


@METRICS.register("mdsi")
class MDSI(Metric):
    """Mean absolute deviation of a map of gradient and colour similarity, to the power 1/4.

    Like GMSD it looks at how unevenly a frame was damaged, but it sees colour, and the direction in which gradients
    changed through a third picture, the mean of both, which makes it slightly asymmetric. The power stretches small
    differences: 0.1 is hardly visible.
    """

    name = "mdsi"
    higher_is_better = False
    description = "Mean deviation similarity index of gradients and colour, mean over frames; identical is 0."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"mdsi": 0 to about 1}. Frames must be at least 8 x 8."""
        del prompt
        return {"mdsi": mean_over_frames(_deviation, video, reference, self.name, 8)}


def _deviation(video_TCHW: Tensor, reference_TCHW: Tensor) -> Tensor:
    video, reference = shrink(video_TCHW), shrink(reference_TCHW)
    grey_a, grey_b = (channel(x, _LUMINANCE) for x in (video, reference))
    a, b, both = (gradient_magnitude(x, PREWITT) for x in (grey_a, grey_b, (grey_a + grey_b) / 2))
    gradients = similarity(a, b, C1) + similarity(a, both, C2) - similarity(b, both, C2)
    h_a, h_b, m_a, m_b = (channel(x, axis) for axis in (_H, _M) for x in (video, reference))
    colours = (2 * (h_a * h_b + m_a * m_b) + C3) / (h_a.square() + h_b.square() + m_a.square() + m_b.square() + C3)
    combined = GRADIENT_SHARE * gradients + (1 - GRADIENT_SHARE) * colours
    # The sum can be below 0; its root is then complex, and a deviation is a distance in the complex plane.
    roots = torch.complex(combined, torch.zeros_like(combined)).flatten(1) ** EXPONENT
    return (roots - roots.mean(dim=1, keepdim=True)).abs().mean(dim=1) ** EXPONENT
