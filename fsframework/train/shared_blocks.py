"""Shared-block computation: neighbouring timesteps of one clip in a training step, some blocks computed for the first only.

Feature reuse brought into training. A step draws clips and for each a timestep t, and runs the model at t, t - delta, ...,
with the same noise. The first forward computes everything; in the others some blocks give back what they added to their
input in the first, detached: a reused block costs nothing, forward or backward, and passes gradients on unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fsframework as fsf
from fsframework.core import Call, Decision, ReusePolicy, Run, Site
from fsframework.core.decision import DISCARD, RECOMPUTE, REUSE
from fsframework.core.live_count import flop_counter
from fsframework.core.policy import Storage
from fsframework.train.diffusion import DenoiserStage

WHICH = ("early", "late", "alternate")


@dataclass
class SharedBlocksConfig:
    """How the forwards of one training step share their blocks."""

    num_forwards: int = 2
    """Neighbouring timesteps per clip, K >= 1; 1 is ordinary training."""
    delta: float = 33.0
    """Distance of neighbouring timesteps, of 1000; the default is a step of a sampler with 30. Those below 0 become 0."""
    share: float = 0.5
    """Share of the layers reused in all forwards but the first, 0 to 1, rounded to whole layers. 0 reuses nothing."""
    which: str = "late"
    """Which layers: the first ("early"), the last ("late"), or spread evenly over the depth ("alternate")."""

    def __post_init__(self) -> None:
        if self.num_forwards < 1:
            raise ValueError(f"shared blocks: num_forwards={self.num_forwards} must be at least 1")
        if self.delta < 0:
            raise ValueError(f"shared blocks: delta={self.delta} must be at least 0")
        if not 0 <= self.share <= 1:
            raise ValueError(f"shared blocks: share={self.share} must be 0 to 1")
        if self.which not in WHICH:
            raise ValueError(f"shared blocks: which={self.which!r} must be one of {', '.join(WHICH)}")


def layers_of(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites in execution order, put together into layers: a spatial and a temporal block that take turns are one."""
    layers: list[list[Site]] = []
    for site in sites:
        if not layers or site.kind in {one.kind for one in layers[-1]}:
            layers.append([])
        layers[-1].append(site)
    return layers


def chosen_layers(num_layers: int, share: float, which: str) -> list[int]:
    """Indices of the layers that are reused; `chosen_layers(4, 0.5, "alternate")` is [1, 3]."""
    count = round(share * num_layers)
    if which == "early":
        return list(range(count))
    if which == "late":
        return list(range(num_layers - count, num_layers))
    return [i for i in range(num_layers) if (i + 1) * count // num_layers > i * count // num_layers]


@dataclass(frozen=True)
class SharedBlocks(ReusePolicy[frozenset[Site]]):
    """In every step but the first, the chosen layers add their detached residual of the first step to their input.

    "Steps" are the forwards of one training step. Granularity: block. Host reads: none. Memory: a residual per reused
    block, which are tensors that the graph does not hold.
    """

    signal = "the forward's number"
    differentiable: ClassVar[bool] = True

    share: float = 0.5
    """Share of the layers, see `SharedBlocksConfig.share`."""
    which: str = "late"
    """See `SharedBlocksConfig.which`."""
    storage: Storage = "residual"

    def start(self, run: Run) -> frozenset[Site]:
        """The sites that are reused."""
        layers = layers_of(run.sites)
        return frozenset(s for i in chosen_layers(len(layers), self.share, self.which) for s in layers[i])

    def decide(self, state: frozenset[Site], call: Call, site: Site) -> Decision:
        """Compute, and store what is needed; reuse."""
        if site not in state:
            return DISCARD
        return RECOMPUTE if call.step.index == 0 else REUSE


class SharedBlocksStage(DenoiserStage):
    """A `DenoiserStage` whose step sees every clip at several neighbouring timesteps; the loss is the mean over them.

    With one forward, or with nothing reused, it is ordinary training on (one, or correlated) timesteps, bit for bit.
    """

    def __init__(self, *args: Any, shared: SharedBlocksConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = shared
        # Any values will do that differ: the session is told its steps.
        self._forwards = [float(k) for k in range(shared.num_forwards)]

    def loss(self, step: int) -> Tensor:
        """Mean squared error, over all forwards; clips, noise and the first timesteps are those of `DenoiserStage`."""
        return self._loss_of(*self.draw(step))

    def _loss_of(
        self,
        clean_BCFHW: Tensor,
        noise_BCFHW: Tensor,
        timesteps_B: Tensor,
        prompts: list[str],
        conditions: Mapping[str, Any],
    ) -> Tensor:
        denoiser: Any = self.networks
        policy = SharedBlocks(self.shared.share, self.shared.which)
        losses: list[Tensor] = []
        session: Any = fsf.reuse(denoiser.transformer, policy, timesteps=self._forwards, record=False)
        with session:
            for k in range(self.shared.num_forwards):
                there_B = (timesteps_B - k * self.shared.delta).clamp(min=0).to(timesteps_B.dtype)
                noisy_BCFHW, target_BCFHW = denoiser.noisy_and_target(clean_BCFHW, noise_BCFHW, there_B)
                session.step(k)
                losses.append(
                    nn.functional.mse_loss(denoiser(noisy_BCFHW, there_B, prompts, **conditions), target_BCFHW)
                )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def flops_per_step(self) -> float:
        """FLOPs of a training step, counted while it runs: its data, what really ran of the forwards, and twice that for the
        backward.

        Matrix products, convolutions and attention, the text encoder among them; not the optimizer, whose cost does not
        depend on the batch. A reused block costs nothing in either direction. The data are made once for all forwards, and
        no gradient goes through them; only Open-Sora's cost something, for the code over time of its latents.
        """
        with flop_counter() as data:
            drawn = self.draw(0)
        with flop_counter() as forwards:
            self._loss_of(*drawn)
        return float(data.get_total_flops()) + 3.0 * float(forwards.get_total_flops())
