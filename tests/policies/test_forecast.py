from dataclasses import dataclass

import pytest
import torch
from toys import SmoothDiT, ToyAdapter, letters, run_scripted, run_smooth, toy_session

from fsframework.core import Forecast, Part, Recompute, Reuse, ReuseEngine, ReusePolicy, Run
from fsframework.policies import (
    Foresight,
    ForesightRelease,
    FullCompute,
    MagCache,
    PyramidAttentionBroadcast,
    SmoothCache,
    StaticReuse,
)
from fsframework.policies.forecast import ForecastReuse
from fsframework.policies.taylorseer import TaylorSeer
from fsframework.run.bench_counts import host_reads

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


def blocks(**options):
    return StaticReuse(**{"storage": "residual", "warmup": 2, "interval": 3, **options})


def test_a_jump_gets_the_forecast_of_its_target():
    session, model, out = run_scripted(
        ForecastReuse(StaticReuse(warmup=2, interval=3)), lambda b, t: 100 * b + 3 * t, 9, num_blocks=2
    )
    assert out == [100 + 3 * s for s in range(9)]
    assert letters(session) == {"joint.0": "CCFFCFFCF", "joint.1": "CCFFCFFCF"}
    assert [b.num_runs for b in model.transformer_blocks] == [4, 4]
    assert session.cache.peak_bytes == 2 * 4 * 2 * 4  # two outputs of the target, [1, 4, 2] float32


def test_residuals_are_forecast_and_added_to_the_live_input():
    model = SmoothDiT(num_blocks=1)
    layer = model.transformer_blocks[0]
    with toy_session(model, ForecastReuse(blocks()), 4) as session:
        out = run_smooth(model, 4)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        r = [layer(x * (1 + 0.1 * s), torch.tensor([float(s)])) - x * (1 + 0.1 * s) for s in range(2)]
    assert session.trace.decisions("joint.0") == "CCFF"
    assert torch.allclose(out[2], 1.2 * x + 2 * r[1] - r[0], atol=1e-5)
    assert torch.allclose(out[3], 1.3 * x + 3 * r[1] - 2 * r[0], atol=1e-5)


def test_one_value_is_copied_and_half_the_damping_goes_half_the_way():
    base = StaticReuse(warmup=1, interval=3)
    _, _, out = run_scripted(ForecastReuse(base), lambda b, t: 10 * t, 6)
    assert out == [0, 0, 0, 30, 40, 50]
    _, _, out = run_scripted(ForecastReuse(base, damping=0.5), lambda b, t: 10 * t, 6)
    assert out == [0, 0, 0, 30, 35, 40]


@pytest.mark.parametrize(
    "base", [StaticReuse(), blocks(), Foresight(gamma=2.0, warmup=3), TaylorSeer(order=0, interval=2)]
)
def test_order_zero_is_the_base_itself(base):
    def video(policy):
        model = SmoothDiT(num_blocks=3)
        with toy_session(model, policy, 10) as session:
            out = run_smooth(model, 10)
        return out, [r in ("recompute",) for r in session.trace.column("decision")], session.cache.peak_bytes

    (alone, plan, peak), (wrapped, same_plan, same_peak) = video(base), video(ForecastReuse(base, order=0))
    assert all(torch.equal(a, b) for a, b in zip(alone, wrapped, strict=True))
    assert (plan, peak) == (same_plan, same_peak)


def test_static_with_a_forecast_is_taylorseer_on_blocks():
    def video(policy):
        model = SmoothDiT(num_blocks=3)
        with toy_session(model, policy, 12):
            return run_smooth(model, 12)

    wrapped = video(ForecastReuse(blocks(warmup=3, interval=5), order=2))
    taylor = video(TaylorSeer(part="block", order=2, interval=5, first_steps=3))
    assert all(torch.equal(a, b) for a, b in zip(wrapped, taylor, strict=True))


@pytest.mark.parametrize(
    "base",
    [StaticReuse(warmup=2), blocks(), blocks(first_block=1, last_block=1), Foresight(gamma=1.0, warmup=3)],
    ids=["jump", "residual", "range", "foresight"],
)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_memory_is_order_plus_one_times_the_bases(base, order):
    model = SmoothDiT(num_blocks=3)
    policy = ForecastReuse(base, order=order)
    with toy_session(model, policy, 10) as session:
        run_smooth(model, 10)
    run = Run(10, range(10), session.sites)
    assert policy.num_cached(run) == base.num_cached(run) * (order + 1)
    assert session.cache.peak_bytes == policy.num_cached(run) * 6 * 8 * 4


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (StaticReuse(warmup=1, interval=9), 2),  # steps 0 and 9 are computed: 2 values of the last block, not 5
        (blocks(warmup=2, interval=5), 3 * 3),  # 0, 1 and 6
        (TaylorSeer(part="trunk", interval=6, first_steps=2), 3),  # 0, 1 and 7
        (Foresight(gamma=1.0, warmup=3), 3 * 5),  # as many as a polynomial of degree 4 goes through
    ],
    ids=["jump", "residual", "taylorseer", "foresight"],
)
def test_no_more_is_declared_than_there_are_computed_steps(base, values):
    policy = ForecastReuse(base, order=4)
    with toy_session(SmoothDiT(num_blocks=3), policy, 10) as session:
        run_smooth(session.bound.transformer, 10)
    run = Run(10, range(10), session.sites)
    assert session.cache.peak_counts()["joint"][0] == policy.num_cached(run) == values


