"""HarmoniCa: a router trained on whole videos made with reuse says which sites of which steps are reused."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import POLICIES, Call, Decision, Part, ReusePolicy, Run, Site
from fsframework.core.gates import check_options, needs_training, parts_of, table_by_hand, trained_table
from fsframework.core.options import check_types
from fsframework.core.policy import Storage
from fsframework.core.schedule import most_kept, plan


@POLICIES.register("harmonica")
@dataclass(frozen=True)
class HarmoniCa(ReusePolicy[dict[Site, list[Decision]]]):
    """Each step and site has a gate, learned over whole videos made with reuse; what has a small one is reused.

    At step s site m is reused iff its gate sigmoid(theta[s, m]) <= `threshold`; the first step never reuses. Training
    (`fsf train`, trainer `harmonica`) needs no data: the frozen model generates from noise with the gates at work, so a step
    finds the cache and the latents that it will find when the policy is used. It minimises

        sum over steps of lambda_s * mean (full(x_s) - blended(x_s))^2  +  price * sum of gates by their FLOPs

    where the blend is w * fresh + (1 - w) * cached with w the gate, and a cached value is replaced only where w is above the
    threshold. lambda_s is how far the final latent ends from that of full compute when only step s uses its mask, measured
    anew every so many iterations: it tells how much an error at that step matters in the end. `budget` reuses the smallest
    gates, as many as a fraction of the FLOPs asks for: one training serves several fractions.

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

    def __post_init__(self) -> None:
        check_types(self, "harmonica")
        check_options("harmonica", self.artifact, self.budget, self.threshold, self.gates, self.granularity)
        if self.storage not in ("output", "residual"):
            raise ValueError(f"harmonica: storage={self.storage!r} must be one of output, residual")

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Blocks or sub-modules."""
        return parts_of("harmonica", self.artifact, self.granularity)

    def start(self, run: Run) -> dict[Site, list[Decision]]:
        """What to do with each site at each step.

        Raises:
            ValueError: neither artifact nor gates, an artifact of another model, sampler or number of steps, or a budget
                that its gates can not meet.
        """
        computes = self._computes(run)
        return {site: plan(computes[site.name], run.depth) for site in run.sites}

    def decide(self, state: dict[Site, list[Decision]], call: Call, site: Site) -> Decision:
        """By the site and the step's number."""
        return state[site][call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Steps in which every site is computed."""
        return [all(step) for step in zip(*self._computes(run).values())]

    def num_cached(self, run: Run) -> int:
        """One value (of a forecast, several) of each site that is ever reused."""
        return sum(most_kept(row, run.depth) for row in self._computes(run).values())

    def _computes(self, run: Run) -> dict[str, list[bool]]:
        if self.gates is not None:
            sites = tuple(site.name for site in run.sites)
            return table_by_hand(tuple(self.gates), sites, run.num_steps).above(self.threshold)
        if self.artifact is None:
            raise needs_training("harmonica", run)
        table = trained_table("harmonica", self.artifact, run, self.storage)
        return table.above(self.threshold) if self.budget is None else table.within(self.budget, "harmonica")
