"""Gradient magnitude similarity deviation (Xue, Zhang, Mou, Bovik 2014, arXiv:1308.3052) against the reference."""

from __future__ import annotations

from torch import Tensor

from fsframework.metrics.base import METRICS, Metric
from fsframework.metrics.images import PREWITT, gradient_magnitude, luma, mean_over_frames, shrink, similarity

CONSTANT = 170.0
"""The paper's c, for pixels in 0 to 255."""


@METRICS.register("gmsd")
class GMSD(Metric):
    """Standard deviation over a frame of the similarity of gradient magnitudes, on grey frames halved in size.

    A change that is equal everywhere (a constant added, a uniform blur) hardly counts; damage in places does.
    """

    name = "gmsd"
    higher_is_better = False
    description = (
        "Gradient magnitude similarity deviation of grey frames, mean over frames; identical is 0, 0.1 is visible."
    )

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"gmsd": 0 to about 0.5}. Frames must be at least 8 x 8."""
        del prompt
        return {"gmsd": mean_over_frames(_deviation, video, reference, self.name, 8)}


def _deviation(video_TCHW: Tensor, reference_TCHW: Tensor) -> Tensor:
    a, b = (gradient_magnitude(shrink(luma(x), 2), PREWITT) for x in (video_TCHW, reference_TCHW))
    return similarity(a, b, CONSTANT).flatten(1).std(dim=1)
