"""Plans by hand, from an artifact and from the search, which is driven here as `fsf calibrate` does it."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.core import Artifact, Kind, Part, ReuseWarning, Run, Site, plan_search
from fsframework.policies.plan import PlanSearch, SitePlan, UnitPlan, rank_correlation, sketch

BLOCKS = [Site(Part.BLOCK, Kind.JOINT, i, i + 1, i) for i in range(2)]


def run_of(num_steps, sites=BLOCKS, **facts):
    return Run(num_steps, range(num_steps), sites, facts=facts)


def artifact(path, plans, num_steps=4, granularity="block", storage="residual", **facts):
    found = [{"budget": b, "plan": {f"joint.{i}": row for i, row in enumerate(rows)}} for b, rows in plans.items()]
    values = {"granularity": granularity, "storage": storage, "plans": found}
    Artifact("plan", values, {"num_steps": num_steps, **facts}).save(path)
    return str(path)


def rows(policy, run):
    return ["".join("C" if c else "R" for c in row) for row in policy._computed(run).values()]


def test_each_site_follows_its_own_plan_and_a_residual_is_added_to_the_live_input():
    # Block 0 gives 10 t, block 1 gives 10 t + 1, so residuals are 10 t and 1 (from input 0 and 10 t).
    policy = SitePlan(steps={"joint.0": [0, 1, 3], "joint.1": [0, 2]})
    session, model, out = run_scripted(policy, lambda b, t: 10 * t + b, 4, num_blocks=2)
    assert letters(session) == {"joint.0": "CCRC", "joint.1": "CRCR"}
    # Step 1: 10 + old residual 1. Step 2: block 0 gives its old 10, block 1 runs: 21. Step 3: 30 + (21 - 10).
    assert out == [1, 11, 21, 41]
    assert [block.num_runs for block in model.transformer_blocks] == [3, 2]
    assert session.meter.num_reads == 0


def test_with_outputs_stored_what_would_be_thrown_away_is_not_run():
    policy = SitePlan(steps={"joint.0": [0, 1, 2, 3], "joint.1": [0, 2]}, storage="output")
    session, model, out = run_scripted(policy, lambda b, t: 10 * t + b, 4, num_blocks=2)
    assert out == [1, 1, 21, 21]
    assert letters(session) == {"joint.0": "CECE", "joint.1": "CRCR"}
    assert [block.num_runs for block in model.transformer_blocks] == [2, 2]
    run = session._last.runs["joint"]
    assert policy.schedule(run) == [True, False, True, False]
    assert policy.num_cached(run) == 1
    assert session.cache.peak_counts() == {"joint": (1, 0)}


def test_sub_modules_have_plans_too():
    policy = SitePlan(steps={"*.attention": [0, 2]}, granularity="submodule")
    model = SmoothDiT(num_blocks=2)
    with toy_session(model, policy, 4) as session:
        run_smooth(model, 4)
    planned = {f"joint.{i}.attention": "CRCR" for i in (0, 1)}
    assert letters(session) == {**planned, "joint.0.mlp": "CCCC", "joint.1.mlp": "CCCC"}
    assert policy.num_cached(session._last.runs["joint"]) == 2


def test_patterns_name_sites_and_the_last_that_fits_counts():
    policy = SitePlan(steps={"*": [2], "joint.1": [1, 3]})
    assert rows(policy, run_of(4)) == ["CRCR", "CCRC"]
    with pytest.raises(
        ValueError, match=r"steps names 'spatial\.\*', which fits no site of this run: joint.0, joint.1"
    ):
        SitePlan(steps={"spatial.*": [1]}).start(run_of(4))
    with pytest.warns(ReuseWarning, match=r"steps are 0 to 3, so \[4, 9\] of its steps are left out"):
        SitePlan(steps={"*": [2, 9], "joint.1": [4]}).start(run_of(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget=0.0 must be a share of full compute"),
        ({"budgets": [0.5, 1.5]}, r"budgets=\[0.5, 1.5\] must be a share"),
        ({"granularity": "token"}, "granularity='token' must be one of block, submodule"),
        ({"storage": "both"}, "storage='both' must be one of output, residual"),
        ({"units": 0}, "units=0 must be at least 1"),
        ({"evaluations": 1}, "evaluations=1 must be at least 2"),
        ({"steps": {"*": [-1]}}, r"steps of '\*' must be numbers of steps from 0"),
        ({"steps": {}, "artifact": "a.json"}, "give one of them"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SitePlan(**options)


def test_without_a_plan_it_says_how_to_get_one():
    with pytest.raises(ValueError, match=r"plan needs a search of this model.*fsf calibrate plan MODEL"):
        SitePlan().start(run_of(4))


def test_of_an_artifact_the_largest_budget_that_is_affordable_is_taken(tmp_path):
    path = artifact(tmp_path / "a.json", {0.75: ["CCCR", "CRCC"], 0.5: ["CRCR", "CRCR"]})
    chosen = {budget: rows(SitePlan(budget=budget, artifact=path), run_of(4)) for budget in (0.5, 0.6, 0.75, 1.0)}
    assert chosen[0.5] == chosen[0.6] == ["CRCR", "CRCR"]
    assert chosen[0.75] == chosen[1.0] == ["CCCR", "CRCC"]
    with pytest.raises(ValueError, match=r"plans for the budgets \[0.5, 0.75\], none up to budget=0.4"):
        SitePlan(budget=0.4, artifact=path).start(run_of(4))


def test_an_artifact_is_for_one_storage_granularity_and_model(tmp_path):
    path = artifact(tmp_path / "a.json", {0.5: ["CRCR", "CRCR"]}, checkpoint="tiny", scheduler="DDIM")
    fits = SitePlan(artifact=path)
    fits.start(run_of(4, checkpoint="tiny"))
    with pytest.raises(ValueError, match="for storage=residual; set policy.storage to that"):
        replace(fits, storage="output").start(run_of(4))
    with pytest.raises(ValueError, match="for granularity=block; set policy.granularity"):
        replace(fits, granularity="submodule").start(run_of(4))
    with pytest.raises(ValueError, match="checkpoint was tiny, is other"):
        fits.start(run_of(4, checkpoint="other"))
    with pytest.raises(ValueError, match="scheduler was DDIM, is Euler"):
        fits.start(run_of(4, scheduler="Euler"))
    third = Site(Part.BLOCK, Kind.JOINT, 2, 3, 2)
    with pytest.raises(ValueError, match="has no plan for joint.2"):
        fits.start(run_of(4, [*BLOCKS, third]))


def test_for_another_number_of_steps_a_plan_is_carried_over_and_that_is_said(tmp_path):
    path = artifact(tmp_path / "a.json", {0.5: ["CRCR", "CRRR"]})
    policy = SitePlan(artifact=path)
    with pytest.warns(ReuseWarning, match="num_steps was 4, is 8"):
        policy.start(run_of(8))
    assert rows(policy, run_of(8)) == ["CRCRCRCR", "CRRRCRRR"]


# The search.


class Sampler:
    """Euler steps with a small random network; 6 tokens of 8 channels."""

    def __init__(self, num_steps=5, num_blocks=2):
        self.model, self.num_steps = SmoothDiT(num_blocks=num_blocks, seed=3), num_steps

    def __call__(self, policy, seed):
        x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), toy_session(self.model, policy, self.num_steps) as session:
            for step in range(self.num_steps):
                x = x + 0.2 * (self.model(x, torch.tensor([float(step)]))[0] - 2 * x)
        return session, x


def calibrate(policy, sampler, seeds=(0, 1)):
    """As `fsf calibrate`: every rollout for every clip, records through JSON, until no more are wanted."""
    search = policy.calibration()
    session, _ = sampler(UnitPlan("/".join(["C" * sampler.num_steps] * 2), 2, policy.granularity, policy.storage), 0)
    run = session._last.runs["joint"]
    records, references, wanted = {}, {}, dict(search.rollouts(run))
    while wanted:
        for name, rollout in wanted.items():
            found = []
            for seed in seeds:
                session, latents = sampler(rollout, seed)
                references.setdefault(seed, latents)
                found.append(json.loads(json.dumps(search.record(name, session.trace, latents, references[seed]))))
            records[name] = found
        wanted = dict(search.more_rollouts(records, run))
    return search.fit(records, run), records, run


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(plan_search, "ROUNDS", 12)


@pytest.mark.parametrize("storage", ["residual", "output"])
def test_the_search_finds_the_best_of_all_plans_of_a_small_model(storage, tmp_path, few_rounds):
    sampler = Sampler(num_steps=4)
    policy = SitePlan(storage=storage, units=2, budgets=[0.65], evaluations=24)
    fit, records, run = calibrate(policy, sampler)
    best = None
    full_compute = [sampler(SitePlan(steps={}), seed)[1] for seed in (0, 1)]
    for cells in itertools.product("CR", repeat=6):
        plan = ["C" + "".join(cells[:3]), "C" + "".join(cells[3:])]
        if cells.count("C") > 3:
            continue  # of 8 cells 5 are within the budget
        steps = {f"joint.{i}": [s for s, letter in enumerate(row) if letter == "C"] for i, row in enumerate(plan)}
        found = [sampler(SitePlan(steps=steps, storage=storage), seed) for seed in (0, 1)]
        executed, full = found[0][0].trace.total_flops()
        if executed <= 0.65 * full + 1e-6:
            errors = [(x - reference).square().mean() for (_, x), reference in zip(found, full_compute)]
            error = float(sum(errors)) / 2
            best = error if best is None else min(best, error)
    (found,) = fit.values["plans"]
    assert found["error"] == pytest.approx(best, rel=1e-6)
    assert found["share"] <= 0.65
    assert found["error"] <= found["even"]["error"]
    assert fit.numbers["rollouts of each clip"] == len(records) <= 1 + 2 * 3 + 24
    assert policy.calibration().most_rollouts(run) == 1 + 2 * 3 + 24
    # As an artifact it runs, and what it says is what happens.
    path = tmp_path / "plan.json"
    Artifact("plan", fit.values, {"num_steps": 4}).save(path)
    session, _ = sampler(SitePlan(budget=0.65, artifact=str(path), storage=storage), 0)
    assert session.trace.total_flops()[0] / session.trace.total_flops()[1] == pytest.approx(found["share"])
    searched = PlanSearch(policy)
    assert searched.more_rollouts(records, run) == {}, "a calibration that is asked anew comes to the same plans"
    assert searched.fit(records, run).values == fit.values


def test_a_probe_reuses_one_unit_at_one_step_and_where_outputs_are_stored_those_before_it():
    search = SitePlan(units=2).calibration()
    probes = {name: rollout.rows for name, rollout in search.rollouts(run_of(3)).items()}
    assert probes == {
        "full": "CCC/CCC", "probe 0 1": "CRC/CCC", "probe 0 2": "CCR/CCC", "probe 1 1": "CCC/CRC",
        "probe 1 2": "CCC/CCR",
    }  # fmt: skip
    nested = SitePlan(units=2, storage="output").calibration().rollouts(run_of(3))
    assert nested["probe 1 2"].rows == "CCR/CCR"
    with pytest.raises(ValueError, match="2 steps leave nothing to plan"):
        search.check(run_of(2), 1)


def test_a_sketch_keeps_lengths_and_angles():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 5000, generator=generator)
    both = one + other
    for a, b in ((one, one), (one, both), (one, other)):
        off = abs(float(sketch(a) @ sketch(b)) - float(a.double() @ b.double()))
        assert off < 4 / 1024**0.5 * float(a.norm() * b.norm())
    few = torch.tensor([3.0, 4.0])
    assert float(sketch(few) @ sketch(few)) == 25.0


def test_rank_correlation_by_hand():
    assert rank_correlation([(1, 10), (2, 20), (3, 90)]) == pytest.approx(1.0)
    assert rank_correlation([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    # Places 0 1 2 3 and 1 0 2 3: 1 - 6 * 2 / (4 * 15) = 0.8.
    assert rank_correlation([(1, 2), (2, 1), (3, 3), (4, 4)]) == pytest.approx(0.8)
    assert rank_correlation([(1, 1), (1, 2)]) == 0.0
