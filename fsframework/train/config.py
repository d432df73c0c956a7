"""The config of a training run and how it is read.

Reading it imports torch, but trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from fsframework.train.autoencoder import AutoencoderConfig
from fsframework.train.diffusion import DenoiserStageConfig, MonitorConfig
from fsframework.train.families import FAMILIES
from fsframework.train.text import TextConfig


@dataclass
class EvaluationConfig:
    """How the exported pipeline is judged: all 20 captions, each with several seeds that training never samples."""

    seeds_per_caption: int = 4
    first_seed: int = 7_000_000
    num_steps: int = 50
    guidance_scale: float = 4.0


@dataclass
class TinyConfig:
    """A whole training run."""

    name: str = "tiny-latte"
    family: str = "latte"
    """"latte", "cogvideox" or "opensora"."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the family's transformer: the fields of `LatteConfig`, `CogVideoXConfig` or `OpenSoraConfig`."""
    output_dir: str = "runs/train/tiny-latte"
    seed: int = 0
    num_processes: int = 1
    """Processes that share every batch (gloo on CPU). On a busy machine two processes of one thread beat one process
    of two: threads wait for each other in every operation, processes once a step."""
    num_threads: int = 2
    """CPU threads of each process."""
    checkpoint_minutes: float = 3.0
    wandb: bool = True
    """Also log to W&B, offline; `metrics.jsonl` in the output directory is the truth."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    stages: list[DenoiserStageConfig] = field(default_factory=list)
    """Denoiser stages in order; each starts from the averaged weights of the one before."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export_dir: str = ""
    """Folder for the pipeline, its training record and its evaluation; default: `pipeline` in the output directory."""
    export_only: bool = False
    """Train nothing; export and evaluate the newest weights, also those of an unfinished stage."""


def load_config(path: str, overrides: list[str]) -> Any:
    """Defaults <- YAML file <- `key=value` overrides; unknown keys and wrong types are errors that say where."""
    from omegaconf import OmegaConf

    merged = OmegaConf.structured(TinyConfig)
    try:
        for where, source in ((path, OmegaConf.load(path)), ("command line", OmegaConf.from_dotlist(overrides))):
            merged = _merge(merged, source, where, "a training config")
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    model = OmegaConf.structured(FAMILIES[merged.family].config_class)
    model = _merge(model, merged.model, path, f"the section `model` of family {merged.family}")
    config: Any = OmegaConf.to_object(merged)
    config.model = OmegaConf.to_container(model)
    return config


def _merge(base: Any, source: Any, where: str, what: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.merge(base, source)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{where}: {reason}. The keys of {what}: {', '.join(base)}.") from None
