"""Validation rollouts under reuse: does the monitor of a training run rank its checkpoints as with full compute?

    python experiments/training_reuse/monitor.py [monitor.yaml] [num_clips=40] [--quick]

Generates the same captions and seeds from every checkpoint, with full compute and under each policy, and judges them as
`DenoiserStage.adherence` does. Trains nothing.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import HERE, read, run_arms, tiny_model, trained
from torch import Tensor

import fsframework as fsf
import fsframework.policies
from fsframework.data import bouncing_digits
from fsframework.metrics.adherence import PromptAdherence
from fsframework.metrics.psnr import from_mse
from fsframework.run.resolve import build_policy


@dataclass
class Config:
    """See monitor.yaml."""

    family: str = "opensora"
    config: str = "experiments/tiny_models/opensora.yaml"
    data: str = "runs/train/tiny-opensora"
    model: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    """Names of `<name>.pt` in `data`, in the order of training; "" in `data` builds random weights instead."""
    num_clips: int = 40
    """The 20 captions in turn, each with seeds of its own."""
    batch: int = 20
    num_steps: int = 20
    guidance_scale: float = 4.0
    first_seed: int = 300_000
    runs: str = "runs/training_reuse/monitor"
    results: str = str(HERE / "results")
    monitors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> policy; the first is the reference."""


QUICK = {
    "data": "",
    "model": {"depth": 2, "num_heads": 1},
    "checkpoints": ["a"],
    "num_clips": 2,
    "batch": 2,
    "num_steps": 8,
}


def main(arguments: list[str]) -> None:
    """Run what is not done yet: every checkpoint under every policy."""
    config = read(Config, HERE / "monitor.yaml", QUICK, arguments)
    torch.set_num_threads(1)
    tiny, autoencoder, _ = tiny_model(config.config, config.data, config.model, encode=False)

    load = functools.partial(trained, tiny, config.data)

    arms = {
        f"monitor-{config.family}-{name}-{monitor}": functools.partial(
            measure, config, load, autoencoder, name, monitor
        )
        for name in config.checkpoints
        for monitor in config.monitors
    }
    run_arms(Path(config.results), arms)


def captions(num_clips: int) -> list[str]:
    """The 20 captions in turn."""
    pairs = bouncing_digits.all_pairs()
    return [bouncing_digits.caption(*pairs[i % len(pairs)]) for i in range(num_clips)]


def measure(config: Config, load: Any, autoencoder: Any, name: str, monitor: str) -> dict[str, Any]:
    """One checkpoint under one policy."""
    videos, executed, full = generate(config, load(name), autoencoder, config.monitors[monitor])
    reference_name = next(iter(config.monitors))
    folder = Path(config.runs)
    folder.mkdir(parents=True, exist_ok=True)
    reference_path = folder / f"{config.family}-{name}.pt"
    if monitor == reference_name:
        torch.save(videos, reference_path)
    mse = float((videos - torch.load(reference_path)).square().mean())
    return {
        "family": config.family,
        "checkpoint": name,
        "monitor": monitor,
        "policy": config.monitors[monitor],
        "num_clips": config.num_clips,
        "num_steps": config.num_steps,
        "flops": executed,
        "share": executed / full,
        "psnr": None if mse == 0 else from_mse(mse),
        **judged(videos, captions(config.num_clips)),
    }


def generate(config: Config, denoiser: Any, autoencoder: Any, policy: dict[str, Any]) -> tuple[Tensor, float, float]:
    """Videos [N, T, H, W, 3], and the FLOPs of the transformer: executed, and what full compute takes."""
    scheduler = denoiser.scheduler()
    scheduler.set_timesteps(config.num_steps)
    prompts, videos, executed, full = captions(config.num_clips), [], 0.0, 0.0
    for start in range(0, config.num_clips, config.batch):
        some = prompts[start : start + config.batch]
        seeds = [config.first_seed + start + i for i in range(len(some))]
        with fsf.reuse(denoiser.transformer, build_policy(policy), timesteps=scheduler.timesteps) as session:
            videos.append(
                denoiser.generate(
                    autoencoder,
                    some,
                    seeds,
                    num_steps=config.num_steps,
                    guidance_scale=config.guidance_scale,
                    num_frames=denoiser.num_frames,
                )
            )
        ran, whole = session.trace.total_flops()
        executed, full = executed + ran, full + whole
    return torch.cat(videos), executed, full


def judged(videos: Tensor, prompts: list[str]) -> dict[str, Any]:
    """Scores of each clip and their means, as `DenoiserStage.adherence` has them."""
    judge = PromptAdherence()
    results = [judge.score(video, prompt) for video, prompt in zip(videos, prompts)]
    digits = [(bouncing_digits.parse_caption(prompt) or (-1, ""))[0] for prompt in prompts]
    per_frame = [float(np.mean(judge.digit_scores(v).argmax(1) == digit)) for v, digit in zip(videos, digits)]
    clips = {
        "digit": [int(r.digit) for r in results],
        "motion": [int(r.motion) for r in results],
        "both": [int(r.both) for r in results],
        "frame_digit_accuracy": [round(v, 4) for v in per_frame],
    }
    return {**{name: float(np.mean(values)) for name, values in clips.items()}, "clips": clips}


if __name__ == "__main__":
    main(sys.argv[1:])
