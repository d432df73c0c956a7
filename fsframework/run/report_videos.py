"""Which videos the report embeds, and how: data: URIs, every file once, within a budget of bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from fsframework.run.report_data import Clip, RunData
from fsframework.run.report_table import column, number, unit_of

MAX_BYTES = 3_000_000
"""All embedded videos together, before base64 adds a third."""
SHRINK_ABOVE_BYTES = 300_000
"""A larger file is encoded again at up to 256 pixels a side."""
SHRUNK_SIDE = 256

Key = tuple[str, int]
"""Prompt and seed: what the runs' videos are matched by."""


@dataclass
class Embedded:
    """The videos of a report, as its player wants them."""

    files: list[str] = field(default_factory=list)
    """data: URIs."""
    clips: list[dict[str, Any]] = field(default_factory=list)
    fps: float = 8.0
    num_frames: int = 0
    num_left_out: int = 0
    """Clips that did not fit into the budget."""
    shrunk: bool = False
    _known: dict[str, int] = field(default_factory=dict)
    _paths: dict[Path, int | None] = field(default_factory=dict)

    def position(self, key: Key) -> int | None:
        """Where a clip is in `clips`; None if it is not embedded."""
        return next((i for i, clip in enumerate(self.clips) if (clip["prompt"], clip["seed"]) == key), None)


def embed(runs: Sequence[RunData], max_bytes: int = MAX_BYTES) -> Embedded:
    """Choose clips and embed them: each run's worst and best by PSNR first, then in order, until the budget is spent."""
    clips: dict[Key, dict[int, Clip]] = {}
    for number_, run in enumerate(runs):
        for clip in run.clips:
            if clip.video is not None:
                clips.setdefault((clip.prompt, clip.seed), {})[number_] = clip
    first: list[Key] = []
    for run in runs:
        ranked = by_psnr([clip for clip in run.clips if clip.video is not None])
        first += [(clip.prompt, clip.seed) for clip in (*ranked[:1], *ranked[-1:])]
    order = list(dict.fromkeys([*first, *clips]))
    out, spent = Embedded(), 0
    chosen: set[Key] = set()
    for key in order:
        paths = {path for clip in clips[key].values() for path in (clip.video, clip.reference) if path is not None}
        size = sum(min(path.stat().st_size, SHRINK_ABOVE_BYTES) for path in paths if path not in out._paths)
        if chosen and spent + size > max_bytes:
            out.num_left_out += 1
            continue
        for path in sorted(paths):
            _add(out, path)
        spent += size
        chosen.add(key)
    out.clips = [_player_entry(out, runs, key, clips[key]) for key in clips if key in chosen]
    return out


def by_psnr(clips: Sequence[Clip]) -> list[Clip]:
    """Worst first; clips without a PSNR are left out."""
    known = [clip for clip in clips if not math.isnan(clip.metrics.get("psnr", math.nan))]
    return sorted(known, key=lambda clip: (clip.metrics["psnr"], clip.index))


def _player_entry(out: Embedded, runs: Sequence[RunData], key: Key, clips: dict[int, Clip]) -> dict[str, Any]:
    references: dict[int, list[str]] = {}
    for run, clip in clips.items():
        position = out._paths.get(clip.reference) if clip.reference else None
        if position is not None:
            references.setdefault(position, []).append(runs[run].mark)
    cells: list[dict[str, Any]] = []
    for position, marks in references.items():
        title = "reference" if len(references) == 1 else f"reference of {', '.join(marks)}"
        cells.append(
            {"run": -1, "title": title, "text": "full compute, same seed", "file": position, "reference": None}
        )
    for run, clip in sorted(clips.items()):
        position = out._paths.get(clip.video) if clip.video else None
        if position is not None:
            reference = out._paths.get(clip.reference) if clip.reference else None
            title = f"{runs[run].mark} {runs[run].title}"
            cells.append({"run": run, "title": title, "text": caption(clip), "file": position, "reference": reference})
    return {"prompt": key[0], "seed": key[1], "cells": cells}


def caption(clip: Clip) -> str:
    """A clip's own values in short: `PSNR 37.8 dB · SSIM 0.9980 · reused 45 %`."""
    parts = []
    for name in ("psnr", "ssim"):
        value = clip.metrics.get(name, math.nan)
        if not math.isnan(value):
            shown = column(name)
            text = f"{shown.title} {number(value, shown.style)} {unit_of(shown, None)}".strip()
            parts.append("identical" if math.isinf(value) else text)
    if not math.isnan(clip.metrics.get("adherence", math.nan)):
        parts.append("adheres" if clip.metrics["adherence"] else "does not adhere")
    if not math.isnan(clip.reuse_fraction):
        parts.append(f"reused {100 * clip.reuse_fraction:.0f} %")
    return " · ".join(parts)


def _add(out: Embedded, path: Path) -> None:
    try:
        data, fps, num_frames, shrunk = _read(path)
    except Exception:  # a damaged file fails in many ways inside the decoder; the others still play
        out._paths[path] = None
        return
    digest = hashlib.sha256(data).hexdigest()
    if digest not in out._known:
        out._known[digest] = len(out.files)
        out.files.append("data:video/mp4;base64," + base64.b64encode(data).decode())
    out._paths[path] = out._known[digest]
    out.fps = fps
    out.num_frames = max(out.num_frames, num_frames)
    out.shrunk |= shrunk


def _read(path: Path) -> tuple[bytes, float, int, bool]:
    """(bytes, frames per second, number of frames, whether it was made smaller) of a video file."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 8)  # the stream must not be asked once the file is closed
        if path.stat().st_size <= SHRINK_ABOVE_BYTES:
            num_frames = stream.frames or sum(1 for _ in container.decode(video=0))
            return path.read_bytes(), float(rate), num_frames, False
        frames = list(container.decode(video=0))
    scale = min(1.0, SHRUNK_SIDE / max(frames[0].width, frames[0].height))
    width, height = (2 * max(1, round(side * scale / 2)) for side in (frames[0].width, frames[0].height))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # One thread: with several, the bytes may depend on their timing.
        options = {"crf": "24", "preset": "medium", "threads": "1"}
        target = container.add_stream("libx264", rate=rate, options=options)
        target.width, target.height, target.pix_fmt = width, height, "yuv420p"
        for number_, frame in enumerate(frames):
            small = frame.reformat(width, height, "yuv420p")
            small.pts, small.time_base, small.pict_type = (
                number_,
                1 / rate,
                0,
            )  # 0: a frame type of the encoder's choice
            container.mux(target.encode(small))
        container.mux(target.encode())
    return buffer.getvalue(), float(rate), len(frames), True
