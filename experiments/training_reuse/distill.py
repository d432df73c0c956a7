"""Self-distillation of fewer steps, on trajectories of the teacher with full compute or under reuse.

    python experiments/training_reuse/distill.py [distill.yaml] [num_trajectories=64] [--quick]

A student begins as the trained tiny-opensora and learns to do in one Euler step, without guidance, what the guided teacher
does in `stride` steps. Arms: trajectories with full compute; as many under reuse; as many under reuse as the same FLOPs buy.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arms import HERE, read, run_arms, tiny_model, trained
from monitor import captions, judged
from torch import Tensor, nn

import fsframework as fsf
import fsframework.policies
from fsframework.core.live_count import flop_counter
from fsframework.data import bouncing_digits
from fsframework.metrics.psnr import from_mse
from fsframework.run.resolve import build_policy
from fsframework.train.stage import MetricsFile, StageModule
from fsframework.train.tiny import fit


@dataclass
class Teacher:
    """How an arm's trajectories are made."""

    policy: dict[str, Any] = field(default_factory=lambda: {"name": "full"})
    same_flops: bool = False
    """As many trajectories as full compute's FLOPs buy, not as many as full compute has."""


@dataclass
class Config:
    """See distill.yaml."""

    config: str = "experiments/tiny_models/opensora.yaml"
    data: str = "runs/train/tiny-opensora"
    model: dict[str, Any] = field(default_factory=dict)
    weights: str = "short"
    """`<name>.pt` in `data`."""
    teacher_steps: int = 32
    stride: int = 4
    """Teacher's steps in one of the student's; divides `teacher_steps`."""
    guidance_scale: float = 4.0
    num_trajectories: int = 64
    chunk: int = 16
    """Trajectories made at once; `num_trajectories` is a multiple."""
    num_steps: int = 200
    batch_clips: int = 16
    learning_rate: float = 3e-4
    ema_decay: float = 0.98
    evaluate_every: int = 50
    num_clips: int = 20
    """Clips of an evaluation: the captions in turn, seeds that no trajectory has."""
    seeds: list[int] = field(default_factory=lambda: [0])
    runs: str = "runs/training_reuse/distill"
    results: str = str(HERE / "results")
    teachers: dict[str, Teacher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.teacher_steps % self.stride or self.num_trajectories % self.chunk:
            raise ValueError(
                f"distill: stride={self.stride} must divide teacher_steps={self.teacher_steps}, and chunk={self.chunk} "
                f"num_trajectories={self.num_trajectories}"
            )

    @property
    def student_steps(self) -> int:
        """Steps of the student."""
        return self.teacher_steps // self.stride


QUICK = {
    "data": "", "model": {"depth": 2, "num_heads": 1}, "teacher_steps": 8, "num_trajectories": 2, "chunk": 1, "num_steps": 2,
    "batch_clips": 2, "evaluate_every": 1, "num_clips": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Trajectories:
    """What the student learns from."""

    latents_NJCFHW: Tensor
    """At the student's times: the noise first, the clean latent last."""
    prompts: list[str]
    flops: float


def main(arguments: list[str]) -> None:
    """Run what is not done yet."""
    config = read(Config, HERE / "distill.yaml", QUICK, arguments)
    torch.set_num_threads(1)
    tiny, autoencoder, _ = tiny_model(config.config, config.data, config.model, encode=False)

    load = functools.partial(trained, tiny, config.data, config.weights)

    Path(config.runs).mkdir(parents=True, exist_ok=True)
    arms = {"distill-baselines": functools.partial(baselines, config, load, autoencoder)} | {
        f"distill-{name}-seed{seed}": functools.partial(distill, config, tiny, load, autoencoder, name, seed)
        for seed in config.seeds
        for name in config.teachers
    }
    run_arms(Path(config.results), arms)


# The teacher.


def training_prompts(num: int) -> list[str]:
    """Captions that training stages see, in turn."""
    pairs = bouncing_digits.training_pairs()
    return [bouncing_digits.caption(*pairs[i % len(pairs)]) for i in range(num)]


def trajectory_chunk(config: Config, denoiser: Any, pipe: Any, policy: dict[str, Any], index: int) -> Trajectories:
    """The guided teacher's latents at the student's times, for `chunk` captions."""
    first = index * config.chunk
    prompts = training_prompts(first + config.chunk)[first:]
    size = denoiser.sampling
    shape = (pipe.vae.latent_channels, *pipe.vae.latent_size(size["num_frames"], size["height"], size["width"]))
    noise = [
        torch.randn(shape, generator=torch.Generator().manual_seed(200_000 + first + i)) for i in range(config.chunk)
    ]
    kept = [torch.stack(noise)]

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del pipe, timestep
        if (step + 1) % config.stride == 0:
            kept.append(tensors["latents"].clone())
        return {}

    with torch.no_grad(), fsf.reuse(pipe, build_policy(policy)) as session:
        pipe(
            prompts,
            latents=kept[0],
            num_inference_steps=config.teacher_steps,
            guidance_scale=config.guidance_scale,
            callback_on_step_end=keep,
            output_type="latent",
            **size,
        )
    return Trajectories(torch.stack(kept, dim=1), prompts, session.trace.total_flops()[0])


def trajectories(config: Config, denoiser: Any, autoencoder: Any, teacher: Teacher) -> Trajectories:
    """All of an arm; every chunk is kept on disk, so that arms and a run that goes on share them."""
    pipe = denoiser.pipeline(autoencoder)

    def chunk(policy: dict[str, Any], index: int) -> Trajectories:
        words = "-".join(str(v) for v in policy.values())
        path = Path(config.runs) / f"trajectories-{words}-{config.teacher_steps}-{config.chunk}-{index}.pt"
        if not path.exists():
            made = trajectory_chunk(config, denoiser, pipe, policy, index)
            torch.save((made.latents_NJCFHW, made.prompts, made.flops), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
            print(f"trajectories: {path.name}", file=sys.stderr, flush=True)
        return Trajectories(*torch.load(path))

    count = config.num_trajectories // config.chunk
    if not teacher.same_flops:
        return _joined([chunk(teacher.policy, i) for i in range(count)])
    budget = sum(chunk(Teacher().policy, i).flops for i in range(count))
    chunks: list[Trajectories] = []
    while True:
        chunks.append(chunk(teacher.policy, len(chunks)))
        if sum(c.flops for c in chunks) > budget:
            return _joined(chunks[:-1])


def _joined(chunks: list[Trajectories]) -> Trajectories:
    latents = torch.cat([c.latents_NJCFHW for c in chunks])
    return Trajectories(latents, [p for c in chunks for p in c.prompts], sum(c.flops for c in chunks))


# The student.


class StepDistillation(StageModule):
    """Regression on the straight line between two points of a trajectory; the text encoder stays as it is."""

    def __init__(
        self, denoiser: Any, config: Config, data: Trajectories, evaluate: Any, *, seed: int, metrics: MetricsFile
    ):
        denoiser.requires_grad_(False)
        denoiser.transformer.requires_grad_(True)
        super().__init__(
            denoiser, stage="distill", seed=seed, num_steps=config.num_steps, warmup_steps=20, decay_fraction=0.3,
            ema_decay=config.ema_decay, clip_norm=1.0, log_every=config.evaluate_every, metrics=metrics,
        )  # fmt: skip
        self.config, self.data, self.evaluate = config, data, evaluate

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW without decay."""
        trained = [p for p in self.networks.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the velocity that leads from one of the student's times to the next."""
        generator, steps = self.generator(step), self.config.student_steps
        clips_B = torch.randint(len(self.data.prompts), (self.config.batch_clips,), generator=generator)
        times_B = torch.randint(steps, (self.config.batch_clips,), generator=generator)
        here, there = (self.data.latents_NJCFHW[clips_B, times_B + k] for k in (0, 1))
        prompts = [self.data.prompts[i] for i in clips_B.tolist()]
        denoiser: Any = self.networks
        predicted: Tensor = denoiser(here, 1000 * (1 - times_B / steps), prompts)
        return nn.functional.mse_loss(predicted, (there - here) * steps)

    @torch.no_grad()
    def flops_per_step(self) -> float:
        """As `SharedBlocksStage.flops_per_step`."""
        with flop_counter() as counter:
            self.loss(0)
        return 3.0 * float(counter.get_total_flops())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Also see what the averaged student makes."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step % self.config.evaluate_every == 0:
            self.record(self.evaluate(self.average))


def rollout(config: Config, denoiser: Any, autoencoder: Any, num_steps: int, guidance_scale: float) -> Tensor:
    """The evaluation's clips."""
    prompts = captions(config.num_clips)
    seeds = [900_000 + i for i in range(config.num_clips)]
    return denoiser.generate(
        autoencoder, prompts, seeds, num_steps=num_steps, guidance_scale=guidance_scale, num_frames=denoiser.num_frames
    )


def scores(videos: Tensor, reference: Tensor, prompts: list[str]) -> dict[str, Any]:
    """PSNR to the reference, squared errors pooled, and adherence."""
    mse = float((videos - reference).square().mean())
    found = judged(videos, prompts)
    found.pop("clips")
    return {"psnr": None if mse == 0 else from_mse(mse), **found}


def reference_videos(config: Config, load: Any, autoencoder: Any) -> Tensor:
    """The teacher's, with full compute and all its steps; made once."""
    path = Path(config.runs) / f"reference-{config.teacher_steps}-{config.num_clips}.pt"
    if not path.exists():
        torch.save(rollout(config, load(), autoencoder, config.teacher_steps, config.guidance_scale), path)
    return torch.load(path)


def baselines(config: Config, load: Any, autoencoder: Any) -> dict[str, Any]:
    """The teacher with all its steps, and with the student's number of steps, guided and not: where the student begins."""
    reference, prompts = reference_videos(config, load, autoencoder), captions(config.num_clips)
    out: dict[str, Any] = {"num_clips": config.num_clips, "teacher": scores(reference, reference, prompts)}
    for name, scale in (("few steps, guided", config.guidance_scale), ("few steps, unguided", 1.0)):
        out[name] = scores(rollout(config, load(), autoencoder, config.student_steps, scale), reference, prompts)
    return out


def distill(config: Config, tiny: Any, load: Any, autoencoder: Any, name: str, seed: int) -> dict[str, Any]:
    """One arm: trajectories, then the student; its curve against the FLOPs of both."""
    teacher, prompts = config.teachers[name], captions(config.num_clips)
    reference = reference_videos(config, load, autoencoder)
    data = trajectories(config, load(), autoencoder, teacher)
    directory = Path(config.runs) / f"{name}-seed{seed}"
    directory.mkdir(parents=True, exist_ok=True)

    def evaluate(student: Any) -> dict[str, Any]:
        return scores(rollout(config, student, autoencoder, config.student_steps, 1.0), reference, prompts)

    stage = StepDistillation(
        load(), config, data, evaluate, seed=seed, metrics=MetricsFile(directory / "metrics.jsonl")
    )
    flops = stage.flops_per_step()
    fit(stage, tiny, directory)
    rows = [row for row in stage.metrics.rows() if "psnr" in row]
    return {
        "teacher": {"policy": teacher.policy, "same_flops": teacher.same_flops},
        "seed": seed,
        "num_trajectories": len(data.prompts),
        "teacher_flops": data.flops,
        "flops_per_step": flops,
        "curve": [{"flops": data.flops + row["step"] * flops, **row} for row in rows],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
