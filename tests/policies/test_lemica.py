"""LeMiCa: weights measured by hand, and the path solver against all paths there are."""

import math
import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from toys import SmoothDiT, run_scripted, run_smooth, toy_session

from fsframework.core import Artifact, Kind, Part, ReuseWarning, Run, Site
from fsframework.policies import ForecastReuse
from fsframework.policies.lemica import LeMiCa, best_path, edges_between

TRUNK = Site(Part.TRUNK, Kind.JOINT, 0, 1)


def run_of(num_steps, **facts):
    return Run(num_steps, range(num_steps), [TRUNK], facts=facts)


def artifact(path, edges, num_steps, **facts):
    Artifact("lemica", {"edges": [list(edge) for edge in edges]}, {"num_steps": num_steps, **facts}).save(path)
    return str(path)


def text(computes):
    return "".join("C" if c else "R" for c in computes)


def descending(path, weights):
    """The edge weights of a path from the largest; None where an edge was not measured."""
    found = [weights.get(edge, 0.0 if edge[1] - edge[0] == 1 else None) for edge in pairwise(path)]
    return None if None in found else sorted(found, reverse=True)


def test_steps_beyond_the_run_are_a_warning_unless_every_step_is_computed(recwarn):
    LeMiCa(steps=range(1000)).start(run_of(10))
    LeMiCa(steps=[0, 5]).start(run_of(10))
    assert not recwarn.list
    with pytest.warns(
        ReuseWarning, match=r"steps=\[0, 10, 99\]: the run's steps are 0 to 9, so \[10, 99\] are left out"
    ):
        LeMiCa(steps=[0, 10, 99]).start(run_of(10))


def test_the_smallest_largest_error_wins_and_then_the_second_largest():
    # Four of five steps: one stretch of one step. 0-2 costs 3, 1-3 costs 1, 2-4 costs 2.
    edges = ((0, 2, 3.0), (1, 3, 1.0), (2, 4, 2.0), (0, 3, 2.5), (1, 4, 9.0))
    assert best_path(edges, 5, 4) == (0, 1, 3, 4)
    # Three of five: 0-2-4 has (3, 2), 0-1-4 has (9, 0), 0-3-4 has (2.5, 0).
    assert best_path(edges, 5, 3) == (0, 3, 4)
    assert best_path(edges, 5, 5) == (0, 1, 2, 3, 4)
    # Of two paths with the same largest weight the smaller second decides: 0-2-4-5 has (3, 2, 0), 0-2-3-5 (3, 1, 0).
    tie = ((0, 2, 3.0), (2, 4, 2.0), (3, 5, 1.0), (0, 3, 4.0))
    assert best_path(tie, 6, 4) == (0, 2, 3, 5)


@pytest.mark.parametrize("seed", range(8))
def test_the_solver_finds_what_trying_all_paths_finds(seed):
    rng = random.Random(seed)
    num_steps, max_skip, first, last = 10, rng.choice([2, 3, 4, 5]), rng.choice([1, 2]), rng.choice([1, 3])
    # Few different weights, so that ties have to be broken further down the vector.
    weights = {edge: float(rng.randint(0, 5)) for edge in edges_between(num_steps, max_skip, first, last)}
    edges = tuple((i, j, w) for (i, j), w in weights.items())
    fixed = {*range(first), *range(num_steps - last, num_steps)}
    for budget in range(2, num_steps + 1):
        paths = [(0, *inner, num_steps - 1) for inner in combinations(range(1, num_steps - 1), budget - 2)]
        allowed = [descending(path, weights) for path in paths if fixed <= set(path)]
        allowed = [vector for vector in allowed if vector is not None]
        if not allowed:
            with pytest.raises(ValueError, match=f"no schedule computes {budget} of 10 steps"):
                best_path(edges, num_steps, budget, first, last)
            continue
        path = best_path(edges, num_steps, budget, first, last)
        assert len(path) == budget
        assert fixed <= set(path)
        assert descending(path, weights) == min(allowed)


def test_an_edge_that_was_not_finite_is_not_taken():
    assert best_path(((0, 2, math.nan), (1, 3, math.inf), (2, 4, 7.0)), 5, 4) == (0, 1, 2, 4)


