"""EasyCache: the whole prediction is reused while the latent's movement promises little change of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Branch,
    Call,
    Decision,
    Entry,
    Part,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.schedule import warmup_steps


@dataclass
class EasyCacheState:
    """One video and branch. The latents and predictions are kept in the cache; the scalars are 0-d float32 tensors."""

    warmup: int
    threshold: float
    rate: Tensor | None = None
    """k: how far the prediction moved per movement of the latent, between the last two computed steps."""
    size: Tensor | None = None
    """mean|v| of the last computed prediction."""
    error: float = 0.0
    """Estimated relative error since the last computed step."""
    step: int = -1
    """The last step decided about, and the decision."""
    reuse: bool = False


@POLICIES.register("easycache")
@dataclass(frozen=True)
class EasyCache(ReusePolicy[EasyCacheState]):
    """Reuses prediction minus latent while an error estimated from the latent's movement stays below a threshold.

    With x(s) the latent entering the model at step s, v(s) the prediction, and i < j the last two *computed* steps,

        k = mean|v(j) - v(i)| / mean|x(j) - x(i)|
        e <- e + k * mean|x(s) - x(s-1)| / mean|v(j)|;   reuse at s  iff  e < threshold, else compute and e = 0

    and a reuse gives v(s) = x(s) + (v(j) - x(j)). The first `warmup` and the last `last` steps are always computed (e = 0
    there). Under sequential guidance the cond branch's numbers decide for all branches of the step, whichever is called
    first; under batched guidance the batch decides as one.

    Granularity: the whole model, head included. Caches the latent-sized v - x and keeps two latents and one prediction
    (a branch that follows keeps one latent): far less than one hidden state. Host reads: one per step, before the model.
    Source: EasyCache (arXiv:2507.02860, github.com/H-EmbodVis/EasyCache). v - x mixes two noise levels and suits flow
    matching, where v is about noise - x.
    """

    paper = "EasyCache, arXiv:2507.02860"
    signal = "movement of the latent times the last measured rate of the prediction, before the model"
    deviations = (
        "With predictions of more channels than the latent (a learned variance) only the common ones are measured. "
        "Under batched guidance, for which nothing was released, the batch decides as one. The released code keeps its "
        "rate and latents into the next video, hidden by the forced first steps; here every video starts cold. The "
        "settings where nothing was published are those of Wan 2.1."
    )
    published = {
        "": {"threshold": 0.05, "warmup": 10},
        "hunyuan-video": {"threshold": 0.025, "warmup": 5},
    }
    example = {"warmup": 2}
    never = {"threshold": 0.0}
    parts = frozenset({Part.MODEL})
    storage = "residual"
    host_reads_per_step: ClassVar[int] = 1

    threshold: float | None = None
    """tau on the estimated relative error, >= 0. Higher reuses more: faster, further from the reference. None is as
    published: 0.025 for HunyuanVideo, else 0.05 (Wan 2.1)."""
    warmup: float | int | None = None
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 2 to know a
    rate. None is as published: 5 for HunyuanVideo, else 10 (Wan 2.1)."""
    last: int = 1
    """Steps at the end that are always recomputed, >= 0."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(
                f"easycache: threshold={self.threshold} must be a finite number >= 0; published are 0.025 and 0.05"
            )
        if self.last < 0:
            raise ValueError(f"easycache: last={self.last} must be >= 0")

    def start(self, run: Run) -> EasyCacheState:
        """A cold state: no rate."""
        warmup = warmup_steps(self.option("warmup", run), run.num_steps, 2, "easycache")
        return EasyCacheState(warmup, self.option("threshold", run))

    def decide(self, state: EasyCacheState, call: Call, site: Site) -> Decision:
        """Once a step, with cond's numbers; the other branches follow."""
        latent, before = call.input()[0], call.kept("latent")
        call.keep("latent", (latent.clone(),))  # the caller owns the latent, and may write to it
        leader = state if call.branch in LEADERS else call.state_of(Branch.COND)
        if not isinstance(leader, EasyCacheState):
            return RECOMPUTE
        if leader.step != call.step.index:
            leader.step, leader.reuse = call.step.index, self._may_reuse(leader, call, latent, before)
            if not leader.reuse:
                leader.error = 0.0
        return REUSE if leader.reuse else RECOMPUTE

    def _may_reuse(self, leader: EasyCacheState, call: Call, latent: Tensor, before: State | None) -> bool:
        step = call.step
        if not leader.warmup <= step.index < step.num_steps - self.last:
            return False
        if leader.rate is None or leader.size is None or before is None:
            return False
        change = leader.rate * _distance(latent, before[0]) / leader.size
        (change_on_host,) = call.meter.fetch(call.meter.mean_over_ranks(change))
        leader.error += change_on_host
        call.log(distance=leader.error, threshold=leader.threshold)
        return leader.error < leader.threshold  # not so for NaN and inf

    def observe(self, state: EasyCacheState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure the rate between this computed step and the one before. Nobody asks for that of a branch that follows."""
        if call.branch not in LEADERS:
            return
        latent, prediction = call.kept("latent"), fresh[0]
        assert latent is not None
        old_latent, old_prediction = call.kept("computed_latent"), call.kept("prediction")
        state.size = _common(prediction, latent[0]).float().abs().mean()
        if old_latent is not None and old_prediction is not None:
            moved = _distance(_common(latent[0], prediction), _common(old_latent[0], prediction))
            change = _distance(_common(prediction, latent[0]), _common(old_prediction[0], latent[0]))
            # A latent that stands still says nothing of the rate: NaN, so that nothing is reused on it.
            state.rate = torch.where(moved > 0, change / moved, math.nan)
        call.keep("computed_latent", latent)
        call.keep("prediction", (prediction.clone(),))

    def num_kept(self, run: Run) -> int:
        """The latent of the last step; where the branch decides, that of the last computed one and the last prediction too."""
        return 3 if run.branch in LEADERS else 1


LEADERS = (Branch.COND, Branch.JOINT)
"""Branches whose numbers decide."""


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).abs().mean()


def _common(x: Tensor, like: Tensor) -> Tensor:
    """The first channels, frames, ... of `x`, as many as `like` has."""
    return x[tuple(slice(0, min(a, b)) for a, b in zip(x.shape, like.shape))]
