"""`TRAINERS`: what `fsf train` can train for a frozen model, by the name under `train` in its YAML file.

A trainer is a `LearnedModule`: a stage whose `networks` are small (a router, a predictor) and whose model is frozen. It
trains from what the model does and ends in an `Artifact` for an ordinary policy. A new one is a new file in this folder
that registers its class; nothing else is edited::

    @TRAINERS.register("l2c")
    class L2CModule(LearnedModule):
        options_class = L2COptions
        policy = "l2c"
        ...
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

import fsframework.train
from fsframework.core import Fit, Run
from fsframework.core.registry import Registry
from fsframework.train.stage import MetricsFile, StageModule

if TYPE_CHECKING:
    from fsframework.core import LoadedModel
    from fsframework.data.prompts import Clip
    from fsframework.train.learned_config import LearnedConfig

TRAINERS: Registry[type[LearnedModule]] = Registry("trainer")
"""Name under `train` -> the class that trains it. Filled by `load_trainers`."""


def load_trainers() -> Registry[type[LearnedModule]]:
    """`TRAINERS` with every trainer of this folder: importing their files registers them."""
    for module in pkgutil.iter_modules(fsframework.train.__path__):
        importlib.import_module(f"{fsframework.train.__name__}.{module.name}")
    return TRAINERS


@dataclass(frozen=True)
class Learning:
    """What a trainer gets: its config, the frozen model, and what to learn from."""

    config: LearnedConfig
    options: Any
    """An object of the trainer's `options_class`."""
    model: LoadedModel
    """Loaded; none of its weights takes gradients."""
    sampling: dict[str, Any]
    """Arguments of `LoadedModel.generate_latents`, with the checkpoint's defaults filled in."""
    clips: list[Clip]
    """Captions with seeds to learn from, once each."""
    validation_clips: list[Clip]
    """Captions with seeds that are never learned from."""
    metrics: MetricsFile


class LearnedModule(StageModule):
    """Trains `networks` for one policy. `loss(step)` and `optimizer()` are those of `StageModule`.

    The loss of a step must follow from the step's number, the seed and the state of the module alone, so that a run that
    was killed goes on bit for bit. Whatever else a trainer changes on the way belongs into buffers of `networks`, which
    are in the checkpoint. The model is no part of the module: it is neither saved nor given to the optimizer.
    """

    options_class: ClassVar[type]
    """Dataclass of the options beside `name` under `train`; each has a default and a documentation."""
    policy: ClassVar[str]
    """Registered name of the policy that reads the artifact."""

    def __init__(self, learning: Learning, networks: nn.Module) -> None:
        config = learning.config
        super().__init__(
            networks,
            stage=config.train["name"],
            seed=config.seed,
            num_steps=config.num_iterations,
            warmup_steps=config.warmup_iterations,
            decay_fraction=config.decay_fraction,
            ema_decay=0.0,
            clip_norm=config.clip_norm,
            log_every=config.log_every,
            metrics=learning.metrics,
        )
        self.learning = learning

    @property
    @abstractmethod
    def run(self) -> Run:
        """The run that the artifact holds for: its facts are compared with those of the run it is used in."""

    @abstractmethod
    def result(self) -> Fit:
        """What was learned: values for the artifact, numbers that tell how good it is, curves to draw."""

    def validate(self) -> dict[str, float]:
        """Numbers measured on `validation_clips`, without gradients; early stopping looks at `validation`, lower is better.

        Called every `validate_every` iterations in all processes, each of which must come to the same numbers.
        """
        return {}

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over `networks`."""
        return torch.optim.Adam(
            [p for p in self.networks.parameters() if p.requires_grad], lr=self.learning.config.learning_rate
        )
