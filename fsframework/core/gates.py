"""Tables of learned gates, one number per step and site, and the policies that decide by them: what routers give at inference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fsframework.core.calibration import Artifact
from fsframework.core.decision import Decision
from fsframework.core.policy import Call, ReusePolicy, Storage
from fsframework.core.registry import POLICIES
from fsframework.core.review import ReuseWarning
from fsframework.core.schedule import most_kept, plan
from fsframework.core.site import Part, Run, Site

GRANULARITIES: dict[str, frozenset[Part]] = {
    "block": frozenset({Part.BLOCK}),
    "submodule": frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP}),
}
"""What a table has gates for -> the parts of the model."""
FIXED = 1.0
"""The gate of a site at a step in which it is always computed; a learned one is below."""

Computes = Mapping[str, Sequence[bool]]
"""Site name -> per step, whether it is computed."""


@dataclass(frozen=True)
class GateTable:
    """Gates between 0 (reuse costs nothing) and 1, by site name and step."""

    gates: Mapping[str, Sequence[float]]
    """Site name -> a gate per step; all of one length."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Site name -> its share of the FLOPs of one forward of the model. What is left is never reused."""

    @property
    def num_steps(self) -> int:
        """Steps of the run the gates are for."""
        return len(next(iter(self.gates.values())))

    def above(self, threshold: float) -> dict[str, list[bool]]:
        """Compute where the gate is above the threshold, and at the first step."""
        return {
            site: [step == 0 or gate > threshold for step, gate in enumerate(row)] for site, row in self.gates.items()
        }

    def within(self, budget: float, owner: str) -> dict[str, list[bool]]:
        """Reuse the smallest gates, as few as it takes to execute at most `budget` of the FLOPs of full compute.

        This is a threshold of its own for every budget. Equal gates are reused in the order of sites and steps, so the
        result is within one site's share of one step below the budget.

        Raises:
            ValueError: reusing everything that has a learned gate leaves more than that; `owner` is the policy.
        """
        cells = [
            (gate, place, step, site)
            for place, (site, row) in enumerate(self.gates.items())
            for step, gate in enumerate(row)
            if step > 0 and gate < FIXED
        ]
        computes = {site: [True] * self.num_steps for site in self.gates}
        executed = 1.0
        for _, _, step, site in sorted(cells):
            if executed <= budget + 1e-9:
                break
            computes[site][step] = False
            executed -= self.shares[site] / self.num_steps
        if executed > budget + 1e-9:
            raise ValueError(
                f"{owner}: budget={budget} can not be met: with every learned gate reused, {executed:.3f} of the FLOPs are "
                f"left. Raise policy.budget, or train with more steps that may reuse."
            )
        return computes

    def flops_fraction(self, computes: Computes) -> float:
        """FLOPs executed over those of full compute."""
        saved = sum(self.shares[site] * (len(row) - sum(row)) for site, row in computes.items())
        return 1.0 - saved / self.num_steps

    def values(self, granularity: str, storage: str) -> dict[str, Any]:
        """What an artifact holds; numbers to six digits."""
        return {
            "granularity": granularity,
            "storage": storage,
            "gates": {site: [round(float(gate), 6) for gate in row] for site, row in self.gates.items()},
            "flops_share": {site: round(float(share), 9) for site, share in self.shares.items()},
        }


