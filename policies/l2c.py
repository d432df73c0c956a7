"""Learning-to-Cache: a router trained for a frozen model says which sites of which steps are reused."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import POLICIES
from fsframework.core.gates import GatedPolicy
from fsframework.core.policy import Storage


@POLICIES.register("l2c")
@dataclass(frozen=True)
class LearningToCache(GatedPolicy):
    """Each step and site has a gate, learned for the frozen model; what has a small one is reused.

    Steps come in pairs: one is computed in full, in the next every site m with a gate sigmoid(theta[s, m]) <= `threshold`
    is reused. Training (`fsf train`, trainer `l2c`) blends in those steps

        y = w * fresh + (1 - w) * cached,    w = sigmoid(theta[s, m])

    and minimises the squared difference to the full model's prediction for the same latent, plus a price on compute: the
    sum of w times each site's share of the FLOPs. At its minimum 1 - w is about the price times the site's FLOPs over the
    error that reusing it makes, so the order of the gates ranks sites by error per FLOP. `budget` reuses the smallest
    gates, as many as a fraction of the FLOPs asks for; trained with a growing price, one artifact serves several fractions.

    Granularity: block or sub-module (the paper: attention and MLP), as trained. Caches every site that is ever reused:
    blocks by their change (a residual), sub-modules by their output before the gate. Host reads: none. Training: 1.5
    forwards a step, and the gradient of every second. Source: arXiv:2406.01733, github.com/horseee/learning-to-cache.
    """

    paper = "Learning-to-Cache, arXiv:2406.01733, github.com/horseee/learning-to-cache"
    signal = "the step's number, and gates learned offline"
    deviations = (
        "Latents for training come from the frozen model's own trajectories for captions, not from encoded images. "
        "Compute is priced by FLOPs. Block granularity, intervals above 2 and budget are ours."
    )
    example = {"gates": [1.0, 0.0, 1.0, 0.05, 1.0, 0.2, 1.0, 0.1]}
    never = {"gates": []}

    artifact: str | None = None
    """What `fsf train` wrote for this model, sampler and number of steps; see docs/how-to/train-a-policy.md."""
    budget: float | None = None
    """FLOPs to execute at most, a fraction of full compute, above 0 and up to 1; takes the place of `threshold`. Lower
    reuses more: faster, further from the reference. How low it can be depends on the training's `interval`."""
    threshold: float = 0.1
    """A site is computed where its gate is above this, 0 to 1 (published: 0.1; 0.9 for 512 x 512). Higher reuses more."""
    gates: list[float] | None = None
    """Gates by hand in place of an artifact: one per step, the same for all sites, each 0 to 1; steps beyond them are
    computed, and so is the first."""
    granularity: str | None = None
    """`block` or `submodule`: what is reused; null: as the artifact was trained, blocks without one."""
    storage: Storage = "residual"
    """Of blocks: `residual` adds a block's old change to the live input, `output` puts its old output in place. Must be as
    trained."""