def test_a_budget_out_of_reach_says_what_is_in_reach():
    edges = tuple((i, j, 1.0) for i, j in edges_between(9, 3, 1, 1))
    with pytest.raises(ValueError, match="no schedule computes 3 of 9 steps.*it is 4 to 9"):
        best_path(edges, 9, 3)
    with pytest.raises(ValueError, match="no schedule computes 10 of 9 steps"):
        best_path(edges, 9, 10)


def test_edges_leave_the_first_and_the_last_steps_alone():
    assert edges_between(6, 3, 1, 1) == [(0, 2), (0, 3), (1, 3), (1, 4), (2, 4), (2, 5), (3, 5)]
    assert edges_between(6, 3, 2, 2) == [(1, 3), (1, 4), (2, 4)]  # only steps 2 and 3 may be reused


def test_one_artifact_serves_every_budget(tmp_path):
    # The later, the less it costs.
    edges = [(i, j, (j - i - 1) * (10.0 - i)) for i, j in edges_between(8, 3, 1, 1)]
    path = artifact(tmp_path / "a.json", edges, 8)

    def schedule(budget, **options):
        return text(LeMiCa(budget=budget, artifact=path, **options).schedule(run_of(8)))

    assert [schedule(budget) for budget in (8, 7, 6, 5)] == ["CCCCCCCC", "CCCCCCRC", "CCCCRCRC", "CCRCRCRC"]
    assert schedule(0.75) == schedule(6)
    assert schedule(6, last=3) == "CCRCRCCC"


def test_the_steps_reuse_the_trunk_and_read_nothing():
    session, _, out = run_scripted(LeMiCa(steps=[0, 1, 4]), lambda b, t: t, 7, num_blocks=2)
    assert session.trace.decisions("trunk") == "CCRRCRC"
    assert out == [0, 1, 1, 1, 4, 4, 6]
    assert session.cache.peak_bytes == 4 * 2 * 4
    assert session.meter.num_reads == 0


def test_under_a_forecast_the_newest_values_before_a_reuse_are_kept():
    """Outputs are the step's number: a line through two of them is exact, a copy is not."""
    policy = LeMiCa(steps=[0, 1, 2, 3, 6], storage="output")
    session, _, out = run_scripted(ForecastReuse(policy), lambda b, t: t, 9, num_blocks=2)
    assert session.trace.decisions("trunk") == "CCCCFFCFC"
    assert out == list(range(9))
    assert session.cache.peak_bytes == 2 * 4 * 2 * 4
    run = session._last.runs["joint"]
    assert [policy.num_cached(replace(run, depth=depth)) for depth in (1, 2, 3)] == [1, 2, 3]
    assert LeMiCa(**LeMiCa.never).num_cached(replace(run, depth=2)) == 0


def test_the_residual_is_added_to_the_live_input():
    model, x = SmoothDiT(num_blocks=2), torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), toy_session(model, LeMiCa(steps=[0, 2]), 3):
        first = model(x, torch.tensor([0.0]))[0]
        second = model(3 * x, torch.tensor([1.0]))[0]
    assert torch.allclose(second, first + 2 * x, atol=1e-6)


def test_each_edge_has_a_video_in_which_only_its_stretch_is_reused():
    rollouts = LeMiCa(max_skip=3).calibration().rollouts(run_of(6))
    schedules = {name: text(policy.schedule(run_of(6))) for name, policy in rollouts.items()}
    assert schedules == {
        "full": "CCCCCC", "0-2": "CRCCCC", "0-3": "CRRCCC", "1-3": "CCRCCC", "1-4": "CCRRCC", "2-4": "CCCRCC",
        "2-5": "CCCRRC", "3-5": "CCCCRC",
    }  # fmt: skip
    assert next(iter(rollouts)) == "full"


def test_calibration_takes_the_mean_error_of_the_final_latents(tmp_path):
    """The video is the sum of its predictions t: reusing i until j changes it by the sum of (t - i) in between."""
    calibration, run = LeMiCa(max_skip=3).calibration(), run_of(6)
    records, reference = {}, None
    for name, policy in calibration.rollouts(run).items():
        session, _, out = run_scripted(policy, lambda b, t: t * t, 6)
        latents = torch.full((1, 2, 2), sum(out))
        reference = latents if reference is None else reference
        record = calibration.record(name, session.trace, latents, reference)
        records[name] = [record, {"error": 3 * record["error"]}]  # another prompt's, three times as large
    fit = calibration.fit(records, run)
    weights = {(i, j): w for i, j, w in fit.values["edges"]}
    assert weights[0, 2] == 2 * (1 - 0)
    assert weights[1, 4] == 2 * ((4 - 1) + (9 - 1))
    assert fit.numbers["fewest_computed_steps"] == 3
    Artifact("lemica", fit.values, {"num_steps": 6}).save(tmp_path / "a.json")
    assert text(LeMiCa(budget=5, artifact=str(tmp_path / "a.json")).schedule(run)) == "CRCCCC"


