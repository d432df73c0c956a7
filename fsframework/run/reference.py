"""Full-compute videos, what every method is compared with: made by the bare pipeline, kept for the next run.

A cached reference serves the quality metrics. Its seconds were measured at another time, maybe beside other work, so
they serve no speedup: for that full compute is run again right beside the method (see `runner`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.data.prompts import Clip
from fsframework.data.video import load_frames, save_frames
from fsframework.run.artifacts import digest, to_json, write_text
from fsframework.run.costs import Costs, measure

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fsframework.core import LoadedModel


@dataclass(frozen=True)
class Timed:
    """A video and what one call of the pipeline took: text encoding, denoising and decoding."""

    video: Tensor
    """float32 [T, H, W, 3] in [0, 1], on the CPU."""
    costs: Costs

    @property
    def cpu_seconds(self) -> float:
        """Process CPU time, all threads."""
        return self.costs.cpu_seconds

    @property
    def wall_seconds(self) -> float:
        """Wall time."""
        return self.costs.wall_seconds


def generate_timed(model: LoadedModel, clip: Clip, sampling: Mapping[str, Any], device: torch.device) -> Timed:
    """Generate one video; the clocks run from the call to the last pixel on the CPU, for every method alike."""
    return Timed(*measure(lambda: model.generate(clip.prompt, clip.seed, **sampling), device))


class ReferenceCache:
    """Full-compute videos of one (model, sampling, dtype, device), one file per prompt and seed.

    `key` is everything that changes the pixels; it is written beside the videos as `key.json`.
    """

    def __init__(self, runs_dir: Path, key: Mapping[str, Any]) -> None:
        self.folder = runs_dir / "_reference" / digest(key)
        self._key = dict(key)

    def load(self, clip: Clip) -> Timed | None:
        """The cached video; None if there is none, or if its file is damaged (it is then made again)."""
        path = self._path(clip)
        if not path.is_file():
            return None
        try:
            video, seconds = load_frames(path)
            return Timed(video, Costs(float(seconds["cpu_seconds"]), float(seconds["wall_seconds"])))
        except (ValueError, KeyError):
            return None

    def save(self, clip: Clip, made: Timed) -> None:
        """Keep a video, exactly, with its seconds."""
        described = self.folder / "key.json"
        if not described.is_file():
            write_text(described, to_json(self._key, indent=2) + "\n")
        facts = {"cpu_seconds": made.cpu_seconds, "wall_seconds": made.wall_seconds, "seed": clip.seed}
        save_frames(
            self._path(clip), made.video, {"prompt": json.dumps(clip.prompt)} | {k: str(v) for k, v in facts.items()}
        )

    def _path(self, clip: Clip) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", clip.prompt.lower()).strip("-")[:40]
        return self.folder / f"{slug}-{digest(clip.prompt, 8)}-seed{clip.seed}.safetensors"
