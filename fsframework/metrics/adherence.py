"""Prompt adherence on the bouncing digits task: is it the digit, and does it move, as the caption says?

Digit: a support vector machine that never saw the generator, on the 14 x 14 window of largest mass of every frame,
its scores averaged over frames. Motion: the axis of the centroid's track.

Shape suffixes: N crops, T frames, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fsframework.data import bouncing_digits
from fsframework.data.bouncing_digits import DIGIT_PIXELS, MOTIONS

MIN_AXIS_RATIO = 0.9
"""Share of the centroid's variance that must lie along the axis that the caption names."""
MIN_AMPLITUDE_PIXELS = 2.0
"""Least distance between the extremes of the centroid along that axis."""
_BLACK_LEVEL = 0.1
"""Brightness below this counts as background, so that faint noise far from the digit does not pull the centroid."""
_PADDING = DIGIT_PIXELS // 2


@dataclass(frozen=True)
class Adherence:
    """Whether one video shows what its caption says."""

    digit: bool
    motion: bool

    @property
    def both(self) -> bool:
        """The right digit moving the right way."""
        return self.digit and self.motion


def is_digits_prompt(prompt: str) -> bool:
    """Whether `prompt` is one of the 20 captions of the bouncing digits, the only ones that can be scored."""
    return bouncing_digits.parse_caption(prompt) is not None


def mass_windows(brightness_THW: np.ndarray) -> np.ndarray:
    """The 14 x 14 window with the largest sum of every frame, [T, 14, 14].

    Many windows hold all of a narrow digit; the middle one is taken, so a digit gives the same crop wherever it is.
    """
    padded_THW = np.pad(brightness_THW, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
    sums_THW = np.pad(padded_THW, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    size = DIGIT_PIXELS
    mass_THW = (
        sums_THW[:, size:, size:]
        - sums_THW[:, :-size, size:]
        - sums_THW[:, size:, :-size]
        + sums_THW[:, :-size, :-size]
    )
    views = sliding_window_view(padded_THW, (size, size), axis=(1, 2))
    crops = []
    for mass_HW, view in zip(mass_THW, views):
        rows, columns = np.nonzero(mass_HW >= 0.99 * mass_HW.max())
        crops.append(view[round(float(rows.mean())), round(float(columns.mean()))])
    return np.stack(crops)


def centroid_track(brightness_THW: np.ndarray) -> np.ndarray:
    """Centre of mass of every frame in pixels, [T, 2] as (row, column); a black frame repeats the one before."""
    height, width = brightness_THW.shape[1:]
    mass_T = brightness_THW.sum((1, 2))
    rows_T = (brightness_THW.sum(2) @ np.arange(height)) / np.maximum(mass_T, 1e-6)
    columns_T = (brightness_THW.sum(1) @ np.arange(width)) / np.maximum(mass_T, 1e-6)
    track = np.stack([rows_T, columns_T], axis=1)
    for index in range(1, len(track)):
        if mass_T[index] < 1e-3:
            track[index] = track[index - 1]
    return track


def motion_of(track: np.ndarray) -> str | None:
    """The motion that a centroid track [T, 2] in pixels shows, one of `MOTIONS`, or None if it is neither."""
    variance = track.var(axis=0)
    amplitude = np.ptp(track, axis=0)
    for axis, motion in enumerate(MOTIONS):
        ratio = variance[axis] / max(float(variance.sum()), 1e-12)
        if ratio > MIN_AXIS_RATIO and amplitude[axis] > MIN_AMPLITUDE_PIXELS:
            return motion
    return None


@lru_cache(maxsize=1)
def _fitted_classifier() -> Any:
    """The support vector machine, fitted on the training digits and copies shifted by a pixel (about a second)."""
    from sklearn.svm import SVC

    data = bouncing_digits.digit_images("train")
    crops_NHW = mass_windows(np.pad(data.images_NHW, ((0, 0), (9, 9), (9, 9))))
    padded_NHW = np.pad(crops_NHW, ((0, 0), (1, 1), (1, 1)))
    size = DIGIT_PIXELS
    shifts = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    features = np.concatenate([padded_NHW[:, y : y + size, x : x + size] for y, x in shifts]).reshape(-1, size * size)
    return SVC(C=10.0, gamma="scale").fit(features, np.tile(data.labels_N, len(shifts)))


class PromptAdherence:
    """Scores videos of bouncing digits against their captions.

    The classifier is fitted on first use and shared by the process. On real clips of the evaluation digits, images
    that neither it nor any generator was trained on, the digit is right for 96 % and the motion for all.
    """

    def digit_scores(self, video: Any) -> np.ndarray:
        """One-against-rest score of each digit in every frame, [T, 10]; the largest names the digit."""
        crops_NHW = mass_windows(_brightness(video))
        scores: np.ndarray = _fitted_classifier().decision_function(crops_NHW.reshape(len(crops_NHW), -1))
        return scores

    def score(self, video: Any, prompt: str) -> Adherence:
        """Judge `video`, a float array or tensor [T, H, W, 3] in [0, 1], against `prompt`.

        Raises ValueError if the prompt is not one of the captions, or if the video has another shape or range.
        """
        wanted = bouncing_digits.parse_caption(prompt)
        if wanted is None:
            raise ValueError(
                "adherence is defined for the captions of the bouncing digits only, such as "
                f"{bouncing_digits.caption(6, MOTIONS[0])!r}; the prompt is {prompt!r}."
            )
        digit = int(self.digit_scores(video).mean(axis=0).argmax())
        motion = motion_of(centroid_track(_brightness(video)))
        return Adherence(digit=digit == wanted[0], motion=motion == wanted[1])


def _brightness(video: Any) -> np.ndarray:
    """Mean over channels with the background set to 0: float64 [T, H, W]."""
    array = np.asarray(video.detach().cpu() if hasattr(video, "detach") else video, dtype=np.float64)
    if array.ndim != 4 or array.shape[-1] != 3 or min(array.shape[1:3]) < DIGIT_PIXELS:
        raise ValueError(
            f"adherence needs a video [frames, height, width, 3] of at least {DIGIT_PIXELS} x {DIGIT_PIXELS} pixels; "
            f"its shape is {array.shape}."
        )
    if array.min() < -0.01 or array.max() > 1.01:
        raise ValueError(
            f"adherence needs pixels in [0, 1]; they range from {array.min():.3g} to {array.max():.3g}. "
            "Divide 8-bit frames by 255."
        )
    brightness_THW = array.mean(axis=-1)
    return np.where(brightness_THW > _BLACK_LEVEL, brightness_THW, 0.0)
