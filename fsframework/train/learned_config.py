"""The config of `fsf train` where it learns a policy: `train` names the trainer, the rest is the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsframework.config.load import PROMPT_FILES, beside, nearest_key, parse_overrides, read_yaml
from fsframework.config.schema import ModelConfig, PromptsConfig, SamplingConfig

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass
class SeedRange:
    """Clip i starts from noise of seed `base + i`."""

    base: int = 0
    """Seed of the first clip, >= 0."""
    per_prompt: int = 1
    """Clips per caption, >= 1."""


@dataclass
class ValidationConfig:
    """What is measured on the way, on clips that are never learned from."""

    every: int = 0
    """Iterations between measurements, >= 0; 0 measures never."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """Captions, as `prompts`."""
    seeds: SeedRange = field(default_factory=lambda: SeedRange(base=5_000_000))
    """Noise."""
    patience: int = 0
    """Stop when so many measurements in a row were no better than the best, >= 0; 0 stops never."""
    min_change: float = 0.0
    """How much lower a measurement must be to count as better, in the trainer's unit, >= 0."""


@dataclass
class LearnedConfig:
    """A training run for a frozen model."""

    name: str = "learned"
    """Of the run, as W&B shows it."""
    train: dict[str, Any] = field(default_factory=dict)
    """`name` of the trainer and its options. `train: NAME` is short for `{name: NAME}`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The frozen model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """As the policy will be used: an artifact is for one sampler and number of steps."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """Captions to learn from."""
    seeds: SeedRange = field(default_factory=SeedRange)
    """Noise to learn from."""
    seed: int = 0
    """Of everything else that is random in training, >= 0."""
    num_iterations: int = 100
    """Steps of the optimizer, >= 1."""
    batch_clips: int = 1
    """Clips per iteration, >= 1; the processes share them."""
    learning_rate: float = 0.01
    """Of Adam, > 0."""
    warmup_iterations: int = 0
    """Iterations over which the learning rate rises to its value, >= 0."""
    decay_fraction: float = 0.0
    """Share of the iterations, at the end, over which it falls to 0, 0 to 1."""
    clip_norm: float = 1e9
    """Largest norm of the gradient, > 0; as it comes, it bounds nothing."""
    precision: str = "32-true"
    """32-true, or bf16-mixed: what autocast knows runs in bfloat16."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    num_processes: int = 1
    """Processes on this machine that share every batch, >= 1; gloo on CPUs, a GPU each on CUDA."""
    num_threads: int | None = 1
    """CPU threads of each process, >= 1; null: as many as torch takes."""
    log_every: int = 10
    """Iterations between rows of metrics.jsonl, >= 1."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints, >= 0; 0: after every iteration."""
    wandb: str = "offline"
    """offline (no account, no network), online, or disabled. metrics.jsonl is the truth."""
    project: str = "fsframework-learned"
    """W&B project."""
    output_dir: str = "runs/train/learned"
    """Checkpoint, metrics and W&B's files, relative to where you are; a run with other settings needs another folder."""
    artifact: str | None = None
    """The file to write, .json, relative to where you are; null: `artifact.json` in `output_dir`."""


_AT_LEAST: dict[str, float] = {
    "seed": 0, "num_iterations": 1, "batch_clips": 1, "warmup_iterations": 0, "decay_fraction": 0, "num_processes": 1,
    "num_threads": 1, "log_every": 1, "checkpoint_minutes": 0, "seeds.base": 0, "seeds.per_prompt": 1,
    "sampling.num_steps": 1, "sampling.guidance_scale": 1, "prompts.limit": 1, "validation.every": 0,
    "validation.patience": 0, "validation.min_change": 0, "validation.prompts.limit": 1, "validation.seeds.base": 0,
    "validation.seeds.per_prompt": 1,
}  # fmt: skip
_ABOVE_ZERO = ("learning_rate", "clip_norm")
_CHOICES = {"precision": PRECISIONS, "wandb": ("offline", "online", "disabled")}


def trains_a_policy(path: str | Path) -> bool:
    """Whether a YAML file of `fsf train` is for a learned policy: it then says `train: ...`."""
    return "train" in read_yaml(path)


