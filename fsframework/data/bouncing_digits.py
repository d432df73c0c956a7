"""Bouncing digits: 16 frames of one handwritten digit that moves up and down or left and right, with a caption.

The task is the single-digit benchmark of TGANs-C (arXiv:1804.08264), 10 digits x 2 motions, on the handwritten digits
that ship with scikit-learn (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0), so nothing is downloaded.
A digit of 14 x 14 pixels moves 2 pixels a frame on a black 32 x 32 canvas and bounces at the border.

Positions lie on a grid of 2 pixels along both axes, so a whole image has `NUM_POSITIONS` x `NUM_POSITIONS` distinct
frames per digit image and a trainer can encode all of them once (`grid_frames`, `clip_positions`).

Shape suffixes: N clips or images, T frames, H height, W width, C channels, Y and X grid positions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

CANVAS_PIXELS = 32
DIGIT_PIXELS = 14
SPEED_PIXELS = 2
"""Pixels that the digit moves from one frame to the next."""
NUM_FRAMES = 16
MOTIONS = ("up and down", "left and right")
NUM_POSITIONS = (CANVAS_PIXELS - DIGIT_PIXELS) // SPEED_PIXELS + 1
"""Places of the digit along one axis: 0, 2, ..., 18 pixels from the border."""
NUM_PHASES = 2 * (NUM_POSITIONS - 1)
"""Distinct starts of a clip along its axis of motion: a position and a direction."""

HELD_OUT_PAIRS: tuple[tuple[int, str], ...] = ((2, "up and down"), (5, "left and right"), (9, "up and down"))
"""Digit and motion pairs whose caption no training stage sees; each digit and each motion is seen in other pairs."""

Split = Literal["train", "eval"]
_EVAL_IMAGES_PER_DIGIT = 40
_CAPTION = re.compile(rf"digit ([0-9]) is moving ({'|'.join(MOTIONS)})")


def caption(digit: int, motion: str) -> str:
    """The benchmark's sentence, such as "digit 6 is moving up and down"."""
    if digit not in range(10) or motion not in MOTIONS:
        raise ValueError(f"no caption for digit {digit!r} moving {motion!r}; digits are 0 to 9, motions {MOTIONS}.")
    return f"digit {digit} is moving {motion}"


def parse_caption(text: str) -> tuple[int, str] | None:
    """The (digit, motion) that a caption asks for, or None if `text` is not exactly one of the 20 captions."""
    match = _CAPTION.fullmatch(text.strip().lower())
    return (int(match[1]), match[2]) if match else None


def all_pairs() -> list[tuple[int, str]]:
    """The 20 (digit, motion) pairs, digits first."""
    return [(digit, motion) for digit in range(10) for motion in MOTIONS]


def training_pairs() -> list[tuple[int, str]]:
    """The pairs that may be trained on: all but `HELD_OUT_PAIRS`."""
    return [pair for pair in all_pairs() if pair not in HELD_OUT_PAIRS]


@dataclass(frozen=True)
class DigitImages:
    """Handwritten digits of one split: `images_NHW` float32 in [0, 1], 14 x 14; `labels_N` int64."""

    images_NHW: np.ndarray
    labels_N: np.ndarray


@lru_cache(maxsize=2)
def digit_images(split: Split) -> DigitImages:
    """The digits of one split, upsampled from 8 x 8 (bicubic); no image is in both splits.

    The last 40 images of every digit, in the dataset's order, are "eval"; the other 1,397 are "train".
    """
    import torch
    from sklearn.datasets import load_digits

    if split not in ("train", "eval"):
        raise ValueError(f"unknown split {split!r} of the digits; use 'train' or 'eval'.")
    data = load_digits()
    is_eval_N = np.zeros(len(data.target), dtype=bool)
    for digit in range(10):
        is_eval_N[np.flatnonzero(data.target == digit)[-_EVAL_IMAGES_PER_DIGIT:]] = True
    chosen_N = is_eval_N if split == "eval" else ~is_eval_N
    small_NHW = torch.from_numpy(data.images[chosen_N] / 16.0).float()
    images_NHW = torch.nn.functional.interpolate(
        small_NHW[:, None], size=(DIGIT_PIXELS, DIGIT_PIXELS), mode="bicubic", align_corners=False
    )[:, 0].clamp(0, 1)
    return DigitImages(images_NHW.numpy(), data.target[chosen_N].astype(np.int64))


