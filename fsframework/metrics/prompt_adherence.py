"""Prompt adherence of the bouncing digits as a metric: right digit, right motion."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from torch import Tensor

from fsframework.metrics.base import METRICS, Metric, check_clip
from fsframework.metrics.statistics import Interval, wilson


@METRICS.register("adherence")
class PromptAdherenceMetric(Metric):
    """Whether the video shows what its caption says; see `fsframework.metrics.adherence` for how it is judged.

    Needs no reference: it tells a method that changes the video from one that spoils it. Each value is 0 or 1 per video,
    and a share with Wilson's interval over videos.
    """

    name = "adherence"
    needs_reference = False
    keys = ("digit", "motion", "adherence")
    description = "Bouncing digits only: share of videos with the caption's digit, its motion, and both (adherence)."

    def available(self) -> str | None:
        """The classifier is fitted on scikit-learn's digits."""
        if importlib.util.find_spec("sklearn") is None:
            return "adherence fits its classifier with scikit-learn: pip install scikit-learn"
        return None

    def applies_to(self, prompt: str) -> bool:
        """Only the captions of the bouncing digits."""
        from fsframework.metrics.adherence import is_digits_prompt

        return is_digits_prompt(prompt)

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"digit": 0 or 1, "motion": 0 or 1, "adherence": 1 if both}."""
        from fsframework.metrics.adherence import PromptAdherence

        del reference
        check_clip(video, "adherence: the video")
        result = PromptAdherence().score(video, prompt)
        return {"digit": float(result.digit), "motion": float(result.motion), "adherence": float(result.both)}

    def aggregate(self, values: Sequence[float]) -> Interval:
        """Share of ones, Wilson's interval."""
        return wilson(values)