def load_learned_config(path: str | Path, overrides: list[str]) -> LearnedConfig:
    """Defaults <- YAML file <- `key=value` overrides. A prompt file is looked for beside the YAML file first.

    The options under `train` are checked by the trainer's class: `options_of`.

    Raises:
        ValueError: unknown key, wrong type, or a value out of range; one sentence that names it.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.structured(LearnedConfig)
    for content, where in [(read_yaml(path), str(path)), *parse_overrides(overrides)]:
        merged = _merge(merged, _long_form(dict(content)), where, "")
    config = OmegaConf.to_object(merged)
    assert isinstance(config, LearnedConfig)
    _check(config)
    folder = Path(path).resolve().parent
    for prompts in (config.prompts, config.validation.prompts):
        if prompts.texts is None and prompts.set.endswith(PROMPT_FILES):
            prompts.set = str(beside(folder, prompts.set))
    return config


def options_of(options_class: type, config: LearnedConfig) -> Any:
    """The trainer's options under `train`, as an object of its class.

    Raises:
        ValueError: unknown option, wrong type, or a value that the class refuses.
    """
    from omegaconf import OmegaConf

    given = {key: value for key, value in config.train.items() if key != "name"}
    return OmegaConf.to_object(_merge(OmegaConf.structured(options_class), given, "the config", "train."))


def to_plain(config: LearnedConfig) -> dict[str, Any]:
    """The config as nested dictionaries."""
    return dataclasses.asdict(config)


def _long_form(content: dict[str, Any]) -> dict[str, Any]:
    """Sections written as one string, or captions as a list, in full."""
    for section in ("train", "model"):
        if isinstance(content.get(section), str):
            content[section] = {"name": content[section]}
    holders = [content]
    if isinstance(content.get("validation"), dict):
        content["validation"] = dict(content["validation"])
        holders.append(content["validation"])
    for holder in holders:
        if isinstance(holder.get("prompts"), str):
            holder["prompts"] = {"set": holder["prompts"]}
        elif isinstance(holder.get("prompts"), list):
            holder["prompts"] = {"texts": holder["prompts"]}
    return content


def _merge(base: Any, source: Mapping[str, Any], where: str, prefix: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    try:
        return OmegaConf.merge(base, OmegaConf.create(dict(source)))
    except (ConfigKeyError, ConfigAttributeError) as error:
        key = str(error.full_key or error.key)
        holder: Any = base
        for part in key.split(".")[:-1]:
            holder = holder[part]
        raise ValueError(
            f"{where}: unknown key {prefix + key!r}. {nearest_key(key.split('.')[-1], list(holder))}"
        ) from None
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{where}: {prefix}{error.full_key or ''}: {reason}") from None


def _check(config: LearnedConfig) -> None:
    if not isinstance(config.train.get("name"), str):
        raise ValueError("train needs the name of a trainer, such as train: {name: l2c, interval: 2}")
    values = dict(_leaves(to_plain(config)))
    for key, least in _AT_LEAST.items():
        if values[key] is not None and values[key] < least:
            raise ValueError(f"{key}={values[key]} must be at least {least:g}")
    for key in _ABOVE_ZERO:
        if not values[key] > 0:
            raise ValueError(f"{key}={values[key]} must be above 0")
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise ValueError(f"{key}={values[key]!r} is not possible. {nearest_key(str(values[key]), choices)}")
    if config.decay_fraction > 1:
        raise ValueError(f"decay_fraction={config.decay_fraction} is a share of the iterations, 0 to 1")
    if config.batch_clips % config.num_processes:
        raise ValueError(
            f"batch_clips={config.batch_clips} can not be shared by num_processes={config.num_processes}; make it a multiple"
        )
    if config.validation.patience and not config.validation.every:
        raise ValueError("validation.patience stops by measurements; set validation.every, the iterations between them")
    if config.artifact is not None and Path(config.artifact).suffix != ".json":
        raise ValueError(f"artifact={config.artifact!r} must be a .json file")


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and prefix != "train.":
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]
