"""Peak signal-to-noise ratio against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fsframework.metrics.base import METRICS, Metric, check_pair
from fsframework.metrics.statistics import Interval, bootstrap


@METRICS.register("psnr")
class PSNR(Metric):
    """10 log10(1 / MSE) in dB, the mean squared error taken over all frames, pixels and channels of the clip.

    Over several videos the squared errors are pooled: 10 log10(1 / mean MSE). A mean of decibels would be pulled up
    without bound by a few near-identical clips, and be infinite as soon as one clip equals its reference; pooling weighs
    every clip by its error: the PSNR of the clips played one after another, never above the mean of their PSNRs.
    """

    name = "psnr"
    unit = "dB"
    description = "Peak signal-to-noise ratio, squared errors pooled over the clip and over clips; identical is inf."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"psnr": dB}, inf for identical videos."""
        del prompt
        video, reference = check_pair(video, reference, self.name)
        return {"psnr": from_mse(float((video - reference).square().mean()))}

    def aggregate(self, values: Sequence[float]) -> Interval:
        """Pooled over videos; the interval resamples videos and pools each resample."""
        mse = np.power(10.0, -np.asarray(values, dtype=np.float64) / 10)
        pooled = bootstrap(mse)
        # The largest error is the lowest PSNR, so the ends change places.
        return Interval(from_mse(pooled.mean), from_mse(pooled.high), from_mse(pooled.low), pooled.n)


def from_mse(mse: float) -> float:
    """PSNR in dB of a mean squared error of pixels in [0, 1]; inf for 0, NaN for NaN."""
    return math.inf if mse == 0 else -10 * math.log10(mse)
