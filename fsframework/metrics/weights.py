"""Trained weights of other people: where they are looked for. Nothing here downloads; a metric says what is missing."""

from __future__ import annotations

from pathlib import Path

import torch


def weights_file(name: str) -> Path:
    """Where a weight file lies: in torch's own folder for downloads, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def missing_file(metric: str, what: str, url: str, name: str) -> str | None:
    """None if the file `name` is there, else the sentence for `Metric.available`."""
    path = weights_file(name)
    if path.is_file():
        return None
    return f"{metric} needs {what}, once: download {url} as {path}"
