"""The trainer `l2c`: Learning-to-Cache (arXiv:2406.01733)."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.train.learned import TRAINERS
from fsframework.train.router_stage import RouterModule, RouterOptions


@dataclass
class L2COptions(RouterOptions):
    """Of Learning-to-Cache."""

    interval: int = 2
    """Every so many steps one is computed in full and the others have gates, >= 2 (the paper: 2, pairs). At most
    1 - 1/interval of the blocks' FLOPs can be saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval < 2:
            raise ValueError(f"train.interval={self.interval} must be at least 2 steps, or no step has gates")


@TRAINERS.register("l2c")
class L2CModule(RouterModule):
    """Learns from neighbouring steps of the frozen model's own trajectories.

    A video is generated with full compute. Step s with s % interval == 0 fills the cache; in the steps after it the same
    latent is also put through the model with its sites blended, and the squared difference of the two predictions is the
    error. As the latents do not depend on the gates, the gradient is exact for pairs. With an interval above 2 (ours) a site
    that computes in a step renews its cached value for the next, as it will when the policy is used, and the gradient does
    not go back through that value.

    The paper takes noised latents of real images; latents of the model's own trajectories are those that the sampler will
    meet, and need no data.
    """

    options_class = L2COptions
    policy = "l2c"
    follow = "teacher"

    @staticmethod
    def gated_steps(num_steps: int, options: L2COptions) -> list[bool]:
        """All but every `interval`-th."""
        if num_steps < 2:
            raise ValueError("l2c: a run of one step has nothing to reuse; set sampling.num_steps higher")
        return [step % options.interval != 0 for step in range(num_steps)]
