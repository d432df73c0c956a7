"""The search for plans, against all plans there are, and its model of the error worked out by hand."""

import itertools
import random

import pytest
import torch

from fsframework.core import plan_search
from fsframework.core.plan_search import LinearResponse, PlanSpace, search


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """The spaces here are small."""
    monkeypatch.setattr(plan_search, "ROUNDS", 12)


def plans(*texts):
    """`CCR/CRC` is two units of three steps."""
    return torch.tensor([[[letter == "C" for letter in row] for row in text.split("/")] for text in texts])


def text(plan):
    return "/".join("".join("C" if cell else "R" for cell in row) for row in plan.tolist())


def run(searching, error_of):
    """Drive a search; gives what it found and the plans it asked for, in order."""
    asked = []
    try:
        batch = next(searching)
        while True:
            asked += [text(plan) for plan in batch]
            batch = searching.send([error_of(plan) for plan in batch])
    except StopIteration as done:
        return done.value, asked


def all_plans(space):
    cells = list(itertools.product((False, True), repeat=space.num_units * (space.num_steps - 1)))
    every = torch.ones(len(cells), space.num_units, space.num_steps, dtype=torch.bool)
    every[:, :, 1:] = torch.tensor(cells).reshape(len(cells), space.num_units, -1)
    return space.closed(every)


def random_response(num_units, num_steps, seed):
    changes = torch.randn(2, num_units, num_steps, 5, generator=torch.Generator().manual_seed(seed))
    changes[:, :, 0] = 0
    return LinearResponse.from_changes(changes, 5)


def test_a_plan_costs_its_computed_units_and_what_is_never_left_out():
    space = PlanSpace([0.2, 0.1], 0.1, 3)  # 3 * (0.2 + 0.1) + 0.1 = 1
    costs = space.cost(plans("CCC/CCC", "CRR/CRR", "CCR/CRC"))
    assert costs.tolist() == pytest.approx([1.0, 0.4, 0.1 + 2 * 0.2 + 2 * 0.1])


def test_lags_count_the_steps_since_a_unit_was_computed():
    space = PlanSpace([0.1, 0.1], 0.0, 5)
    (lags,) = space.lags(plans("CRRCR/CCRRR"))
    assert lags.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]


def test_where_outputs_are_stored_only_the_last_reused_unit_is_put_in_place_and_those_before_it_are_not_run():
    space = PlanSpace([0.1, 0.1, 0.1], 0.0, 4, nested=True)
    closed = space.closed(plans("CCRC/CRCC/CCCR"))
    assert text(closed[0]) == "CRRR/CRCR/CCCR"
    (lags,) = space.lags(closed)
    # Step 1 puts unit 1 in place, step 2 unit 0 (last computed at step 0), step 3 unit 2.
    assert lags.tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_the_predicted_error_is_the_mean_square_of_the_summed_changes():
    changes = torch.zeros(1, 2, 3, 2)
    changes[0, 0, 1], changes[0, 0, 2] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    changes[0, 1, 1] = torch.tensor([-1.0, 0.0])
    space, model = PlanSpace([0.1, 0.1], 0.4, 3), LinearResponse.from_changes(changes, 2)
    # (1, 0): 1 / 2. Two steps of unit 0: (1, 0) + 2 (0, 1). Both units at step 1 cancel.
    errors = model.error(space, plans("CRC/CCC", "CRR/CCC", "CRC/CRC", "CCC/CCC"))
    assert errors.tolist() == [0.5, 2.5, 0.0, 0.0]


def test_plans_are_brought_within_the_budget_and_use_it_up():
    space = PlanSpace([0.05, 0.05, 0.05], 0.1, 6)
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(50, 3, 6, generator=generator) < 0.5
    for budget in (0.3, 0.52, 1.0):
        found = space.within(start, budget, generator)
        costs = space.cost(found)
        assert bool((costs <= budget + 1e-9).all())
        assert bool((costs > budget - 0.05 - 1e-9).all())
        assert bool(found[:, :, 0].all())
    with pytest.raises(ValueError, match=r"no plan costs 0.2 of full compute: .* cost 0.25"):
        space.within(start, 0.2, generator)


def test_plans_that_treat_all_units_alike_begin_with_the_evenly_spaced_one():
    space = PlanSpace([0.04, 0.04], 0.2, 10)  # 0.52 leaves 4 steps
    texts = [text(plan).split("/")[0] for plan in space.step_plans(0.52)]
    assert texts == ["CRCRRCRCRR", "CRRCRCRCRR", "CCRRCRRCRR", "CCCRRRCRRR", "CCCCRRRRRR"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_of_all_plans(seed, nested):
    rng = random.Random(seed)
    space = PlanSpace([0.06, 0.12], 0.1, 5, nested)
    model = random_response(2, 5, seed)
    every = all_plans(space)
    truth = random_response(2, 5, 100 + seed)  # what is predicted is half right
    errors = model.error(space, every) + truth.error(space, every)
    lookup = {text(plan): float(error) for plan, error in zip(every, errors)}
    budget = rng.choice([0.5, 0.7])
    best = min(
        (lookup[text(plan)] for plan, cost in zip(every, space.cost(every)) if cost <= budget + 1e-9), default=None
    )
    found, asked = run(search(space, model, budget, 60, seed), lambda plan: lookup[text(plan)])
    assert found.error == best == lookup[text(found.plan)]
    assert float(space.cost(found.plan[None])) <= budget + 1e-9
    assert found.even_error == lookup[text(found.even)]
    assert len(asked) == len(set(asked)) <= 60


def test_the_same_seed_asks_for_the_same_plans_and_another_for_others():
    space, model, truth = PlanSpace([0.04] * 3, 0.04, 8), random_response(3, 8, 0), random_response(3, 8, 1)
    error_of = lambda plan: float(truth.error(space, plan[None]))
    asked = [run(search(space, model, 0.5, 24, seed), error_of)[1] for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]
    assert len(asked[0]) == 24


def test_what_was_run_counts_and_not_what_was_predicted():
    """The truth is the opposite of the prediction, so only running plans can tell."""
    space, model = PlanSpace([0.08] * 2, 0.04, 6), random_response(2, 6, 3)
    error_of = lambda plan: 1 / (1e-6 + float(model.error(space, plan[None])))
    found, _ = run(search(space, model, 0.6, 40, 0), error_of)
    first = found.tried[0][1]
    assert found.error == min(error for _, error in found.tried) < first
