"""What metrics of sets keep of each video until the run ends: `features/0003.npz` in the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fsframework.data.video import atomic_path

Features = Mapping[str, np.ndarray]


def save(run_directory: Path, index: int, features: Mapping[str, Features]) -> None:
    """Keep the features of one video, by metric; nothing is written where no metric gave any."""
    arrays = {f"{metric}/{key}": array for metric, own in features.items() for key, array in own.items()}
    if arrays:
        with atomic_path(_path(run_directory, index)) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # of another keyword, in newer numpy


def load(run_directory: Path, indices: Iterable[int]) -> dict[str, list[dict[str, np.ndarray]]]:
    """By metric, the features of those videos that have any, in the order of `indices`."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for path in (_path(run_directory, index) for index in indices):
        if not path.is_file():
            continue
        own: dict[str, dict[str, np.ndarray]] = {}
        with np.load(path) as arrays:
            for name in arrays.files:
                metric, key = name.split("/", 1)
                own.setdefault(metric, {})[key] = arrays[name]
        for metric, features in own.items():
            found.setdefault(metric, []).append(features)
    return found


def _path(run_directory: Path, index: int) -> Path:
    return run_directory / "features" / f"{index:04d}.npz"
