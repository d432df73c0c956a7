"""`learn`: from a checked config to a trained policy's artifact; goes on bit for bit where an earlier process stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fsframework.core import Artifact, Fit, LoadedModel, Run
from fsframework.data.prompts import Clip, load_prompts, plan_clips
from fsframework.train.learned import LearnedModule, Learning, load_trainers
from fsframework.train.learned_config import LearnedConfig, SeedRange, options_of, to_plain
from fsframework.train.stage import MetricsFile

FREE = (
    "name", "num_processes", "num_threads", "log_every", "checkpoint_minutes", "wandb", "project", "output_dir", "artifact",
)  # fmt: skip
"""Keys that may change when a run goes on: they do not decide what is learned, but for rounding."""


@dataclass(frozen=True)
class Learned:
    """What a training left."""

    policy: str
    model: str
    artifact: Path
    metrics: Path
    fit: Fit
    cost: Mapping[str, float]
    """`cpu_seconds` of this process and `wall_seconds`, over all resumptions, and `iterations`."""
    is_first: bool
    """Whether this process writes and talks."""

    def text(self) -> str:
        """What to print: the numbers, the files, and how to use them."""
        lines = [f"{self.policy} trained on {self.model} in {self.cost['iterations']:.0f} iterations"]
        numbers = {**self.fit.numbers, **self.cost}
        width = max(len(name) for name in numbers)
        lines += [f"  {name.ljust(width)}  {value:.6g}" for name, value in numbers.items()]
        block = f"{{name: {self.policy}, artifact: {self.artifact}}}"
        return "\n".join(
            [*lines, f"metrics:  {self.metrics}", f"artifact: {self.artifact}", f"use it:   policy: {block}"]
        )


def learn(
    config: LearnedConfig,
    model: LoadedModel | None = None,
    describe: Callable[[LoadedModel], Mapping[str, Any]] = lambda model: {},
) -> Learned:
    """Train the policy that `config` describes, or go on with it, and write its artifact.

    The same command after a kill at any moment goes on from the last checkpoint, and on one CPU ends with the same
    numbers as if nothing had happened.

    Args:
        config: see `load_learned_config`.
        model: the loaded `config.model`, for several trainings in one process; its weights are frozen.
        describe: what to add to the artifact's provenance: the machine, the code, the model's files.

    Raises:
        ValueError: something the user can mend; nothing is written then.
    """
    trainer_class: Any = load_trainers()[config.train["name"]]  # its own __init__ takes a Learning and nothing else
    options = options_of(trainer_class.options_class, config)
    clips = _clips(config.prompts, config.seeds)
    validation = config.validation
    validation_clips = _clips(validation.prompts, validation.seeds) if validation.every else []
    same = {(c.prompt, c.seed) for c in clips} & {(c.prompt, c.seed) for c in validation_clips}
    if same:
        raise ValueError(f"validation has clips that are learned from, such as {min(same)}; set validation.seeds.base")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = frozen(_load(config) if model is None else model)
    given = dataclasses.asdict(config.sampling)
    sampling = {key: getattr(model.checkpoint, key) if value is None else value for key, value in given.items()}
    folder = Path(config.output_dir)
    metrics = MetricsFile(folder / "metrics.jsonl")
    module: LearnedModule = trainer_class(Learning(config, options, model, sampling, clips, validation_clips, metrics))
    _claim(folder, config, options)
    cost = _fit(module, config, folder)
    is_first = bool(module.trainer.is_global_zero)
    fit = module.result()
    path = Path(config.artifact) if config.artifact else folder / "artifact.json"
    if is_first:
        provenance = {
            "numbers": dict(fit.numbers), "cost": cost, "config": to_plain(config), "options": dataclasses.asdict(options),
            "model": model.name, "sampling": sampling, "clips": [{"prompt": c.prompt, "seed": c.seed} for c in clips],
            **describe(model),
        }  # fmt: skip
        Artifact(module.policy, dict(fit.values), _facts(module.run), provenance).save(path)
        _end_mirror(module, fit, path)
    return Learned(module.policy, model.name, path, metrics.path, fit, cost, is_first)


def frozen(model: LoadedModel) -> LoadedModel:
    """The model with every module of its pipeline in evaluation mode and without gradients."""
    for part in model.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    model.pipe.set_progress_bar_config(disable=True)
    return model


def _load(config: LearnedConfig) -> LoadedModel:
    from fsframework.models.loading import load_model

    return load_model(config.model.name, device=_device(config), dtype=config.model.dtype, offload=config.model.offload)


def _device(config: LearnedConfig) -> torch.device:
    """The device of this process: with several, each has a CUDA device of its own."""
    name = config.model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return torch.device(name)


def _clips(prompts: Any, seeds: SeedRange) -> list[Clip]:
    return plan_clips(load_prompts(prompts.set, prompts.texts, prompts.limit), seeds.base, seeds.per_prompt)


def _claim(folder: Path, config: LearnedConfig, options: Any) -> None:
    """Note in the folder what is trained there.

    Raises:
        ValueError: something else is.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in FREE}
    plain["train"] = {"name": config.train["name"], **dataclasses.asdict(options)}
    content = json.loads(json.dumps(plain))
    file = folder / "config.json"
    if file.is_file():
        before = json.loads(file.read_text())
        changed = [key for key in content if before.get(key) != content[key]]
        if changed:
            raise ValueError(
                f"{folder} holds a training with other settings: {changed[0]} was {before.get(changed[0])}, is "
                f"{content[changed[0]]}. Choose another output_dir, or remove that one."
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".config.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, file)
    except OSError as error:
        raise ValueError(f"output_dir={folder} can not be written to: {error.strerror}") from None


def _facts(run: Run) -> dict[str, Any]:
    """What the artifact is checked against later."""
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in run.facts.items()}
    plain = {key: value for key, value in known.items() if isinstance(value, (str, int, float, bool, list))}
    return {**plain, "num_steps": run.num_steps, "timesteps": list(run.timesteps)}


