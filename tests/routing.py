"""A random Latte of 2 + 2 blocks as a frozen model, and trainings on it that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pipelines import CAPTIONS, random_latte

import fsframework.models  # noqa: F401  registers the adapters
from fsframework.core import ADAPTERS, Checkpoint, LoadedModel
from fsframework.train.learned import Learning, load_trainers
from fsframework.train.learned_config import LearnedConfig, ValidationConfig, options_of
from fsframework.train.learned_fit import frozen
from fsframework.train.stage import MetricsFile

SIZE = {"height": 16, "width": 16, "num_frames": 8}


def random_model(num_steps: int = 4, scale: float = 0.2) -> LoadedModel:
    """Every weight random, so that every block has something to say."""
    pipe = random_latte()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    checkpoint = Checkpoint(
        "random", num_steps=num_steps, guidance_scale=2.0, arguments={"clean_caption": False}, **SIZE
    )
    return frozen(LoadedModel("random", ADAPTERS["latte"](), pipe, checkpoint, "random"))


def config(folder: Path, trainer: str = "l2c", options: dict[str, Any] | None = None, **changes: Any) -> LearnedConfig:
    """Two clips, two iterations."""
    made = LearnedConfig(
        train={"name": trainer, **(options or {})},
        num_iterations=2,
        learning_rate=0.1,
        log_every=1,
        checkpoint_minutes=0.0,
        wandb="disabled",
        output_dir=str(folder),
        validation=ValidationConfig(),
    )
    made.prompts.texts = CAPTIONS[:2]
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def module_of(folder: Path, model: LoadedModel, made: LearnedConfig) -> Any:
    """The module that `learn` would train, before any training."""
    from fsframework.train.learned_fit import _clips

    trainer = load_trainers()[made.train["name"]]
    options = options_of(trainer.options_class, made)
    sampling = {"num_steps": model.checkpoint.num_steps, "guidance_scale": 2.0, **SIZE}
    clips = _clips(made.prompts, made.seeds)
    folder.mkdir(exist_ok=True)
    return trainer(Learning(made, options, model, sampling, clips, [], MetricsFile(folder / "metrics.jsonl")))