class GatedPolicy(ReusePolicy[dict[Site, list[Decision]]]):
    """Reuses by a table of gates, from an artifact of `fsf train` or by hand: what Learning-to-Cache and HarmoniCa share.

    A subclass is a frozen dataclass with the options below, each documented by it; they are annotated here and no fields.
    """

    artifact: str | None
    budget: float | None
    threshold: float
    gates: list[float] | None
    granularity: str | None
    storage: Storage

    def __post_init__(self) -> None:
        check_options(self._name, self)

    @property
    def _name(self) -> str:
        return POLICIES.name_of(type(self))

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Blocks or sub-modules: those of the granularity given, or else of the artifact, or else blocks.

        Raises:
            ValueError: no such artifact.
        """
        granularity = self.granularity
        if granularity is None and self.artifact is not None:
            granularity = str(Artifact.load(self.artifact, self._name).values["granularity"])
        return GRANULARITIES[granularity or "block"]

    def start(self, run: Run) -> dict[Site, list[Decision]]:
        """What to do with each site at each step.

        Raises:
            ValueError: neither artifact nor gates, an artifact of another model, sampler or number of steps, or a budget
                that its gates can not meet.
        """
        computes = self._computes(run)
        if self.budget is not None and self.artifact is not None:
            warn_unordered(self._name, Artifact.load(self.artifact, self._name))
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
            raise needs_training(self._name, run)
        table = trained_table(self._name, self.artifact, run, self.storage)
        return table.above(self.threshold) if self.budget is None else table.within(self.budget, self._name)


def check_options(name: str, policy: GatedPolicy) -> None:
    """Check the options of a gated policy, whose types are right.

    Raises:
        ValueError: one is out of range, or two exclude each other.
    """
    if policy.budget is not None and not 0.0 < policy.budget <= 1.0:
        raise ValueError(
            f"{name}: budget={policy.budget} is a fraction of the FLOPs of full compute, above 0 and up to 1"
        )
    if not 0.0 <= policy.threshold <= 1.0:
        raise ValueError(f"{name}: threshold={policy.threshold} is compared with gates, which are 0 to 1")
    if policy.artifact is not None and policy.gates is not None:
        raise ValueError(f"{name}: artifact and gates each say when to compute; give one of them")
    if policy.budget is not None and policy.artifact is None:
        raise ValueError(
            f"{name}: budget needs an artifact, which knows the FLOPs of each site; give threshold instead"
        )
    wrong = [gate for gate in policy.gates or () if not 0.0 <= gate <= 1.0]
    if wrong:
        raise ValueError(f"{name}: gates are 0 to 1; found {wrong[0]}")
    if policy.granularity is not None and policy.granularity not in GRANULARITIES:
        raise ValueError(f"{name}: granularity={policy.granularity!r} must be one of {', '.join(GRANULARITIES)}")
    if policy.storage not in ("output", "residual"):
        raise ValueError(f"{name}: storage={policy.storage!r} must be one of output, residual")


def trained_table(policy: str, path: str, run: Run, storage: str) -> GateTable:
    """The table in an artifact, compared with the run it is to be used in.

    Raises:
        ValueError: it was trained for another sampler, number of steps, model, storage, or for other sites. Another
            resolution is a warning.
    """
    artifact = Artifact.load(path, policy)
    artifact.check(run, interpolates=("latent_shape",))
    values = artifact.values
    gates, shares = values["gates"], values["flops_share"]
    missing = [site.name for site in run.sites if site.name not in gates]
    if missing:
        raise ValueError(
            f"{policy}: {path} has gates for each {values['granularity']} of another model, and none for "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}. Leave policy.granularity out, or train again."
        )
    if storage != values["storage"]:
        raise ValueError(
            f"{policy}: {path} was trained with storage={values['storage']!r}, which reuses something else than "
            f"{storage!r}; set policy.storage={values['storage']}"
        )
    return GateTable({site.name: gates[site.name] for site in run.sites}, shares)


def warn_unordered(policy: str, artifact: Artifact) -> None:
    """Warn where gates were learned at one price: those far from it are at their limits, in no order to meet a budget by."""
    options = artifact.provenance.get("options") or {}
    if options.get("penalty") and options.get("final_penalty") is None:
        warnings.warn(
            f"{policy}: the gates were learned at one price (train.penalty={options['penalty']}), which orders them near one "
            f"budget only. Train with train.final_penalty, or use policy.threshold in place of policy.budget.",
            ReuseWarning,
            stacklevel=3,
        )


def needs_training(policy: str, run: Run) -> ValueError:
    """The error of a gated policy that was given neither an artifact nor gates."""
    return ValueError(
        f"{policy} needs gates that were trained for this model and {run.num_steps} steps. Train them with `fsf train "
        f"CONFIG.yaml` (train: {policy}; see docs/how-to/train-a-policy.md) and set the policy's option artifact to the file "
        f"that writes; or give them by hand, as in gates=[1.0, 0.0, 1.0, 0.0]."
    )


@lru_cache(maxsize=16)
def table_by_hand(gates: tuple[float, ...], sites: tuple[str, ...], num_steps: int) -> GateTable:
    """The same gate for all sites at each step; steps beyond those given are computed."""
    row = [*gates[:num_steps], *[FIXED] * (num_steps - len(gates))]
    return GateTable(dict.fromkeys(sites, row))
