"""Temporal flicker: how much a video changes from frame to frame, against its reference."""

from __future__ import annotations

import math

from torch import Tensor

from fsframework.metrics.base import METRICS, Metric, check_pair


@METRICS.register("flicker")
class Flicker(Metric):
    """Mean absolute difference of neighbouring frames, divided by the same of the reference.

    1 is the reference's own motion; above 1 frames flicker more than in the reference; below 1 motion was lost, which
    is no improvement either. A frozen reference has no scale to compare with and gives NaN (not measured).
    """

    name = "flicker"
    higher_is_better = False
    description = "Mean absolute frame-to-frame difference relative to the reference's; 1 is equal, above 1 flickers."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"flicker": ratio >= 0}, NaN if the reference does not move or has a single frame."""
        del prompt
        video, reference = check_pair(video, reference, self.name)
        if len(video) < 2:
            return {"flicker": math.nan}
        own, wanted = (float(clip.diff(dim=0).abs().mean()) for clip in (video, reference))
        return {"flicker": own / wanted if wanted > 0 else math.nan}
