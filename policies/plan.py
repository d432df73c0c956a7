"""Plan: for every site the steps at which it is computed, by hand or found by a search for a share of full compute."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    Artifact,
    Calibration,
    Call,
    Curve,
    Decision,
    Fit,
    HeatMap,
    Part,
    ReusePolicy,
    ReuseWarning,
    Run,
    Site,
    Trace,
)
from fsframework.core.calibration import needs_calibration
from fsframework.core.plan_search import Found, LinearResponse, PlanSpace, search
from fsframework.core.policy import Storage
from fsframework.core.site_plan import Computed, carried_over, closed, decisions, num_cached, units_of

PARTS = {
    "block": frozenset({Part.BLOCK}),
    "submodule": frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP}),
}
"""What `granularity` may be -> the parts that have plans."""
BUDGETS = (0.75, 0.5, 0.33)
"""Shares of full compute that plans are sought for, unless others are."""
SKETCH = 1024
"""Numbers kept of a change of the final latent; inner products of two changes are right to about 3 % of their lengths."""


@POLICIES.register("plan")
@dataclass(frozen=True)
class SitePlan(ReusePolicy[dict[Site, list[Decision]]]):
    """Every site is computed at the steps of its own plan and reused at the others; a search finds the plans for a budget.

    The search (`fsf calibrate plan MODEL`) is for the plan whose final latents are nearest to those of full compute,

        minimise  mean over prompts, seeds and elements of (x_0 of the plan - x_0 of full compute)^2
        subject to  FLOPs executed <= budget * FLOPs of full compute

    for all `budgets` at once. Neighbouring sites are taken together into `units`. First each unit is reused at each step by
    itself, one step old: that gives the change d(u, s) of the final latent. A plan's change is predicted to be the sum of
    lag * d(u, s) over what it reuses (see `LinearResponse`). Plans that this finds good are run, the best are changed and
    run again, `evaluations` plans for each budget. Beside them the plan that computes all units at evenly spaced steps is
    run, so that the artifact says what the search gained. Nothing is decoded.

    With output storage a reused block throws away what the blocks before it computed, so those are neither run nor paid
    for: the computed blocks of a step are then always the last ones.

    For another number of steps a plan is carried over with a warning: each site keeps its share of computed steps, and the
    distances between them grow in proportion.

    Granularity: block or sub-module. Caches what some later step puts in place: at most 1 hidden state per site.
    Host reads: none. Our own; LeMiCa's search (arXiv:2511.00090) is over steps only.
    """

    paper = "our own"
    signal = "the step's number and the site, and errors of the finished video measured offline"
    deviations = "None: there is no paper."
    example = {"steps": {"*": [0, 2, 3, 6], "*.0": [0, 3, 6]}}
    never = {"steps": {}}

    budget: float = 0.5
    """Share of full compute, above 0 and up to 1: of the artifact's plans the one for the largest budget up to this is taken.
    Lower reuses more: faster, further from the reference."""
    artifact: str | None = None
    """A file of `fsf calibrate plan MODEL`."""
    steps: dict[str, list[int]] | None = None
    """Plans by hand in place of an artifact: site -> the steps that compute it. A site is named as in the trace, or by a
    pattern such as `*`, `temporal.*`; of several that fit the last counts. The first step computes always, a site
    that none fits in every step. Steps beyond the run's last are left out."""
    granularity: str = "block"
    """What has plans: `block`, or `submodule` (attention, cross-attention and MLP apart)."""
    storage: Storage = "residual"
    """`residual` adds a block's old change to the live input, `output` puts its old output in place. Sub-modules always keep
    their output, which is the block's residual."""
    budgets: list[float] | None = None
    """For calibration: the shares of full compute to find plans for; None is 0.75, 0.5 and 0.33."""
    units: int = 4
    """For calibration: so many groups of neighbouring sites, >= 1, for each part; each has one plan. Each takes as many
    rollouts as there are steps."""
    evaluations: int = 40
    """For calibration: plans that are run for each budget, >= 2."""
    seed: int = 0
    """For calibration: of the search, >= 0."""

    def __post_init__(self) -> None:
        if self.granularity not in PARTS:
            raise ValueError(f"plan: granularity={self.granularity!r} must be one of {', '.join(PARTS)}")
        if self.storage not in ("output", "residual"):
            raise ValueError(f"plan: storage={self.storage!r} must be one of output, residual")
        for name, values in (("budget", [self.budget]), ("budgets", self.budgets)):
            if values is not None and not (values and all(0.0 < value <= 1.0 for value in values)):
                raise ValueError(
                    f"plan: {name}={getattr(self, name)} must be a share of full compute, above 0 and up to 1"
                )
        for name, value, least in (
            ("units", self.units, 1),
            ("evaluations", self.evaluations, 2),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"plan: {name}={value} must be at least {least}")
        if self.artifact is not None and self.steps is not None:
            raise ValueError("plan: artifact and steps each say when to compute; give one of them")
        for name, steps in (self.steps or {}).items():
            if any(step < 0 for step in steps):
                raise ValueError(f"plan: steps of {name!r} must be numbers of steps from 0; got {list(steps)}")
        _set_parts(self, self.granularity, self.storage)

    def start(self, run: Run) -> dict[Site, list[Decision]]:
        """What to do with each site at each step.

        Raises:
            ValueError: neither an artifact nor steps, an artifact that does not fit, or a name that no site has.
        """
        beyond = sorted({s for steps in (self.steps or {}).values() for s in steps if s >= run.num_steps})
        if beyond:
            warnings.warn(
                f"plan: the run's steps are 0 to {run.num_steps - 1}, so {beyond} of its steps are left out",
                ReuseWarning,
                stacklevel=2,
            )
        return decisions(self._computed(run, check=True), run.depth, self.eliminate_dead)

    def decide(self, state: dict[Site, list[Decision]], call: Call, site: Site) -> Decision:
        """By the step's number."""
        return state[site][call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Per step, whether every site is computed."""
        return [all(at_step) for at_step in zip(*self._computed(run).values())]

    def num_cached(self, run: Run) -> int:
        """The values that some later step puts in place."""
        return num_cached(decisions(self._computed(run), run.depth, self.eliminate_dead), run.depth)

    def calibration(self) -> Calibration:
        """The search."""
        return PlanSearch(self)

    def _computed(self, run: Run, check: bool = False) -> Computed:
        if self.steps is not None:
            return self._by_hand(self.steps, run)
        if self.artifact is None:
            raise needs_calibration("plan", run, "a search", 'plans by hand, as in steps={"*": [0, 2, 4]}')
        artifact = Artifact.load(self.artifact, "plan")
        if check:
            artifact.check(run, interpolates=("num_steps", "latent_shape"))
        for name in ("granularity", "storage"):
            if artifact.values[name] != getattr(self, name):
                raise ValueError(
                    f"plan: the plans of {self.artifact} are for {name}={artifact.values[name]}; set policy.{name} to that"
                )
        plans = {float(found["budget"]): found["plan"] for found in artifact.values["plans"]}
        affordable = [budget for budget in plans if budget <= self.budget + 1e-9]
        if not affordable:
            raise ValueError(
                f"plan: {self.artifact} has plans for the budgets {sorted(plans)}, none up to budget={self.budget}"
            )
        letters = plans[max(affordable)]
        missing = [site.name for site in run.sites if site.name not in letters]
        if missing:
            raise ValueError(f"plan: {self.artifact} has no plan for {', '.join(missing[:4])}; it is of another model")
        found = {site: carried_over([c == "C" for c in letters[site.name]], run.num_steps) for site in run.sites}
        return closed(found) if self.eliminate_dead else found

    def _by_hand(self, steps: Mapping[str, Sequence[int]], run: Run) -> Computed:
        names = [site.name for site in run.sites]
        for pattern in steps:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"plan: steps names {pattern!r}, which fits no site of this run: {', '.join(names)}")
        out: dict[Site, list[bool]] = {}
        for site in run.sites:
            fitting = [chosen for pattern, chosen in steps.items() if fnmatch.fnmatchcase(site.name, pattern)]
            out[site] = [not fitting or step == 0 or step in fitting[-1] for step in range(run.num_steps)]
        return closed(out) if self.eliminate_dead else out


def _set_parts(policy: ReusePolicy[Any], granularity: str, storage: str) -> None:
    """What follows from the options, in place of class-wide values."""
    object.__setattr__(policy, "parts", PARTS[granularity])
    object.__setattr__(policy, "eliminate_dead", granularity == "block" and storage == "output")


# The search.


@dataclass(frozen=True)
class UnitPlan(ReusePolicy[dict[Site, list[Decision]]]):
    """A plan of units of sites, as it is tried in a search."""

    rows: str
    """A row of letters, C or R, for each unit, with a stroke between: `CRCR/CCCR`."""
    units: int
    granularity: str
    storage: Storage

    def __post_init__(self) -> None:
        _set_parts(self, self.granularity, self.storage)

    def start(self, run: Run) -> dict[Site, list[Decision]]:
        """What to do with each site at each step."""
        rows = [[letter == "C" for letter in row] for row in self.rows.split("/")]
        computed = {site: row for unit, row in zip(units_of(run.sites, self.units), rows, strict=True) for site in unit}
        return decisions({site: computed[site] for site in run.sites}, run.depth, self.eliminate_dead)

    def schedule(self, run: Run) -> list[bool]:
        """Per step, whether every unit is computed."""
        return ["R" not in at_step for at_step in zip(*self.rows.split("/"))]

    def decide(self, state: dict[Site, list[Decision]], call: Call, site: Site) -> Decision:
        """By the step's number."""
        return state[site][call.step.index]


FULL, PROBE, PLAN = "full", "probe", "plan"
"""First words of the names of rollouts."""


class PlanSearch(Calibration):
    """Rollouts that reuse one unit at one step, then those of the plans that the search wants to be run."""

    fit_options = ("budget", "budgets", "evaluations", "seed")

    def __init__(self, policy: SitePlan) -> None:
        self._policy = policy
        self._budgets = BUDGETS if policy.budgets is None else policy.budgets
        self._searching: Generator[Tensor, Sequence[float], list[Found]] | None = None
        self._wanted: list[str] = []
        self._found: list[Found] = []

    def check(self, run: Run, num_clips: int) -> None:
        """A plan needs a step after the first."""
        if run.num_steps < 3:
            raise ValueError(f"plan: {run.num_steps} steps leave nothing to plan; set sampling.num_steps to 3 or more")

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        """Full compute, and each unit reused at each step but the first; with outputs stored, those before it too."""
        n, num_units = run.num_steps, len(units_of(run.sites, self._policy.units))
        out = {FULL: self._unit_plan(torch.ones(num_units, n, dtype=torch.bool))}
        for unit in range(num_units):
            for step in range(1, n):
                plan = torch.ones(num_units, n, dtype=torch.bool)
                plan[(slice(0, unit + 1) if self._policy.eliminate_dead else unit), step] = False
                out[f"{PROBE} {unit} {step}"] = self._unit_plan(plan)
        return out

    def most_rollouts(self, run: Run) -> int:
        """Full compute, the probes, and all evaluations of all budgets."""
        return len(self.rollouts(run)) + len(self._budgets) * self._policy.evaluations

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """`error`, the mean squared change of the final latents, and `share` of full compute. For full compute, also the
        FLOPs of each site and of all; for a probe a sketch of the change."""
        change = (latents.float() - reference.float()).flatten()
        executed, full = trace.total_flops()
        out: dict[str, Any] = {"error": change.square().mean().item(), "share": executed / full}
        if rollout == FULL:
            of_site: dict[str, float] = {}
            for _, branch, share, _ in trace.forwards:
                for site, flops in trace.flops_per_site(branch).items():
                    of_site[site.name] = of_site.get(site.name, 0.0) + flops * share
            out |= {"flops": of_site, "full": full, "elements": change.numel()}
        if rollout.startswith(PROBE):
            out["sketch"] = sketch(change).tolist()
        return out

    def more_rollouts(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run
    ) -> Mapping[str, ReusePolicy[Any]]:
        """The plans that the search wants to be run next; none when it is done."""
        if self._searching is None:
            self._searching = self._search(records, run)
            self._ask(None, run)
        while self._wanted and all(name in records for name in self._wanted):
            self._ask([_mean(records[name], "error") for name in self._wanted], run)
        return {name: self._unit_plan(_plan_of(name, run.num_steps)) for name in self._wanted if name not in records}

    def _ask(self, errors: Sequence[float] | None, run: Run) -> None:
        """Go on with the search to the next plans it wants to be run."""
        assert self._searching is not None
        try:
            plans = next(self._searching) if errors is None else self._searching.send(errors)
        except StopIteration as done:
            self._wanted, self._found = [], done.value
        else:
            self._wanted = [_name(plan) for plan in plans]

    def _search(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run
    ) -> Generator[Tensor, Sequence[float], list[Found]]:
        space, model = self._space(records, run), self._response(records, run)
        found: list[Found] = []
        for i, budget in enumerate(sorted(self._budgets, reverse=True)):
            known = [one.plan for one in found]
            seed = self._policy.seed + i
            found.append((yield from search(space, model, budget, self._policy.evaluations, seed, known)))
        return found

    def _space(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> PlanSpace:
        full = records[FULL][0]
        shares = [
            sum(full["flops"][site.name] for site in unit) / full["full"] / run.num_steps
            for unit in units_of(run.sites, self._policy.units)
        ]
        return PlanSpace(shares, 1 - sum(shares) * run.num_steps, run.num_steps, self._policy.eliminate_dead)

    def _response(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> LinearResponse:
        full = records[FULL]
        changes = torch.zeros(
            len(full), len(units_of(run.sites, self._policy.units)), run.num_steps, SKETCH, dtype=torch.float64
        )
        for name, found in records.items():
            if name.startswith(PROBE):
                _, unit, step = name.split()
                changes[:, int(unit), int(step)] = torch.tensor([one["sketch"] for one in found], dtype=torch.float64)
        return LinearResponse.from_changes(changes, full[0]["elements"])

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The best plan of each budget, and how it compares with evenly spaced steps."""
        assert self._found, "more_rollouts was not asked to the end"
        plans: list[dict[str, Any]] = []
        numbers: dict[str, float] = {}
        curves: list[Curve] = []
        maps: list[HeatMap] = []
        units = units_of(run.sites, self._policy.units)
        for found in self._found:
            share, error = (_mean(records[_name(found.plan)], key) for key in ("share", "error"))
            letters = {site.name: _letters(row) for unit, row in zip(units, found.plan) for site in unit}
            ordered = {site.name: letters[site.name] for site in run.sites}
            even = {"share": _mean(records[_name(found.even)], "share"), "error": found.even_error}
            plans.append({"budget": found.budget, "share": share, "error": error, "even": even, "plan": ordered})
            numbers |= {
                f"share at {found.budget:g}": share,
                f"error at {found.budget:g}": error,
                f"error of evenly spaced steps at {found.budget:g}": found.even_error,
                f"rank correlation of prediction at {found.budget:g}": rank_correlation(found.tried),
            }
            computed = {site: [float(letter == "C") for letter in row] for site, row in ordered.items()}
            maps.append(HeatMap(f"computed (dark) at budget {found.budget:g}", computed, 0.0, 1.0))
            curves.append(
                Curve(
                    f"budget {found.budget:g}",
                    list(range(run.num_steps)),
                    found.plan.double().mean(dim=0).tolist(),
                    "step",
                    "share of the units that is computed",
                )
            )
        for found in self._found:
            points = sorted((p, e) for p, e in found.tried if p > 0 and e > 0)
            x, y = [p for p, _ in points], [e for _, e in points]
            labels = ("squared error as predicted from single reuses", "squared error of the final latents")
            curves.append(Curve(f"plans run for {found.budget:g}", x, y, *labels, is_line=False))
        numbers["rollouts of each clip"] = float(len(records))
        policy = self._policy
        values = {"granularity": policy.granularity, "storage": policy.storage, "plans": plans}
        return Fit(values, numbers, curves, maps=maps)

    def _unit_plan(self, plan: Tensor) -> UnitPlan:
        rows = "/".join(_letters(row) for row in plan)
        return UnitPlan(rows, self._policy.units, self._policy.granularity, self._policy.storage)


def sketch(change: Tensor) -> Tensor:
    """[SKETCH] float64: a change [n] with every element added, with a random sign, to one number at random. Inner products
    are kept on average, their spread is the product of both lengths / sqrt(SKETCH). The same for the same n; up to
    SKETCH elements are kept as they are."""
    n = change.numel()
    if n <= SKETCH:
        return torch.cat([change.double(), torch.zeros(SKETCH - n, dtype=torch.float64)])
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(SKETCH, (n,), generator=generator)
    sign = torch.randint(2, (n,), generator=generator).double() * 2 - 1
    return torch.zeros(SKETCH, dtype=torch.float64).index_add_(0, place, sign * change.double())


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's: the correlation of the places that pairs have by their first and by their second number; 0 where all are
    equal. Ties share their mean place."""
    if len(pairs) < 2:
        return 0.0
    first, second = (_places([pair[i] for pair in pairs]) for i in (0, 1))
    together = torch.stack([first, second])
    if bool((together.std(dim=1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(together)[0, 1])


def _places(values: Sequence[float]) -> Tensor:
    numbers = torch.tensor(values, dtype=torch.float64)
    below = (numbers[:, None] > numbers).sum(dim=1)
    equal = (numbers[:, None] == numbers).sum(dim=1)
    return below.double() + (equal.double() - 1) / 2


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)


def _letters(row: Tensor) -> str:
    return "".join("C" if computed else "R" for computed in row.tolist())


def _name(plan: Tensor) -> str:
    """A rollout's name that says its plan: a hexadecimal number per unit, the first step its highest bit."""
    return f"{PLAN} " + "-".join(f"{int(_letters(row).replace('C', '1').replace('R', '0'), 2):x}" for row in plan)


def _plan_of(name: str, num_steps: int) -> Tensor:
    rows = [f"{int(number, 16):0{num_steps}b}" for number in name.removeprefix(f"{PLAN} ").split("-")]
    return torch.tensor([[bit == "1" for bit in row] for row in rows])
