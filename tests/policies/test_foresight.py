"""The paper's rule, on blocks whose outputs, distances and thresholds are worked out by hand."""

import math

import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.core import ReuseWarning
from fsframework.policies import Foresight


def test_a_block_whose_output_stops_changing_is_reused_after_warmup():
    session, _, _ = run_scripted(Foresight(gamma=0.5, warmup=4, recompute_every=2), lambda b, t: min(t, 3), num_steps=8)
    # delta at step 3 is 1 against 0.5 * 1.11, so step 4 recomputes and measures 0; 5 recomputes in its turn.
    assert session.trace.decisions("joint.0") == "CCCCCCRC"


def test_lambda_weighs_the_last_three_changes_by_powers_of_ten_without_normalising():
    outputs = [0, 1, 3, 6, 10, 10, 10, 10]  # changes 1, 2, 3, 4: squares 1, 4, 9, 16
    session, _, _ = run_scripted(Foresight(gamma=1.0, warmup=5), lambda b, t: outputs[int(t)], num_steps=8)
    threshold = session.trace.column("threshold")[5]
    assert threshold == pytest.approx(16 + 0.1 * 9 + 0.01 * 4)


def test_a_warmup_of_two_steps_has_one_change_and_needs_no_more():
    session, _, _ = run_scripted(Foresight(gamma=2.0, warmup=2), lambda b, t: 3 * t, num_steps=4)
    assert session.trace.column("threshold")[2] == pytest.approx(2 * 9)
    assert session.trace.decisions("joint.0") == "CCRC"


@pytest.mark.parametrize(("gamma", "expected"), [(0.9, "CCCCCCCC"), (1.0, "CCCCRCCC"), (4.0, "CCCCRCRC")])
def test_gamma_scales_the_threshold(gamma, expected):
    """A steady drift of 1 a step: lambda = 1.11; directly after the warmup delta is 1, after a reuse it is 2^2 = 4."""
    with pytest.warns(ReuseWarning, match="reused nothing") if "R" not in expected else _no_warning():
        session, _, _ = run_scripted(Foresight(gamma=gamma, warmup=4), lambda b, t: t, num_steps=8)
    assert session.trace.decisions("joint.0") == expected


def test_lag_correction_undoes_the_growth_of_the_distance_with_the_lag():
    session, _, _ = run_scripted(Foresight(gamma=1.0, warmup=4, lag_correction=True), lambda b, t: t, num_steps=8)
    assert session.trace.decisions("joint.0") == "CCCCRCRC"
    distances = session.trace.column("distance")
    assert distances[5] == pytest.approx(1.0)  # 2^2 over a lag of 2


def test_two_reuse_steps_per_cycle():
    session, _, _ = run_scripted(
        Foresight(gamma=1.0, warmup=4, recompute_every=3), lambda b, t: min(t, 3), num_steps=11
    )
    assert session.trace.decisions("joint.0") == "CCCCRRCRRCR"


def test_a_phase_recomputes_directly_after_the_warmup():
    session, _, _ = run_scripted(Foresight(gamma=1.0, warmup=4, phase=1), lambda b, t: min(t, 3), num_steps=8)
    assert session.trace.decisions("joint.0") == "CCCCCRCR"


def test_each_block_decides_alone():
    def script(block, t):
        return min(t, 3) if block == 0 else t * t

    session, _, _ = run_scripted(Foresight(gamma=0.5, warmup=4), script, num_steps=9, num_blocks=2)
    assert letters(session) == {"joint.0": "CCCCCCRCR", "joint.1": "CCCCCCCCC"}


def test_each_branch_decides_alone():
    model = SmoothDiT(num_blocks=2)
    x = torch.randn(1, 6, 8)
    steps = 10
    with torch.no_grad(), toy_session(model, Foresight(gamma=0.5, warmup=4), steps) as session:
        for step in range(steps):
            for branch, amplitude in (("cond", min(step, 3)), ("uncond", step * step)):
                with session.branch(branch):
                    model(x * (1 + amplitude), torch.tensor([float(step)]))
    assert "R" in session.trace.decisions("joint.1", "cond")
    assert "R" not in session.trace.decisions("joint.1", "uncond")


def test_a_constant_model_is_reused_at_every_eligible_step():
    session, _, _ = run_scripted(Foresight(warmup=2), lambda b, t: 5.0, num_steps=10)
    assert session.trace.decisions("joint.0") == "CCRCRCRCRC"


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_distance_that_is_not_finite_never_means_reuse(bad):
    def script(block, t):
        return bad if t in (2, 3) else 1.0

    session, _, _ = run_scripted(Foresight(gamma=2.0, warmup=4), script, num_steps=8)
    assert session.trace.decisions("joint.0") == "CCCCCCCC"


def test_a_distance_that_is_not_finite_is_a_warning_with_numbers():
    with pytest.warns(ReuseWarning, match=r"2 of 7 distances are not finite; first: inf at joint.0, step 2"):
        run_scripted(Foresight(warmup=4), lambda b, t: math.inf if t == 2 else 1.0, num_steps=8)


