"""The trainer `harmonica`: HarmoniCa (arXiv:2410.01723)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

import fsframework as fsf
from fsframework.core import Call, Curve, Decision, Fit, Part, ReusePolicy, Run, Site
from fsframework.core.decision import DISCARD, RECOMPUTE, REUSE
from fsframework.core.gates import GRANULARITIES
from fsframework.core.policy import Storage
from fsframework.data.prompts import Clip
from fsframework.train.learned import TRAINERS, Learning
from fsframework.train.router_stage import RouterModule, RouterOptions


@dataclass
class HarmoniCaOptions(RouterOptions):
    """Of HarmoniCa."""

    importance_every: int = 500
    """Iterations between measurements of lambda, how much an error at each step matters in the end, >= 1. Each takes a
    video per step. It is 1 before the first."""
    importance_clips: int = 1
    """Clips it is measured on, >= 1: the first of those to learn from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("importance_every", "importance_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class OneStep(ReusePolicy[dict[Site, bool]]):
    """Reuses what a mask says at one step and computes all others."""

    parts: ClassVar[frozenset[Part]] = GRANULARITIES["block"]

    at: int
    """The step."""
    computed: Mapping[str, bool]
    """Site name -> whether it computes there."""
    storage: Storage = "residual"

    def start(self, run: Run) -> dict[Site, bool]:
        """By site."""
        return {site: self.computed[site.name] for site in run.sites}

    def decide(self, state: dict[Site, bool], call: Call, site: Site) -> Decision:
        """Only the step before needs to be kept."""
        if call.step.index == self.at and not state[site]:
            return REUSE
        return RECOMPUTE if call.step.index == self.at - 1 else DISCARD


class OneStepOfParts(OneStep):
    """The same at attention, cross-attention and MLP."""

    parts = GRANULARITIES["submodule"]


ONE_STEP: dict[str, type[OneStep]] = {"block": OneStep, "submodule": OneStepOfParts}
"""Granularity -> the policy that lambda is measured with."""


@TRAINERS.register("harmonica")
class HarmoniCaModule(RouterModule):
    """Learns from whole videos that are made with the gates at work, from noise: no data is needed.

    The sampler gets the blended predictions, so every step meets the latents and the cache that it will meet when the
    policy is used; a cached value is replaced where the gate is above the threshold. The error of a step is the squared
    difference to the full model's prediction for the same latent. Its gradient is for that step's gates: as in the paper
    it does not go back through earlier steps. What an error does to the rest of the video is told by lambda instead,

        lambda_s = |x_0(only step s uses its mask) - x_0(full compute)|^2,   divided by its mean over the steps

    and 1 where the mask of a step reuses nothing, so that the price of compute alone never decides (both ours).
    """

    options_class = HarmoniCaOptions
    policy = "harmonica"
    follow = "student"

    def __init__(self, learning: Learning) -> None:
        super().__init__(learning)
        wanted = self.options.importance_clips
        if wanted > len(learning.clips):
            raise ValueError(f"train.importance_clips={wanted} is more than the {len(learning.clips)} clips there are")

    @staticmethod
    def gated_steps(num_steps: int, options: HarmoniCaOptions) -> list[bool]:
        """All but the first."""
        del options
        if num_steps < 2:
            raise ValueError("harmonica: a run of one step has nothing to reuse; set sampling.num_steps higher")
        return [step > 0 for step in range(num_steps)]

    def loss(self, step: int) -> Tensor:
        """As of every router, with lambda measured anew when it is time."""
        if step and step % self.options.importance_every == 0:
            self.measure_importance()
        return super().loss(step)

    @torch.no_grad()
    def measure_importance(self) -> None:
        """Measure lambda under the masks as they are now. The processes share the steps."""
        options, router = self.options, self.router
        masks = router.table().above(options.threshold)
        num_steps = self.run.num_steps
        reusing = [s for s in range(num_steps) if not all(row[s] for row in masks.values())]
        errors_T = torch.zeros(num_steps, dtype=torch.float64)
        for clip in self.learning.clips[: options.importance_clips] if reusing else ():
            full = self._final_latents(clip, 0, dict.fromkeys(masks, True))
            for step in reusing[self.trainer.global_rank :: self.trainer.world_size]:
                latents = self._final_latents(clip, step, {site: row[step] for site, row in masks.items()})
                errors_T[step] += (latents.double() - full.double()).square().mean()
        errors_T = self.sum_over_processes(errors_T)
        router.importance_T.copy_(normalized(errors_T.tolist(), reusing))

    def _final_latents(self, clip: Clip, step: int, computed: Mapping[str, bool]) -> Tensor:
        learning, options = self.learning, self.options
        policy = ONE_STEP[options.granularity](at=step, computed=computed, storage=options.storage)
        with fsf.reuse(learning.model.pipe, policy, record=False):
            return learning.model.generate_latents(clip.prompt, clip.seed, **learning.sampling)

    def result(self) -> Fit:
        """With lambda."""
        fit = super().result()
        importance: list[float] = self.router.importance_T.tolist()
        steps = [float(step) for step in range(1, len(importance))]
        curve = Curve("lambda", steps, importance[1:], "step", "lambda, how much an error matters")
        return replace(fit, values={**fit.values, "importance": importance}, curves=[*fit.curves, curve])


def normalized(errors: Sequence[float], reusing: Sequence[int]) -> Tensor:
    """lambda [T]: errors over their mean where a mask reuses something, 1 elsewhere, and everywhere if there is no error."""
    total = sum(errors[step] for step in reusing)
    importance = [1.0] * len(errors)
    for step in reusing if total > 0 else ():
        importance[step] = errors[step] * len(reusing) / total
    return torch.tensor(importance)
