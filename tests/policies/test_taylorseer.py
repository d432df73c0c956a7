import warnings

import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.core import Part, ReuseWarning, Run
from fsframework.policies.taylorseer import TaylorSeer


def on_blocks(**options):
    return TaylorSeer(**{"part": "block", "storage": "output", **options})


def test_one_step_in_five_is_computed_after_the_first_three():
    session, model, _ = run_scripted(on_blocks(), lambda b, t: t, 14, num_blocks=2)
    assert letters(session) == {"joint.0": "CCCFFFFCFFFFCF", "joint.1": "CCCFFFFCFFFFCF"}
    assert [b.num_runs for b in model.transformer_blocks] == [5, 5]
    assert session.summary()["host_reads_per_step"] == 0


def test_an_order_that_no_forecast_of_the_run_can_have_is_a_warning():
    # Computed at 0, 1, 2, 7; the last forecast, at 9, goes through 4 values: a cubic.
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReuseWarning)
        run_scripted(on_blocks(order=3), lambda b, t: t, 10)
        run_scripted(on_blocks(order=9, interval=1), lambda b, t: t, 3)  # nothing is forecast
    with pytest.warns(
        ReuseWarning, match="order=4 needs 5 computed steps, and the last forecast .* after 4, so its order is 3"
    ):
        run_scripted(on_blocks(order=4), lambda b, t: t, 10)


def test_a_line_is_forecast_exactly():
    _, _, out = run_scripted(on_blocks(interval=3, first_steps=2), lambda b, t: 2 * t - 7, 10)
    assert out == [2 * s - 7 for s in range(10)]


def test_a_parabola_needs_the_second_order_and_uneven_steps_do_not_harm_it():
    # computed at 0, 1, 4, 7, ...: the spacing is 1, then 3, so one spacing for all orders would be wrong at step 5
    _, _, line = run_scripted(on_blocks(interval=3, first_steps=2, order=1), lambda b, t: t * t, 8)
    session, _, out = run_scripted(on_blocks(interval=3, first_steps=2, order=2), lambda b, t: t * t, 8)
    assert letters(session) == {"joint.0": "CCFFCFFC"}
    assert line == [0, 1, 2, 3, 16, 21, 26, 49]  # 1 + (s - 1); then 16 + 5 (s - 4)
    # two entries only before step 4: a line; then Newton through 1, 0 and 4
    assert out == [0, 1, 2, 3, 16, 25, 36, 49]


def test_with_a_single_value_the_forecast_is_a_copy():
    session, _, out = run_scripted(on_blocks(interval=4, first_steps=1), lambda b, t: 10 + t, 6)
    assert letters(session) == {"joint.0": "CFFFCF"}
    assert out == [10, 10, 10, 10, 14, 15]


def test_order_zero_is_reuse():
    _, _, out = run_scripted(on_blocks(interval=3, first_steps=2, order=0), lambda b, t: t, 8)
    assert out == [0, 1, 1, 1, 4, 4, 4, 7]


def test_in_timesteps():
    model = SmoothDiT(num_blocks=1)
    layer = model.transformer_blocks[0]
    x, times = torch.randn(1, 6, 8), [900.0, 800.0, 400.0]
    policy = on_blocks(first_steps=2, spacing="timestep")
    with torch.no_grad(), toy_session(model, policy, 3) as session:
        session._clock.own = times
        for step, t in enumerate(times):
            session.step(step)
            (out,) = model(x * (1 + step), torch.tensor([t]))
    with torch.no_grad():
        y0, y1 = layer(x, torch.tensor([900.0])), layer(2 * x, torch.tensor([800.0]))
    assert torch.allclose(out, y1 + (400 - 800) * (y1 - y0) / (800 - 900), atol=1e-4)