def test_zero_reuse_is_a_warning_with_the_smallest_distance_and_the_threshold():
    with pytest.warns(ReuseWarning, match=r"reused nothing in 6 steps. Smallest distance 1, largest threshold 0.11"):
        run_scripted(Foresight(gamma=0.1, warmup=4), lambda b, t: t, num_steps=6)


def test_one_lagged_host_read_per_eligible_step():
    session, _, _ = run_scripted(Foresight(warmup=4, gamma=2), lambda b, t: min(t, 3), num_steps=10)
    assert session.meter.num_reads == 3  # steps 4, 6, 8
    assert session.summary()["host_reads_per_step"] == 0.3


def test_the_cache_holds_each_blocks_output_once():
    session, _, _ = run_scripted(Foresight(warmup=2), lambda b, t: 1.0, num_steps=6, num_blocks=3)
    assert session.cache.peak_bytes == 3 * (4 * 2 * 4)


def test_residual_storage_measures_and_reuses_the_change_a_block_makes():
    model = SmoothDiT(num_blocks=2)
    policy = Foresight(gamma=2.0, warmup=3, storage="residual", lag_correction=True)
    with toy_session(model, policy, 8) as session:
        out = run_smooth(model, 8)
    bare = run_smooth(model, 8)
    assert "R" in session.trace.decisions("joint.0")
    assert all(torch.equal(a, b) for a, b in zip(out[:3], bare[:3]))
    with toy_session(model, Foresight(gamma=2.0, warmup=3, lag_correction=True), 8) as session:
        as_output = run_smooth(model, 8)
    error = max(float((a - b).abs().max()) for a, b in zip(out, bare))
    assert error < max(float((a - b).abs().max()) for a, b in zip(as_output, bare))


def test_a_distance_is_measured_to_what_is_cached_in_the_storage_it_is_cached_in():
    """Block 1 gets 3t from block 0 and gives 10 + t: its output moves by 1 a step, its residual 10 - 2t by 2."""

    def script(block, t):
        return 3 * t if block == 0 else 10 + t

    def distances(storage):
        session, _, _ = run_scripted(Foresight(warmup=3, storage=storage), script, num_steps=3, num_blocks=2)
        return session.trace.heatmap("distance").of("joint.1")[1:]

    with pytest.warns(ReuseWarning, match="reused nothing"):
        assert distances("output") == pytest.approx([1.0, 1.0])
        assert distances("residual") == pytest.approx([4.0, 4.0])


def test_max_over_samples_is_the_changed_branchs_own_distance_where_the_mean_halves_it():
    def run(reduce):
        model = SmoothDiT(num_blocks=1)
        x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), toy_session(model, Foresight(warmup=2, reduce=reduce), 2) as session:
            model(x, torch.zeros(2))
            moved = torch.stack([x[0], x[1] * 2])
            session.step(1)
            model(moved, torch.zeros(2))
        return session.trace.column("distance")[1]

    assert run("max") == pytest.approx(2 * run("mean"), rel=1e-5)


def test_thresholds_are_in_the_trace_when_dead_blocks_are_not_run():
    session, _, _ = run_scripted(
        Foresight(gamma=1.0, warmup=4, eliminate_dead=True),
        lambda b, t: min(t, 3) if b else t,
        num_steps=8,
        num_blocks=2,
    )
    assert letters(session) == {"joint.0": "CCCCRCEC", "joint.1": "CCCCRCRC"}
    thresholds = session.trace.heatmap("threshold").of("joint.1")
    assert thresholds[4] == pytest.approx(1.11)
    assert thresholds[6] == pytest.approx(1.11)
    assert session.summary()["reuse_fraction"] == 3 / 16


def test_a_token_stride_measures_a_subset():
    def run(stride):
        model = SmoothDiT(num_blocks=1)
        with toy_session(model, Foresight(warmup=2, token_stride=stride), 3) as session:
            run_smooth(model, 3)
        return session.trace.column("distance")[1]

    with pytest.warns(ReuseWarning, match="reused nothing"):
        assert run(1) != run(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "gamma=-1.0 must be >= 0"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"recompute_every": 0}, "recompute_every=0 must be at least 1"),
        ({"token_stride": 0}, "token_stride=0"),
        ({"gamma": "high"}, "gamma='high' must be a number"),
        ({"gamma": None}, "gamma=None must be a number"),
        ({"gamma": True}, "gamma=True must be a number"),
        ({"warmup": "15%"}, "warmup='15%' must be a number"),
        ({"recompute_every": 2.5}, "recompute_every=2.5 must be a whole number"),
        ({"lag_correction": "yes"}, "lag_correction='yes' must be True or False"),
        ({"storage": 1}, "storage=1 must be a string"),
        ({"storage": "outputs"}, "storage='outputs' must be one of output, residual"),
        ({"reduce": "sum"}, "reduce='sum' must be one of mean, max"),
        ({"storage": "residual", "eliminate_dead": True}, "eliminate_dead needs storage='output'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Foresight(**options)


@pytest.mark.parametrize(("warmup", "message"), [(1, "at least 2 steps"), (9, "longer than the run of 8 steps")])
def test_a_warmup_that_does_not_fit_is_refused_at_the_first_forward(warmup, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(Foresight(warmup=warmup), lambda b, t: t, num_steps=8)


def _no_warning():
    import warnings

    return warnings.catch_warnings()