def test_the_release_keeps_what_a_longer_forecast_goes_through():
    seen = []

    class Watches(ForecastReuse):
        def decide(self, state, call, site):
            decision = super().decide(state, call, site)
            if isinstance(decision, Forecast):
                seen.append([entry.step for entry in call.history(decision.through)])
            return decision

    policy = Watches(ForesightRelease(gamma=100.0, warmup=4, recompute_every=3), order=2)
    run_scripted(policy, lambda b, t: t, 6)
    assert seen == [[1, 2, 3], [1, 2, 3]]  # steps 4 and 5; with the copy, step 1 would not have been kept


def test_a_base_that_keeps_more_keeps_it():
    policy = ForecastReuse(TaylorSeer(order=2), order=1)
    session = toy_session(SmoothDiT(num_blocks=2), policy, 5)
    assert {policy.depth_of(site) for site in session.sites} == {3}
    assert policy.num_cached(Run(5, range(5), session.sites)) == 4 * 3


@dataclass(frozen=True)
class Watch(ReusePolicy):
    """Computes at 0, 1 and every third step; logs what it is shown as cached."""

    def decide(self, state, call, site):
        return Reuse() if call.step.index % 3 == 2 else Recompute()

    def observe(self, state, call, site, fresh, cached):
        if cached is not None:
            call.log(shown=cached.value[0].mean(), lag_shown=call.step.index - cached.step)


def shown(judge):
    session, _, _ = run_scripted(ForecastReuse(Watch(), judge=judge), lambda b, t: t * t, 7)
    assert session.trace.decisions("joint.0") == "CCFCCFC"
    return list(session.trace.logged("shown").values()), list(session.trace.logged("lag_shown").values())


def test_the_base_sees_the_last_value_or_the_forecast_for_this_step():
    # squares 0 1 . 9 16 . 36; lines: one value at 1; 1+2*1 at 3; 9+1*4 at 4; 16+2*7 at 6
    assert shown("copy") == ([0, 1, 9, 16], [1, 2, 1, 2])
    assert shown("forecast") == ([0, 3, 13, 30], [1, 2, 1, 2])


def test_a_threshold_on_the_forecasts_own_error_reuses_a_steady_drift():
    # A line drifts by 1 each step, which gamma 0.5 of its own change never allows; its forecast has no error from step 2 on.
    base = Foresight(gamma=0.5, warmup=4)
    by_copy, _, _ = run_scripted(ForecastReuse(base, judge="copy"), lambda b, t: t, 12)
    by_forecast, _, out = run_scripted(ForecastReuse(base, judge="forecast"), lambda b, t: t, 12)
    assert by_copy.trace.decisions("joint.0") == "C" * 12
    assert by_forecast.trace.decisions("joint.0") == "CCCCFCFCFCFC"
    assert out == list(range(12))


def test_host_reads_are_the_bases_and_a_forecast_adds_none():
    def reads_of(policy):
        with toy_session(SmoothDiT(num_blocks=2), policy, 10) as session, host_reads() as reads:
            run_smooth(session.bound.transformer, 10)
        return session.meter.num_reads, len(reads)

    base = Foresight(gamma=100.0, warmup=3)
    policy = ForecastReuse(base, order=2, judge="forecast")
    assert (policy.host_reads_per_step, policy.num_host_reads(Run(10, range(10), []))) == (1, 1)
    assert reads_of(policy) == reads_of(base)


def test_a_base_that_discards_has_no_history_and_is_not_forecast():
    @dataclass(frozen=True)
    class Discards(ReusePolicy):
        def decide(self, state, call, site):
            return Reuse() if call.step.index == 3 else Recompute(keep=call.step.index == 0)

    session, _, out = run_scripted(ForecastReuse(Discards()), lambda b, t: t, 5)
    assert out == [0, 1, 2, 0, 4]
    assert session.trace.column("lag") == [0, 0, 0, 3, 0]


