"""Sizes Open-Sora 1.2 was trained at, by name. Any other size and length may be given in numbers."""

from __future__ import annotations

import operator

from fsframework.core.registry import nearest

RATIOS = ("9:16", "16:9", "3:4", "4:3", "1:1")
"""Height to width: 9:16 is a wide video."""
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "144p": ((144, 256), (256, 144), (166, 221), (221, 165), (192, 192)),
    "240p": ((240, 426), (426, 240), (276, 368), (370, 278), (320, 320)),
    "360p": ((360, 640), (640, 360), (416, 554), (554, 416), (480, 480)),
    "480p": ((480, 854), (854, 480), (554, 738), (740, 555), (640, 640)),
    "720p": ((720, 1280), (1280, 720), (832, 1110), (1108, 832), (960, 960)),
}
"""Height and width in pixels, in the order of `RATIOS`."""
NUM_FRAMES = {
    "1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816,
    "2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816,
}  # fmt: skip
"""Lengths in frames, at 24 frames per second."""


def size_of(resolution: str, aspect_ratio: str = "9:16") -> tuple[int, int]:
    """Height and width in pixels of a named resolution.

    Raises:
        ValueError: unknown name.
    """
    if resolution not in SIZES:
        raise ValueError(
            f"unknown resolution {resolution!r}. {nearest(resolution, list(SIZES))} Or give height and width."
        )
    if aspect_ratio not in RATIOS:
        raise ValueError(
            f"unknown aspect_ratio {aspect_ratio!r}. {nearest(aspect_ratio, list(RATIOS))} It is height to width. Or give "
            f"height and width."
        )
    return SIZES[resolution][RATIOS.index(aspect_ratio)]


def resolve_size(
    height: int | None, width: int | None, resolution: str | None, aspect_ratio: str, least: int
) -> tuple[int, int]:
    """Height and width in pixels, given either so or by name; 240p if neither is.

    Raises:
        ValueError: one without the other, numbers and a name, a side below `least`, or an unknown name.
    """
    if height is None and width is None:
        return size_of(resolution or "240p", aspect_ratio)
    if height is None or width is None or resolution is not None:
        raise ValueError(
            f"give height and width, or resolution (and aspect_ratio); got height={height}, width={width}, "
            f"resolution={resolution!r}"
        )
    if min(height, width) < least:
        raise ValueError(f"height={height} and width={width} must both be at least {least}")
    return height, width


def num_frames_of(length: int | str) -> int:
    """Frames of a length given as a number or a name (`2s`, `4x`).

    Raises:
        ValueError: unknown name, or not a whole number (17.0 is none).
    """
    if isinstance(length, str):
        if length not in NUM_FRAMES:
            raise ValueError(
                f"unknown length {length!r}. {nearest(length, list(NUM_FRAMES))} Or give a number of frames."
            )
        return NUM_FRAMES[length]
    try:
        return operator.index(length)
    except TypeError:
        raise ValueError(
            f"num_frames={length!r} is a {type(length).__name__}; give a whole number of frames such as 51, or a name such "
            f"as '2s'"
        ) from None
