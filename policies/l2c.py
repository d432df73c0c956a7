"""Learning-to-Cache: a router trained for a frozen model says which sites of which steps are reused."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import POLICIES, Call, Decision, Part, ReusePolicy, Run, Site
from fsframework.core.gates import check_options, needs_training, parts_of, table_by_hand, trained_table
from fsframework.core.options import check_types
from fsframework.core.policy import Storage
from fsframework.core.schedule import most_kept, plan


@POLICIES.register("l2c")
@dataclass(frozen=True)
class LearningToCache(ReusePolicy[dict[Site, list[Decision]]]):
    """Each step and site has a gate, learned for the frozen model; what has a small one is reused.

    Steps come in pairs: one is computed in full, in the next every site m with a gate sigmoid(theta[s, m]) <= `threshold`
    is reused. Training (`fsf train`, trainer `l2c`) blends in those steps

        y = w * fresh + (1 - w) * cached,    w = sigmoid(theta[s, m])

    and minimises the squared difference to the full model's prediction for the same latent, plus a price on compute: the
    sum of w times each site's share of the FLOPs. At its minimum 1 - w is about the price times the site's FLOPs over the
    error that reusing it makes, so the order of the gates ranks sites by error per FLOP. `budget` reuses the smallest
    gates, as many as a fraction of the FLOPs asks for: one training serves several fractions.

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

    def __post_init__(self) -> None:
        check_types(self, "l2c")
        check_options("l2c", self.artifact, self.budget, self.threshold, self.gates, self.granularity)
        if self.storage not in ("output", "residual"):
            raise ValueError(f"l2c: storage={self.storage!r} must be one of output, residual")

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Blocks or sub-modules."""
        return parts_of("l2c", self.artifact, self.granularity)

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
            raise needs_training("l2c", run)
        table = trained_table("l2c", self.artifact, run, self.storage)
        return table.above(self.threshold) if self.budget is None else table.within(self.budget, "l2c")