@pytest.mark.parametrize("part", ["submodules", "trunk", "model"])
def test_any_part_can_be_forecast(part):
    def video(policy):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, policy, 9):
            return run_smooth(model, 9)

    copies = TaylorSeer(order=0, interval=3, part=part)
    line = TaylorSeer(order=1, interval=3, part=part)

    @dataclass(frozen=True)
    class Copies(TaylorSeer):
        def decide(self, state, call, site):
            decision = super().decide(state, call, site)
            return decision if isinstance(decision, Recompute) else Reuse()

    wrapped = video(ForecastReuse(Copies(order=0, interval=3, part=part)))
    assert all(torch.equal(a, b) for a, b in zip(wrapped, video(line), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wrapped, video(copies), strict=True))


def test_a_dead_block_that_was_to_be_forecast_is_recorded_as_one():
    policy = ForecastReuse(Foresight(gamma=4.0, warmup=3, eliminate_dead=True))
    assert policy.eliminate_dead
    session, model, _ = run_scripted(policy, lambda b, t: t, 6, num_blocks=2)
    assert letters(session) == {"joint.0": "CCCFCF", "joint.1": "CCCFCF"}
    assert [b.num_runs for b in model.transformer_blocks] == [4, 4]


def test_two_videos_in_one_session_equal_each_alone():
    def videos(seeds):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, ForecastReuse(Foresight(gamma=1.0, warmup=3), judge="forecast"), 10):
            return [run_smooth(model, 10, seed=seed) for seed in seeds]

    together = videos([1, 2])
    for seed, video in zip((1, 2), together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(video, videos([seed])[0], strict=True))


def test_what_the_base_knows_beforehand_is_known():
    run = Run(9, range(9), [])
    assert ForecastReuse(StaticReuse(warmup=2, interval=3)).schedule(run) == StaticReuse(warmup=2, interval=3).schedule(
        run
    )
    assert ForecastReuse(Foresight()).schedule(run) is None
    assert ForecastReuse(FullCompute()).parts == frozenset({Part.BLOCK})


def test_the_base_may_be_named():
    assert ForecastReuse() == ForecastReuse("static") == ForecastReuse(StaticReuse())
    assert ForecastReuse({"name": "foresight", "gamma": 0.3}).base == Foresight(gamma=0.3)
    nested = ForecastReuse({"name": "forecast", "base": "foresight", "order": 2})
    assert nested.base == ForecastReuse(Foresight(), order=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 3}, r"forecast: base must be a policy, its name, or a mapping .*; found 3"),
        ({"base": {"gamma": 1}}, r"forecast: base must be a policy"),
        ({"base": "foresite"}, r"unknown policy 'foresite'. Did you mean 'foresight'"),
        ({"order": -2}, "forecast: order=-2"),
        ({"spacing": "sigma"}, "forecast: spacing='sigma'"),
        ({"damping": -0.1}, "forecast: damping=-0.1"),
        ({"judge": "both"}, "forecast: judge='both' must be one of copy, forecast"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ForecastReuse(**options)


def test_with_its_never_options_it_recomputes_everything():
    session, _, out = run_scripted(ForecastReuse(**ForecastReuse.never), lambda b, t: t, 5)
    assert out == [0, 1, 2, 3, 4]
    assert session.trace.decisions("joint.0") == "CCCCC"


@pytest.mark.parametrize(
    ("base", "first"),
    [
        (MagCache(ratios=[0.95], threshold=0.06, max_consecutive=1, retention=0.5), 4),
        (PyramidAttentionBroadcast(joint=2, window_low=0, window_high=4.5, mlp_windows=()), 5),
        (SmoothCache(steps={"attention": [0, 1, 2, 3, 4, 6, 8], "mlp": [0, 1, 2, 3, 4, 6, 8]}), 5),
    ],
    ids=["magcache", "pab", "smoothcache"],
)
def test_a_plan_keeps_the_two_points_that_its_forecast_goes_through(base, first):
    """The steps before the first reuse were all computed: the line goes through the last two of them."""
    seen = []

    class Watches(ForecastReuse):
        def decide(self, state, call, site):
            decision = super().decide(state, call, site)
            if isinstance(decision, Forecast):
                seen.append((call.step.index, [entry.step for entry in call.history(site)]))
            return decision

    model = SmoothDiT(num_blocks=1)
    timesteps = list(range(8, -1, -1))  # falling, as samplers have them
    with torch.no_grad(), ReuseEngine(ToyAdapter().bind(model), Watches(base=base), timesteps=timesteps) as session:
        for step, t in enumerate(timesteps):
            model(torch.randn(1, 6, 8) + step, torch.tensor([float(t)]))
    assert seen[0] == (first, [first - 2, first - 1])
    declared = session.policy.num_cached(Run(9, timesteps, session.sites))
    assert session.cache.peak_counts()["joint"][0] == declared