def _fit(module: LearnedModule, config: LearnedConfig, folder: Path) -> dict[str, float]:
    """Run or continue the training to its end; gives what it cost."""
    import lightning

    from fsframework.train.learned_callbacks import Bar, Cost, Validate
    from fsframework.train.stage import SaveLast

    last = folder / f"{module.stage}.ckpt"
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    cost = Cost()
    is_cuda = _device(config).type == "cuda"
    trainer = lightning.Trainer(
        accelerator="cuda" if is_cuda else "cpu",
        devices=config.num_processes,
        strategy="ddp" if config.num_processes > 1 else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        max_steps=module.num_steps,
        max_epochs=-1,
        logger=_logger(config, folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[cost, Validate(config.validation), Bar(), SaveLast(last, config.checkpoint_minutes)],
    )
    try:
        trainer.fit(module, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    except SystemExit:  # what Lightning makes of an interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    return {
        "iterations": float(trainer.global_step), "cpu_seconds": cost.cpu_seconds, "wall_seconds": cost.wall_seconds
    }  # fmt: skip


def _logger(config: LearnedConfig, folder: Path) -> Any:
    """W&B's, or False without it; that it can not be had loses no training.

    The run's identifier follows from the folder and what is trained in it, so a training that goes on is one run there.
    """
    if config.wandb == "disabled":
        return False
    from lightning.pytorch.loggers import WandbLogger

    claimed = f"{folder.resolve()} {(folder / 'config.json').read_text()}"
    try:
        logger = WandbLogger(
            name=config.name,
            project=config.project,
            save_dir=folder,
            offline=config.wandb == "offline",
            id=hashlib.sha256(claimed.encode()).hexdigest()[:12],
            resume="allow",
            config=to_plain(config),
            job_type="train",
        )
        _ = logger.experiment  # begins the run: what can go wrong does so here
    except Exception as error:
        warnings.warn(f"training goes on without W&B: {type(error).__name__}: {error}", stacklevel=2)
        return False
    return logger


def _end_mirror(module: LearnedModule, fit: Fit, path: Path) -> None:
    """Give W&B the numbers and the artifact, and end its run; what fails there is a warning."""
    logger: Any = module.logger
    if logger is None:
        return
    import wandb

    try:
        run = logger.experiment
        run.summary.update(dict(fit.numbers))
        run.log_artifact(str(path), name=module.policy, type="policy")
        wandb.finish()
    except Exception as error:
        warnings.warn(f"W&B has not all of this training: {type(error).__name__}: {error}", stacklevel=2)
