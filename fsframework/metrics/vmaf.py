"""VMAF v0.6.1 (Netflix 2018) against the reference, by an ffmpeg with libvmaf."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from fsframework.data.video import to_uint8
from fsframework.metrics.base import METRICS, Metric, check_pair

LEAST_SIDE = 192
"""Smaller frames are enlarged by a whole factor to this: libvmaf's finest scales see nothing in a tiny picture."""


@METRICS.register("vmaf")
class VMAF(Metric):
    """Netflix's fusion of visual information fidelity, detail loss and motion, trained on people's opinions of streams.

    It was trained on 1080p films with compression damage, so for generated clips the order of methods means more than
    the value. An identical video scores a little below 100. Frames are compared as 8-bit 4:4:4; pixels of small clips
    become squares. ffmpeg runs as a program, so its licence (GPL) does not touch this one.
    """

    name = "vmaf"
    description = "VMAF v0.6.1, mean over frames; identical is about 97 to 100, below 80 is visible."

    def available(self) -> str | None:
        """Needs an ffmpeg that has libvmaf; the one in imageio-ffmpeg has."""
        if ffmpeg_with_vmaf() is None:
            return "vmaf runs an ffmpeg with libvmaf: pip install imageio-ffmpeg"
        return None

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"vmaf": 0 to 100}, the mean over frames."""
        del prompt
        check_pair(video, reference, self.name)
        assert reference is not None
        program = ffmpeg_with_vmaf()
        assert program is not None
        return {"vmaf": _run(program, video, reference)}


@lru_cache(maxsize=1)
def ffmpeg_with_vmaf() -> str | None:
    """The first ffmpeg that knows libvmaf: imageio-ffmpeg's, or the one on the PATH."""
    candidates = [shutil.which("ffmpeg")]
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        candidates.insert(0, imageio_ffmpeg.get_ffmpeg_exe())
    for program in filter(None, candidates):
        filters = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
        if " libvmaf " in filters.stdout:
            return program
    return None


def _run(program: str, video: Tensor, reference: Tensor) -> float:
    height, width = video.shape[1:3]
    factor = max(1, -(-LEAST_SIDE // min(height, width)))
    with tempfile.TemporaryDirectory(prefix="fsf-vmaf-") as folder:
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", "24"]
        inputs = []
        for name, clip in (("video", video), ("reference", reference)):
            (Path(folder) / name).write_bytes(to_uint8(clip).tobytes())
            inputs += [*raw, "-i", name]
        larger = f"scale={width * factor}:{height * factor}:flags=neighbor,format=yuv444p"
        graph = f"[0:v]{larger}[a];[1:v]{larger}[b];[a][b]libvmaf=log_fmt=json:log_path=log.json:n_threads=1"
        command = [
            program,
            "-hide_banner",
            "-nostdin",
            "-loglevel",
            "error",
            *inputs,
            "-lavfi",
            graph,
            "-f",
            "null",
            "-",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"vmaf: {program} failed with code {done.returncode}: {done.stderr.strip()[-500:]}")
        log = json.loads((Path(folder) / "log.json").read_text(encoding="utf-8"))
    return float(log["pooled_metrics"]["vmaf"]["mean"])
