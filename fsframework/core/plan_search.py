"""Search for a plan: which units of a model are computed at which denoising steps, within a share of full compute.

A *unit* is a few neighbouring sites that are treated alike. Plans are boolean tensors [K, U, S] (K plans, U units, S steps),
True where a unit is computed. Nothing here knows a model: errors come from whoever runs the plans (`search` is a generator
that asks for them) and from `LinearResponse`, a model of the error that a few rollouts determine.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROUNDS, POPULATION, CHILDREN = 120, 32, 64
"""Of the search that asks the linear response only: it costs no rollout."""
PARENTS, BATCH, PROPOSALS = 6, 8, 96
"""Of the search that runs plans: the best so far that are changed, plans run at a time, and how many it chooses those from."""
TOLERANCE = 1e-9
"""On a share of full compute."""


@dataclass(frozen=True)
class PlanSpace:
    """What plans there are and what they cost."""

    unit_shares: Sequence[float]
    """FLOPs of each unit in one step, as a share of the full compute of all steps."""
    outside: float
    """Share of full compute that no plan leaves out: embeddings, the head."""
    num_steps: int
    nested: bool = False
    """Where outputs are stored: a unit that is reused throws away what the units before it computed, so they are not run
    either. The units computed at a step are then always the last ones."""

    @property
    def num_units(self) -> int:
        """U."""
        return len(self.unit_shares)

    @property
    def least(self) -> float:
        """The cost of computing the first step only."""
        return self.outside + sum(self.unit_shares)

    def closed(self, plans: Tensor) -> Tensor:
        """The plans that these amount to: the first step is computed, and `nested` ones reuse what is thrown away."""
        plans = plans.clone()
        plans[..., 0] = True
        if self.nested:
            plans = _suffix(plans)
        return plans

    def cost(self, plans: Tensor) -> Tensor:
        """[K]: the share of full compute that each plan runs."""
        shares = torch.tensor(self.unit_shares, dtype=torch.float64)
        return self.outside + (plans.to(torch.float64) * shares[:, None]).sum(dim=(-2, -1))

    def lags(self, plans: Tensor) -> Tensor:
        """[K, U, S] float64: steps since the value put in place was computed; 0 where nothing is put in place."""
        age = torch.zeros(plans.shape[:-1], dtype=torch.float64)
        out = torch.zeros(plans.shape, dtype=torch.float64)
        for step in range(self.num_steps):
            age = torch.where(plans[..., step], 0.0, age + 1)
            out[..., step] = age
        return out * self.restored(plans) if self.nested else out

    def restored(self, plans: Tensor) -> Tensor:
        """[K, U, S] bool: where a cached value is really put in place; of nested plans only the last reused unit's."""
        reused = ~plans
        if not self.nested:
            return reused
        later = torch.cat([plans[..., 1:, :], torch.ones_like(plans[..., :1, :])], dim=-2)
        return reused & later

    def within(self, plans: Tensor, budget: float, generator: torch.Generator) -> Tensor:
        """Plans that cost at most `budget` and leave no room for one more unit: cells at random are reused, then computed.

        Raises:
            ValueError: no plan is as cheap.
        """
        if budget + TOLERANCE < self.least:
            raise ValueError(
                f"no plan costs {budget:g} of full compute: the first step, and what is never left out, cost {self.least:.3g}"
            )
        plans = self.closed(plans)
        droppable = torch.ones(self.num_units, self.num_steps, dtype=torch.bool)
        droppable[:, 0] = False
        while bool((over := self.cost(plans) > budget + TOLERANCE).any()):
            rows = over.nonzero()[:, 0]
            cells = _choose(plans[rows] & droppable, generator)
            changed = plans[rows].flatten(1)
            changed[torch.arange(len(rows)), cells] = False
            plans[rows] = self.closed(changed.reshape(-1, self.num_units, self.num_steps))
        shares = torch.tensor(self.unit_shares, dtype=torch.float64)[:, None]
        while True:
            room = budget + TOLERANCE - self.cost(plans)
            addable = self.restored(plans) & (shares <= room[:, None, None])
            rows = addable.flatten(1).any(dim=1).nonzero()[:, 0]
            if not len(rows):
                return plans
            cells = _choose(addable[rows], generator)
            changed = plans[rows].flatten(1)
            changed[torch.arange(len(rows)), cells] = True
            plans[rows] = changed.reshape(-1, self.num_units, self.num_steps)

    def step_plans(self, budget: float) -> Tensor:
        """Plans that treat all units alike: after 1, 2, ... computed steps the others evenly spaced. The first is spaced
        evenly from the start. As many steps as the budget allows."""
        share = sum(self.unit_shares)
        count = min(self.num_steps, int((budget + TOLERANCE - self.outside) / share))
        plans = []
        for first in range(1, max(count, 1) + 1):
            rest, length = count - first, self.num_steps - first
            steps = {*range(first), *(first + (i + 1) * length // (rest + 1) for i in range(rest))}
            plans.append([step in steps for step in range(self.num_steps)])
        even = [False] * self.num_steps
        for i in range(max(count, 1)):
            even[i * self.num_steps // max(count, 1)] = True
        rows = torch.tensor([even, *plans])
        return self.closed(rows[:, None, :].expand(-1, self.num_units, -1))


@dataclass(frozen=True)
class LinearResponse:
    """Predicts a plan's error from rollouts in which one unit is reused at one step.

    With d(u, s) the change of the final latent when unit u is reused at step s only, one step old, a plan is taken to change
    the latent by the sum over its reused cells of lag * d(u, s): effects add up, and a value that is l steps old is l
    times as far off. Its error is the mean square of that sum, over elements and clips. Sums of *vectors* count, so
    changes that cancel, or pull the same way, do so here too; only their inner products are needed.
    """

    gram: Tensor
    """[U * S, U * S] float64: mean over clips and elements of d(u, s) * d(u', s'), by cell u * S + s."""

    @staticmethod
    def from_changes(changes: Tensor, num_elements: int) -> LinearResponse:
        """Args:
        changes: [clips, U, S, n], the changes d, or sketches of them with the same inner products.
        num_elements: elements of a latent.
        """
        flat = changes.to(torch.float64).flatten(1, 2)
        return LinearResponse((flat @ flat.transpose(1, 2)).mean(dim=0) / num_elements)

    def error(self, space: PlanSpace, plans: Tensor) -> Tensor:
        """[K]: predicted mean squared error of the final latent."""
        weights = space.lags(plans).flatten(1)
        return ((weights @ self.gram) * weights).sum(dim=1).clamp_min(0.0)


@dataclass
class Found:
    """What a search came to."""

    budget: float
    plan: Tensor
    """[U, S]: the best that was run."""
    error: float
    """Its mean squared error, as run."""
    even: Tensor
    """[U, S]: all units alike, steps evenly spaced: what it is to be better than."""
    even_error: float
    tried: list[tuple[float, float]] = field(default_factory=list)
    """(predicted, found) of every plan that was run, in order."""


Search = Generator[Tensor, Sequence[float], Found]
"""Yields plans [K, U, S] to be run, is sent their errors."""


def search(
    space: PlanSpace,
    model: LinearResponse,
    budget: float,
    evaluations: int,
    seed: int,
    known: Sequence[Tensor] = (),
) -> Search:
    """Find the plan of least error that costs at most `budget`.

    First the linear response is searched, which costs nothing. Its best plans that differ, the evenly spaced one and the
    best that treats all units alike are run. Then, until `evaluations` plans were run, the best are changed: of many
    changed plans half of those that are run next are chosen by the linear response, scaled to what was found for their
    parent, and half at random.

    Args:
        space: the plans.
        model: the linear response.
        budget: share of full compute, 0 to 1.
        evaluations: plans to run, at least 2.
        seed: everything random follows from it.
        known: plans [U, S] of other budgets to start from.

    Raises:
        ValueError: no plan is as cheap as the budget.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    filled = space.within(space.step_plans(budget), budget, generator)
    alike = space.step_plans(budget)
    even = alike[0]
    starts = [*alike, *filled]
    if known:
        starts += [*space.within(torch.stack(list(known)), budget, generator)]
    ranked = _search_model(space, model, budget, torch.stack(starts), rng, generator)
    best_alike = alike[int(model.error(space, alike).argmin())]
    first = _apart([even, best_alike, *ranked], min(BATCH + 2, evaluations))
    run: dict[bytes, tuple[float, Tensor, float]] = {}
    tried: list[tuple[float, float]] = []

    def keep(plans: Sequence[Tensor], errors: Sequence[float]) -> None:
        for plan, error in zip(plans, errors):
            predicted = float(model.error(space, plan[None]))
            tried.append((predicted, error))
            run[_key(plan)] = (error, plan, predicted)

    keep(first, (yield torch.stack(first)))
    while len(run) < evaluations:
        parents = sorted(run.values(), key=lambda found: found[0])[:PARENTS]
        batch = _offspring(space, model, budget, parents, run, min(BATCH, evaluations - len(run)), rng, generator)
        if not batch:
            break  # there are no more plans
        keep(batch, (yield torch.stack(batch)))
    error, plan, _ = min(run.values(), key=lambda found: found[0])
    return Found(budget, plan, error, even, run[_key(even)][0], tried)


def _search_model(
    space: PlanSpace,
    model: LinearResponse,
    budget: float,
    plans: Tensor,
    rng: random.Random,
    generator: torch.Generator,
) -> list[Tensor]:
    """Different plans within the budget, from the least predicted error."""
    population: dict[bytes, tuple[float, Tensor]] = {}
    for _ in range(ROUNDS):
        for plan, error in zip(plans, model.error(space, plans).tolist()):
            population.setdefault(_key(plan), (error, plan))
        best = sorted(population.items(), key=lambda item: item[1][0])[:POPULATION]
        population = dict(best)
        members = [plan for _, (_, plan) in best]
        children = [_changed(space, rng.choice(members), rng.choice(members), rng) for _ in range(CHILDREN)]
        plans = space.within(torch.stack(children), budget, generator)
    return [plan for _, plan in sorted(population.values(), key=lambda found: found[0])]


def _offspring(
    space: PlanSpace,
    model: LinearResponse,
    budget: float,
    parents: Sequence[tuple[float, Tensor, float]],
    run: dict[bytes, tuple[float, Tensor, float]],
    count: int,
    rng: random.Random,
    generator: torch.Generator,
) -> list[Tensor]:
    """So many changed plans that were not run yet; fewer where there are none."""
    chosen = [(rng.choice(parents), rng.choice(parents)) for _ in range(PROPOSALS)]
    plans = space.within(
        torch.stack([_changed(space, one[1], other[1], rng) for one, other in chosen]), budget, generator
    )
    fresh: dict[bytes, tuple[float, Tensor]] = {}
    for plan, predicted, (parent, _) in zip(plans, model.error(space, plans).tolist(), chosen):
        if (key := _key(plan)) not in run:
            expected = parent[0] * predicted / parent[2] if parent[2] > 0 else predicted
            fresh.setdefault(key, (expected, plan))
    ordered = [plan for _, plan in sorted(fresh.values(), key=lambda found: found[0])]
    by_model = ordered[: (count + 1) // 2]
    rest = ordered[len(by_model) :]
    return [*by_model, *rng.sample(rest, min(count - len(by_model), len(rest)))]


def _changed(space: PlanSpace, plan: Tensor, other: Tensor, rng: random.Random) -> Tensor:
    """A plan with one or two changes; it may cost more or less than before.

    Of some neighbouring units a computed step is moved by one; or one step is computed instead of reused, or the other way
    round; or a unit takes over some steps of the unit beside it; or from some step on the plan goes on as another.
    """
    plan = plan.clone()
    for _ in range(rng.choice((1, 1, 2))):
        units, steps = space.num_units, space.num_steps
        first = rng.randrange(units)
        band = slice(0, units) if rng.random() < 0.4 else slice(first, rng.randrange(first, units) + 1)
        step = rng.randrange(1, steps)
        kind = rng.random()
        if kind < 0.45 and step + 1 < steps:
            plan[band, step], plan[band, step + 1] = plan[band, step + 1].clone(), plan[band, step].clone()
        elif kind < 0.75:
            plan[band, step] = not bool(plan[band.start, step])
        elif kind < 0.9 and units > 1:
            beside = first + 1 if first + 1 < units else first - 1
            stretch = slice(step, min(steps, step + rng.randrange(1, 6)))
            plan[first, stretch] = plan[beside, stretch]
        else:
            plan[:, step:] = other[:, step:]
    return plan


def _apart(plans: Sequence[Tensor], count: int) -> list[Tensor]:
    """So many of the plans, in order, that differ in at least 3 cells; then others, where there are not enough."""
    chosen: list[Tensor] = []
    for least in (3, 1):
        for plan in plans:
            if len(chosen) < count and all(int((plan ^ one).sum()) >= least for one in chosen):
                chosen.append(plan)
    return chosen


def _choose(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """[K]: of each row of [K, U, S] one allowed cell at random, as a number u * S + s."""
    draws = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    return draws.flatten(1).argmax(dim=1)


def _suffix(plans: Tensor) -> Tensor:
    """Only units after the last reused one stay computed."""
    return plans.flip(-2).to(torch.int8).cumprod(dim=-2).flip(-2).bool()


def _key(plan: Tensor) -> bytes:
    return bytes(plan.flatten().to(torch.uint8).tolist())
