"""Tables of learned gates, one number per step and site, and the decisions that follow: what routers give at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fsframework.core.calibration import Artifact
from fsframework.core.site import Part, Run

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


def parts_of(policy: str, artifact: str | None, granularity: str | None) -> frozenset[Part]:
    """The parts a gated policy asks about: those of the given granularity, or else of its artifact, or else blocks.

    Raises:
        ValueError: no such artifact.
    """
    if granularity is None and artifact is not None:
        granularity = str(Artifact.load(artifact, policy).values["granularity"])
    return GRANULARITIES[granularity or "block"]


def check_options(policy: str, artifact: Any, budget: Any, threshold: Any, gates: Any, granularity: Any) -> None:
    """Check the options that gated policies share.

    Raises:
        ValueError: one is out of range, or two exclude each other.
    """
    if budget is not None and not 0.0 < budget <= 1.0:
        raise ValueError(f"{policy}: budget={budget} is a fraction of the FLOPs of full compute, above 0 and up to 1")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"{policy}: threshold={threshold} is compared with gates, which are 0 to 1")
    if artifact is not None and gates is not None:
        raise ValueError(f"{policy}: artifact and gates each say when to compute; give one of them")
    if budget is not None and artifact is None:
        raise ValueError(
            f"{policy}: budget needs an artifact, which knows the FLOPs of each site; give threshold instead"
        )
    wrong = [gate for gate in gates or () if not 0.0 <= gate <= 1.0]
    if wrong:
        raise ValueError(f"{policy}: gates are 0 to 1; found {wrong[0]}")
    if granularity is not None and granularity not in GRANULARITIES:
        raise ValueError(f"{policy}: granularity={granularity!r} must be one of {', '.join(GRANULARITIES)}")


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
