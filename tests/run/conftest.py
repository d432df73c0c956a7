"""A random Latte pipeline of 2 + 2 blocks on disk, and a config that runs on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines import CAPTIONS, random_latte, save_pipeline


def build_pipeline_folder(folder: Path) -> Path:
    """Save a random `LattePipeline` that generates 8 frames of 16 x 16 pixels."""
    return save_pipeline(random_latte(), folder)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline_folder(tmp_path_factory.mktemp("models") / "random-latte")


@pytest.fixture(scope="session")
def loaded_model(pipeline_folder: Path) -> Any:
    from fsframework.models.loading import load_model

    return load_model(str(pipeline_folder))


@pytest.fixture
def overrides(pipeline_folder: Path, tmp_path: Path) -> list[str]:
    """Three videos of 8 steps with static reuse every second step after 2 steps of warmup."""
    return _overrides(pipeline_folder, tmp_path)


@pytest.fixture(scope="session")
def overrides_below(pipeline_folder: Path) -> Callable[[Path], list[str]]:
    """The same, for a folder of one's own."""
    return lambda folder: _overrides(pipeline_folder, folder)


def _overrides(pipeline_folder: Path, folder: Path) -> list[str]:
    return [
        "name=test",
        f"model.name={pipeline_folder}",
        "policy.name=static",
        "policy.warmup=2",
        "sampling.num_steps=8",
        "sampling.num_frames=8",
        "sampling.height=16",
        "sampling.width=16",
        "prompts.texts=[" + ", ".join(CAPTIONS) + "]",
        "metrics=[psnr, ssim]",
        "tracking.wandb=disabled",
        f"output.runs_dir={folder / 'runs'}",
    ]