def test_sub_modules_are_forecast_before_their_gates():
    model = SmoothDiT(num_blocks=1)
    layer = model.transformer_blocks[0]
    x = torch.randn(1, 6, 8)
    policy = TaylorSeer(first_steps=2)
    with torch.no_grad(), toy_session(model, policy, 3) as session:
        for step in range(3):
            (out,) = model(x * (1 + step), torch.tensor([float(step)]))
    attention, mlp = [], []
    with torch.no_grad():
        for step in range(2):
            gate = layer.gate(torch.tensor([float(step)]))
            attention.append(layer.attn1(x * (1 + step)))
            mlp.append(layer.ff(x * (1 + step) + gate * attention[-1]))
    gate = layer.gate(torch.tensor([2.0]))
    expected = 3 * x + gate * (2 * attention[1] - attention[0]) + gate * (2 * mlp[1] - mlp[0])
    assert letters(session) == {"joint.0.attention": "CCF", "joint.0.mlp": "CCF"}
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("part", ["block", "trunk", "model", "submodules"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_order_plus_one_values_of_each_site_are_cached(part, order):
    model = SmoothDiT(num_blocks=3)
    with toy_session(model, TaylorSeer(part=part, interval=2, order=order), 9) as session:
        run_smooth(model, 9)
    sites = {"block": 3, "trunk": 1, "model": 1, "submodules": 6}[part]
    assert len(session.sites) == sites
    run = Run(9, range(9), session.sites)
    assert session.policy.num_cached(run) == sites * (order + 1)
    assert session.cache.peak_bytes == sites * (order + 1) * 6 * 8 * 4
    assert session.trace.decisions(session.sites[0]) == "CCCFCFCFC"


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_the_whole_model_and_the_trunk_agree_where_there_is_no_head(storage):
    def run(part):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, TaylorSeer(part=part, storage=storage, interval=3, order=2), 9):
            return run_smooth(model, 9)

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(run("trunk"), run("model"), strict=True))


def test_blocks_keep_their_residual_and_regions_their_output_unless_told():
    model = SmoothDiT(num_blocks=2)
    for part, expected in (("block", "residual"), ("trunk", "output"), ("model", "output")):
        session = toy_session(model, TaylorSeer(part=part), 5)
        assert {session.policy.storage_of(site) for site in session.sites} == {expected}
    session = toy_session(model, TaylorSeer(part="trunk", storage="residual"), 5)
    assert session.residual_sites == set(session.sites)


def test_the_start_is_as_published_for_the_model():
    def first(family, **options):
        return TaylorSeer(**options).start(Run(20, range(20), [], facts={"family": family})).first_steps

    assert (first("wan"), first("hunyuan-video"), first("latte")) == (1, 1, 3)
    assert first("wan", first_steps=4) == 4


def test_the_schedule_is_what_happens_also_for_another_number_of_steps():
    model = SmoothDiT(num_blocks=1)
    for num_steps in (5, 12):
        with toy_session(model, TaylorSeer(interval=4), num_steps) as session:
            run_smooth(model, num_steps)
        planned = session.policy.schedule(Run(num_steps, range(num_steps), session.sites))
        assert "".join("C" if full else "F" for full in planned) == session.trace.decisions("joint.0.mlp")


def test_two_videos_in_one_session_equal_each_alone():
    def videos(seeds):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, TaylorSeer(interval=3), 8):
            return [run_smooth(model, 8, seed=seed) for seed in seeds]

    together = videos([1, 2])
    for seed, video in zip((1, 2), together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(video, videos([seed])[0], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "taylorseer: interval=0 must be at least 1"),
        ({"order": -1}, "taylorseer: order=-1"),
        ({"first_steps": 0}, "taylorseer: first_steps=0 must be at least 1"),
        ({"first_steps": 2.5}, "taylorseer: first_steps=2.5 must be a whole number or none"),
        ({"part": "mlp"}, "taylorseer: part='mlp' must be one of submodules, block, trunk, model"),
        ({"spacing": "t"}, "taylorseer: spacing='t' must be one of step, timestep"),
        ({"storage": "delta", "part": "block"}, "taylorseer: storage='delta' must be output or residual"),
        ({"storage": "output"}, "taylorseer: storage is for block, trunk and model"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TaylorSeer(**options)


def test_a_start_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="first_steps=9 is more than the run's 8 steps"):
        run_scripted(on_blocks(first_steps=9), lambda b, t: t, 8)


def test_the_parts_follow_the_option():
    assert TaylorSeer().parts == {Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP}
    assert TaylorSeer(part="model").parts == {Part.MODEL}