def bounce(phase: np.ndarray | int, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Grid positions [..., T] of a digit that starts at `phase` and is reflected at both borders.

    Phases 0 to 9 start at that grid position moving away from the origin, phases 10 to 17 start at position
    18 - phase moving back, so `bounce(8, 4)` is 8 9 8 7. One grid position is `SPEED_PIXELS` pixels.
    """
    last = NUM_POSITIONS - 1
    steps = np.asarray(phase)[..., None] + np.arange(num_frames)
    return last - np.abs(steps % NUM_PHASES - last)


def clip_positions(
    motions: np.ndarray, phases: np.ndarray, crosses: np.ndarray, num_frames: int = NUM_FRAMES
) -> tuple[np.ndarray, np.ndarray]:
    """Grid rows and columns, each [N, T], of clips with motion index [N], phase [N] and cross position [N].

    The cross position is the grid position on the axis along which the digit does not move.
    """
    moving_NT = bounce(phases, num_frames)
    still_NT = np.broadcast_to(np.asarray(crosses)[:, None], moving_NT.shape)
    vertical_N1 = (np.asarray(motions) == MOTIONS.index("up and down"))[:, None]
    return np.where(vertical_N1, moving_NT, still_NT), np.where(vertical_N1, still_NT, moving_NT)


def render(images_NHW: np.ndarray, rows_NT: np.ndarray, columns_NT: np.ndarray) -> np.ndarray:
    """Paste each 14 x 14 image at its grid positions: float32 [N, T, 32, 32, 3] in [0, 1], white on black."""
    num_clips, num_frames = rows_NT.shape
    canvas_NTHW = np.zeros((num_clips, num_frames, CANVAS_PIXELS, CANVAS_PIXELS), dtype=np.float32)
    offsets = np.arange(DIGIT_PIXELS)
    clip_index = np.arange(num_clips)[:, None, None, None]
    frame_index = np.arange(num_frames)[None, :, None, None]
    y_NTHW = (rows_NT * SPEED_PIXELS)[:, :, None, None] + offsets[:, None]
    x_NTHW = (columns_NT * SPEED_PIXELS)[:, :, None, None] + offsets[None, :]
    canvas_NTHW[clip_index, frame_index, y_NTHW, x_NTHW] = images_NHW[:, None]
    return np.repeat(canvas_NTHW[..., None], 3, axis=-1)


def grid_frames(images_NHW: np.ndarray) -> np.ndarray:
    """Every frame that clips of these images can contain: float32 [N, Y, X, 32, 32, 3]."""
    rows_YX, columns_YX = np.meshgrid(np.arange(NUM_POSITIONS), np.arange(NUM_POSITIONS), indexing="ij")
    num_images = len(images_NHW)
    rows_NT = np.broadcast_to(rows_YX.ravel(), (num_images, NUM_POSITIONS**2))
    columns_NT = np.broadcast_to(columns_YX.ravel(), (num_images, NUM_POSITIONS**2))
    frames = render(images_NHW, rows_NT, columns_NT)
    return frames.reshape(num_images, NUM_POSITIONS, NUM_POSITIONS, *frames.shape[2:])


@dataclass(frozen=True)
class ClipPlan:
    """What a batch of clips shows, before rendering: which image, how it moves, where it starts."""

    image_index_N: np.ndarray
    digits_N: np.ndarray
    motions_N: np.ndarray
    """Indices into `MOTIONS`."""
    rows_NT: np.ndarray
    columns_NT: np.ndarray

    def captions(self) -> list[str]:
        """The caption of every clip."""
        return [caption(int(digit), MOTIONS[motion]) for digit, motion in zip(self.digits_N, self.motions_N)]


def sample_plan(
    rng: np.random.Generator,
    num_clips: int,
    split: Split = "train",
    pairs: list[tuple[int, str]] | None = None,
    num_frames: int = NUM_FRAMES,
) -> ClipPlan:
    """Draw clips: a pair uniformly from `pairs` (default: `training_pairs()`), then image, phase and cross position."""
    pairs = training_pairs() if pairs is None else pairs
    labels = digit_images(split).labels_N
    chosen_N = rng.integers(len(pairs), size=num_clips)
    digits_N = np.array([pairs[i][0] for i in chosen_N], dtype=np.int64)
    motions_N = np.array([MOTIONS.index(pairs[i][1]) for i in chosen_N], dtype=np.int64)
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    image_index_N = np.array([by_digit[digit][rng.integers(len(by_digit[digit]))] for digit in digits_N])
    phases_N = rng.integers(NUM_PHASES, size=num_clips)
    crosses_N = rng.integers(NUM_POSITIONS, size=num_clips)
    rows_NT, columns_NT = clip_positions(motions_N, phases_N, crosses_N, num_frames)
    return ClipPlan(image_index_N, digits_N, motions_N, rows_NT, columns_NT)


def sample_clips(
    seed: int,
    num_clips: int,
    split: Split = "train",
    pairs: list[tuple[int, str]] | None = None,
    num_frames: int = NUM_FRAMES,
) -> tuple[np.ndarray, list[str]]:
    """Real clips, float32 [N, T, 32, 32, 3] in [0, 1], and their captions; the same seed gives the same clips."""
    plan = sample_plan(np.random.default_rng(seed), num_clips, split, pairs, num_frames)
    images_NHW = digit_images(split).images_NHW[plan.image_index_N]
    return render(images_NHW, plan.rows_NT, plan.columns_NT), plan.captions()
