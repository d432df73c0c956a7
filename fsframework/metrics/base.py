"""`Metric`: the interface to every quality metric, and `METRICS`, which finds them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fsframework.core.registry import Registry
from fsframework.metrics.statistics import Interval, bootstrap


class Metric(ABC):
    """Judges one video, alone or against its reference.

    One metric is one file: subclass, set the class attributes, register::

        @METRICS.register("psnr")
        class PSNR(Metric): ...

    A full-reference metric is always taken against the full-compute video of the same prompt and seed.
    """

    name: ClassVar[str]
    """What it is registered under."""
    unit: ClassVar[str] = ""
    """Unit of its values: `dB`, or empty for a plain number."""
    higher_is_better: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    description: ClassVar[str] = ""
    """One sentence: what is measured, over what, and what the extremes mean."""
    keys: ClassVar[tuple[str, ...]] = ()
    """Names of the values it returns; empty stands for its own name alone."""

    @classmethod
    def value_names(cls) -> tuple[str, ...]:
        """`keys`, or the metric's name."""
        return cls.keys or (cls.name,)

    def available(self) -> str | None:
        """None if it can run here; otherwise what to install, in one sentence. Never downloads anything."""
        return None

    def applies_to(self, prompt: str) -> bool:
        """Whether it is defined for a video of this prompt."""
        del prompt
        return True

    @abstractmethod
    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """The values of one video, one for each name in `value_names()`.

        `video` and `reference` are float32 [T, H, W, 3] in [0, 1]; reference is None only if `needs_reference` is False.
        A metric that only judges sets (see `of_set`) gives none.
        """

    def features(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, np.ndarray]:
        """What `of_set` needs to know of one video; the run keeps it in `features/`. Nothing, by default."""
        del video, reference, prompt
        return {}

    def of_set(self, features: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, Interval], list[str]]:
        """Values of a run's videos as a set, by name, and sentences on why one of them is missing.

        `features` has an entry for each video that gave any, in the order of the videos.
        """
        del features
        return {}, []

    def aggregate(self, values: Sequence[float]) -> Interval:
        """One number and interval for several videos; NaN values (not measured) are left out. The mean, by default."""
        return bootstrap(values)


METRICS: Registry[type[Metric]] = Registry("metric")


def aggregate(metrics: Sequence[Metric], per_video: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Entries of `metrics.json` for what `metrics` gave per video; a value missing from a video counts as not measured.

    Each metric reduces its values its own way (`Metric.aggregate`): PSNR pools squared errors, adherence takes the share
    with Wilson's interval, the others a mean with a bootstrap interval. A value no video has is left out.
    """
    entries: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        for key in metric.value_names():
            values = [float(video[key]) for video in per_video if key in video]
            summary = metric.aggregate(values)
            if summary.n:
                entries[key] = summary.entry(metric.unit, "higher" if metric.higher_is_better else "lower")
    return entries


def check_pair(video: Tensor, reference: Tensor | None, metric: str) -> tuple[Tensor, Tensor]:
    """Both videos as float64 on the same device; ValueError unless they are [T, H, W, 3] of one shape, in [0, 1]."""
    if reference is None:
        raise ValueError(f"{metric} compares with the reference, the full-compute video of the same seed; got None")
    if video.shape != reference.shape:
        raise ValueError(
            f"{metric} needs a video and a reference of one shape; got {tuple(video.shape)} and "
            f"{tuple(reference.shape)}. Was the reference made with other sampling settings?"
        )
    for what, clip in (("video", video), ("reference", reference)):
        check_clip(clip, f"{metric}: the {what}")
    return video.double(), reference.to(video.device).double()


def check_clip(clip: Tensor, what: str) -> None:
    """ValueError unless `clip` is a float tensor [T, H, W, 3] with finite values in [0, 1]."""
    if clip.ndim != 4 or clip.shape[-1] != 3 or not clip.is_floating_point():
        raise ValueError(f"{what} must be float [frames, height, width, 3]; got {clip.dtype} {tuple(clip.shape)}")
    low, high = float(clip.min()), float(clip.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"{what} must have pixels in [0, 1]; found {low:.3g} to {high:.3g}. Divide 8-bit frames by 255."
        )
