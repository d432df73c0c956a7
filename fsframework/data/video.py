"""Videos on disk: mp4 for people, lossless frames for measuring. Both appear under their name only when complete.

Shape suffixes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if the block succeeds and removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_video(path: Path, video: Tensor | np.ndarray, fps: int = 8, min_pixels: int = 1) -> None:
    """Write an mp4 (H.264, yuv420p, near-lossless quality) that every player and browser shows.

    Args:
        path: where to; appears when complete.
        video: float [T, H, W, 3] in [0, 1], or uint8.
        fps: frames per second.
        min_pixels: clips whose shorter side is below are enlarged by a whole factor, each pixel becoming a square.
            A side that is odd afterwards repeats its last row or column: the codec needs even sides.
    """
    import av

    frames_THWC = to_uint8(video)
    factor = max(1, -(-min_pixels // min(frames_THWC.shape[1:3])))
    frames_THWC = frames_THWC.repeat(factor, axis=1).repeat(factor, axis=2)
    odd = [(0, 0), (0, frames_THWC.shape[1] % 2), (0, frames_THWC.shape[2] % 2), (0, 0)]
    frames_THWC = np.pad(frames_THWC, odd, mode="edge")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "medium"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # The generator has gone by the time threads pay off on such sizes, and other work shares the cores.
        stream.thread_count = 1
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> np.ndarray:
    """The frames of a video file, uint8 [T, H, W, 3]."""
    import av

    if not path.is_file():
        raise ValueError(f"no such video: {path}")
    try:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error}") from None


def save_frames(path: Path, video: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Store a video exactly, in the smallest float type that loses nothing (safetensors)."""
    from safetensors.torch import save_file

    small = next((t for t in (video.half(), video.bfloat16()) if torch.equal(t.to(video.dtype), video)), video)
    with atomic_path(path) as temporary:
        save_file({"frames": small.contiguous()}, temporary, metadata=dict(metadata or {}))


def load_frames(path: Path) -> tuple[Tensor, dict[str, str]]:
    """(float32 [T, H, W, 3], metadata) of what `save_frames` wrote; ValueError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            frames: Tensor = file.get_tensor("frames")
            metadata: dict[str, Any] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can not be read ({error}); delete it to have it made again") from None
    return frames.float(), metadata


def to_uint8(video: Tensor | np.ndarray) -> np.ndarray:
    """[T, H, W, 3] as uint8, floats in [0, 1] rounded to the nearest of 256 levels."""
    array = video.detach().cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"a video is [frames, height, width, 3]; got shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    return (np.clip(array.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
