"""Training with shared blocks beside ordinary training, at equal FLOPs per step.

    python experiments/training_reuse/shared.py [shared.yaml] [families=[opensora]] [seeds=[0,1]] [--quick]

Every arm trains the image stage of a tiny model from scratch. The batch of an arm is what the FLOPs of an ordinary step
pay for. Killed, it continues from its last checkpoint; an arm with a JSON in `results` is not run again.
"""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arms import HERE, read, run_arms, tiny_model

from fsframework.train.config import TinyConfig
from fsframework.train.diffusion import MonitorConfig
from fsframework.train.shared_blocks import SharedBlocksConfig, SharedBlocksStage
from fsframework.train.stage import MetricsFile
from fsframework.train.tiny import build_denoiser, fit


@dataclass
class Family:
    """Where a family's training config and its data are."""

    config: str
    data: str
    model: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """See shared.yaml."""

    families: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    only: list[str] = field(default_factory=list)
    """Names of arms; empty is all."""
    num_steps: int = 400
    batch_clips: int = 64
    """Of the ordinary arm; the others' follow from it."""
    evaluate_every: int = 50
    sample_every: int = 200
    num_clips: int = 100
    """Clips per measurement of the digit accuracy."""
    sampling_steps: int = 20
    runs: str = "runs/training_reuse/shared"
    results: str = str(HERE / "results")
    known: dict[str, Family] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)


QUICK = {
    "families": ["opensora"],
    "num_steps": 2,
    "batch_clips": 6,
    "evaluate_every": 1,
    "sample_every": 2,
    "num_clips": 2,
    "sampling_steps": 2,
    "known": {"opensora": {"data": "", "model": {"depth": 2, "num_heads": 1}}},
}


def main(arguments: list[str]) -> None:
    """Run what is not done yet."""
    config = read(Config, HERE / "shared.yaml", QUICK, arguments)
    torch.set_num_threads(1)
    # Latte runs no temporal block for a single frame.
    warnings.filterwarnings("ignore", message=".*blocks were not run by the model itself.*")
    for family in config.families:
        known = config.known[family]
        tiny, autoencoder, latents = tiny_model(known.config, known.data, known.model, encode=True)
        make = functools.partial(build_stage, config, tiny, autoencoder, latents)
        # Seeds outside: the first seed of every arm first.
        arms = {
            f"shared-{family}-{arm}-seed{seed}": functools.partial(train, config, tiny, make, family, arm, seed)
            for seed in config.seeds
            for arm in config.only or config.arms
        }
        run_arms(Path(config.results), arms)


def build_stage(
    config: Config,
    tiny: TinyConfig,
    autoencoder: Any,
    latents: Any,
    arm: str,
    seed: int,
    batch: int,
    metrics: MetricsFile,
) -> SharedBlocksStage:
    """The image stage of the model, from the same random weights for the same seed."""
    tiny.seed = seed
    denoiser = build_denoiser(tiny)
    denoiser.prepare(latents)
    images = tiny.stages[0]
    images.num_steps, images.batch_clips = config.num_steps, batch
    images.evaluate_every, images.sample_every = config.evaluate_every, config.sample_every
    return SharedBlocksStage(
        denoiser,
        images,
        MonitorConfig(num_clips=config.num_clips, num_steps=config.sampling_steps),
        latents_NYXCHW=latents,
        autoencoder=autoencoder,
        seed=seed,
        metrics=metrics,
        shared=SharedBlocksConfig(**config.arms[arm]),
    )


def affordable_batch(make: Any, config: Config, arm: str, seed: int) -> int:
    """Clips per step for which an arm costs what the ordinary arm costs with `batch_clips`; FLOPs are linear in clips."""
    nowhere, clips = MetricsFile(Path("/dev/null")), 4
    ordinary, own = (make(name, seed, clips, nowhere).flops_per_step() for name in ("ordinary", arm))
    return max(1, round(config.batch_clips * ordinary / own))


def train(config: Config, tiny: TinyConfig, make: Any, family: str, arm: str, seed: int) -> dict[str, Any]:
    """One arm: its curve of held-out losses and digit accuracy against FLOPs."""
    batch = affordable_batch(make, config, arm, seed)
    directory = Path(config.runs) / f"{family}-{arm}-seed{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    stage = make(arm, seed, batch, MetricsFile(directory / "metrics.jsonl"))
    flops = stage.flops_per_step()
    fit(stage, tiny, directory)
    curve: dict[int, dict[str, float]] = {}
    for row in stage.metrics.rows():
        wanted = {k: v for k, v in row.items() if k.startswith(("loss_at_", "frame_", "digit_"))}
        if wanted:
            curve.setdefault(row["step"], {}).update(wanted)
    points = []
    for step, values in sorted(curve.items()):
        losses = [v for k, v in values.items() if k.startswith("loss_at_")]
        mean = {"held_out_loss": sum(losses) / len(losses)} if losses else {}
        points.append({"step": step, "flops": step * flops, **mean, **values})
    return {
        "family": family,
        "seed": seed,
        "options": config.arms[arm],
        "batch_clips": batch,
        "num_steps": config.num_steps,
        "flops_per_step": flops,
        "forwards_per_step": batch * int(config.arms[arm].get("num_forwards", 2)),
        "curve": points,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
