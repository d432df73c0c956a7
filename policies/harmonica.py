"""HarmoniCa: a router trained on whole videos made with reuse says which sites of which steps are reused."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import POLICIES
from fsframework.core.gates import GatedPolicy
from fsframework.core.policy import Storage


@POLICIES.register("harmonica")
@dataclass(frozen=True)
class HarmoniCa(GatedPolicy):
    """Each step and site has a gate, learned over whole videos made with reuse; what has a small one is reused.

    At step s site m is reused iff its gate sigmoid(theta[s, m]) <= `threshold`; the first step never reuses. Training
    (`fsf train`, trainer `harmonica`) needs no data: the frozen model generates from noise with the gates at work, so a step
    finds the cache and the latents that it will find when the policy is used. It minimises

        sum over steps of lambda_s * mean (full(x_s) - blended(x_s))^2  +  price * sum of gates by their FLOPs

    where the blend is w * fresh + (1 - w) * cached with w the gate, and a cached value is replaced only where w is above the
    threshold. lambda_s is how far the final latent ends from that of full compute when only step s uses its mask, measured
    anew every so many iterations: it tells how much an error at that step matters in the end. `budget` reuses the smallest
    gates, as many as a fraction of the FLOPs asks for; trained with a growing price, one artifact serves several fractions.

    Granularity: block or sub-module (the paper: attention and MLP), as trained. Caches every site that is ever reused:
    blocks by their change (a residual), sub-modules by their output before the gate. Host reads: none. Training: two forwards
    and a gradient a step, and a video per step for lambda. Source: arXiv:2410.01723.
    """

    paper = "HarmoniCa, arXiv:2410.01723"
    signal = "the step's number, and gates learned offline"
    deviations = (
        "From a summary of the code. The full model is asked about the student's own latents. lambda has mean 1 over the "
        "steps, and is 1 where a mask reuses nothing. Compute is priced by FLOPs. Blocks and budget are ours."
    )
    example = {"gates": [1.0, 0.0, 1.0, 0.05, 1.0, 0.2, 1.0, 0.1]}
    never = {"gates": []}

    artifact: str | None = None
    """What `fsf train` wrote for this model, sampler and number of steps; see docs/how-to/train-a-policy.md."""
    budget: float | None = None
    """FLOPs to execute at most, a fraction of full compute, above 0 and up to 1; takes the place of `threshold`. Lower
    reuses more: faster, further from the reference."""
    threshold: float = 0.1
    """A site is computed where its gate is above this, 0 to 1 (published: 0.1). Higher reuses more."""
    gates: list[float] | None = None
    """Gates by hand in place of an artifact: one per step, the same for all sites, each 0 to 1; steps beyond them are
    computed, and so is the first."""
    granularity: str | None = None
    """`block` or `submodule`: what is reused; null: as the artifact was trained, blocks without one."""
    storage: Storage = "residual"
    """Of blocks: `residual` adds a block's old change to the live input, `output` puts its old output in place. Must be as
    trained."""