def fit_of(full, **edges):
    records = {"full": [{"error": full}], **{name[1:].replace("_", "-"): [{"error": e}] for name, e in edges.items()}}
    return LeMiCa(max_skip=3).calibration().fit(records, run_of(5))


def test_an_edge_whose_video_ran_away_is_left_out_and_counted():
    fit = fit_of(0.0, e0_2=1.0, e1_3=math.inf, e2_4=2.0)
    assert fit.values["edges"] == [[0, 2, 1.0], [2, 4, 2.0]]
    assert fit.numbers["edges left out, not finite"] == 1
    assert (fit.numbers["smallest_error"], fit.numbers["largest_error"]) == (1.0, 2.0)


def test_one_clip_in_which_reuse_changes_nothing_has_errors_of_zero():
    fit = fit_of(0.0, e0_2=0.0, e1_3=0.0, e2_4=0.0)
    assert (fit.numbers["fewest_computed_steps"], fit.numbers["largest_error"]) == (3, 0.0)  # 0, 2, 4


def test_videos_that_are_not_finite_are_refused_in_words():
    with pytest.raises(ValueError, match="lemica: a video of full compute ends in latents that are not finite"):
        fit_of(math.nan, e0_2=1.0)
    with pytest.raises(ValueError, match="lemica: all 2 videos with a reused stretch .*residual does not work"):
        fit_of(0.0, e0_2=math.inf, e2_4=math.nan)


def test_an_artifact_of_another_number_of_steps_is_refused_and_another_size_is_carried_over(tmp_path):
    path = artifact(tmp_path / "a.json", [(0, 2, 1.0)], 4, latent_shape=[2, 4, 8])
    with pytest.raises(ValueError, match="num_steps was 4, is 5"):
        LeMiCa(artifact=path).start(run_of(5))
    with pytest.warns(ReuseWarning, match="latent_shape"):
        assert text(LeMiCa(budget=3, artifact=path).schedule(run_of(4, latent_shape=(2, 4, 16)))) == "CRCC"


def test_without_an_artifact_it_says_how_to_make_one():
    with pytest.raises(ValueError, match="lemica needs the errors of reuse of this model.*fsf calibrate lemica MODEL"):
        LeMiCa().start(run_of(8))


def test_two_videos_and_another_number_of_steps_in_one_session():
    model, policy = SmoothDiT(num_blocks=2), LeMiCa(steps=[0, 2, 5])
    with toy_session(model, policy, 8) as session:
        alone = run_smooth(model, 8)
        session.new_video()
        again = run_smooth(model, 8)
    assert all(torch.equal(a, b) for a, b in zip(alone, again))
    with toy_session(model, policy, 4) as session:
        run_smooth(model, 4)
    assert session.trace.decisions("trunk") == "CRCC"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 20.0}, r"write an integer \(budget=20\)"),
        ({"budget": 0.0}, "budget=0.0 as a float is a fraction"),
        ({"budget": 0}, "budget=0 must be at least 1 step"),
        ({"first": 0}, "first=0 must be at least 1 step"),
        ({"last": 0}, "last=0 must be at least 1 step"),
        ({"max_skip": 1}, "max_skip=1 must be at least 2"),
        ({"artifact": "a.json", "steps": [0]}, "give one of them"),
        ({"steps": [-1]}, "numbers of steps from 0"),
        ({"storage": "outputs"}, "storage='outputs' must be one of output, residual"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        LeMiCa(**options)


def test_a_calibration_with_nothing_to_reuse_is_refused_beforehand():
    with pytest.raises(ValueError, match="lemica: 2 steps leave nothing to reuse"):
        LeMiCa().calibration().check(Run(2, [1.0, 0.0], []), 1)
    LeMiCa().calibration().check(Run(3, [2.0, 1.0, 0.0], []), 1)  # step 1
