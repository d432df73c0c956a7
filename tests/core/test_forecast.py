import pytest
import torch
from toys import letters, run_scripted

from fsframework.core import Entry, Kind, Part, Recompute, ReusePolicy, Run, Site, Step
from fsframework.core.forecast import (
    carry_on,
    carry_on_forecast,
    check_forecast,
    extrapolate,
    forecast,
    polynomial_weights,
)


def entries(values, dtype=torch.float32):
    """Step -> number, as a history of one stream [1, 2, 1]."""
    return [Entry(step, (torch.full((1, 2, 1), float(v), dtype=dtype),)) for step, v in values.items()]


def at(index, num_steps=20, timestep=0.0):
    return Step(index, num_steps, timestep)


def number(state):
    assert state[0].unique().numel() == 1
    return state[0][0, 0, 0].item()


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (0, 1, 4, 5), (2, 3, 7, 11)])
def test_a_polynomial_of_at_most_the_order_is_forecast_exactly_also_on_uneven_steps(order, steps):
    def y(s):
        return sum((s - 4) ** p for p in range(order + 1))

    history = entries({s: y(s) for s in steps})
    assert number(extrapolate(history, at(13), order)) == pytest.approx(y(13), rel=1e-5)


def test_a_line_through_uneven_steps_by_hand():
    # 5 at step 2, 11 at step 5: slope 2, so 15 at step 7.
    assert number(extrapolate(entries({2: 5, 5: 11}), at(7))) == 15.0


def test_a_parabola_through_uneven_steps_by_hand():
    # s^2 at 0, 1, 3: [0,1] = 1, [1,3] = 4, [0,1,3] = 1; at 5: 9 + (5-3)*4 + (5-3)(5-1)*1 = 25.
    assert number(extrapolate(entries({0: 0, 1: 1, 3: 9}), at(5), order=2)) == 25.0


def test_only_the_newest_entries_count():
    assert number(extrapolate(entries({0: 100, 2: 5, 5: 11}), at(7), order=1)) == 15.0


def test_one_entry_is_the_copy_itself():
    history = entries({3: 7})
    assert extrapolate(history, at(9), order=3) is history[-1].value
    assert carry_on(history, 0.5) is history[-1].value


def test_order_zero_and_full_damping_are_copies():
    history = entries({1: 3, 2: 7})
    assert extrapolate(history, at(4), order=0) is history[-1].value
    assert extrapolate(history, at(4), damping=0.0) is history[-1].value


def test_half_the_damping_goes_half_the_way():
    assert number(extrapolate(entries({1: 3, 2: 7}), at(4), damping=0.5)) == 11.0  # copy 7, line 15


def test_in_timesteps_the_schedulers_spacing_counts():
    times = [1000.0, 900.0, 500.0, 480.0]
    history = entries({0: 10, 1: 9})  # 1 per 100
    assert number(extrapolate(history, at(2), times=times)) == pytest.approx(5.0)
    assert number(extrapolate(history, at(2))) == pytest.approx(8.0)


def test_steps_at_one_timestep_are_one_point_the_newest():
    times = [900.0, 800.0, 800.0, 700.0]
    history = entries({0: 1, 1: 50, 2: 2})
    assert number(extrapolate(history, at(3), order=2, times=times)) == pytest.approx(3.0)


def test_a_step_at_the_timestep_of_the_newest_entry_is_a_copy():
    history = entries({0: 1, 1: 2})
    assert extrapolate(history, at(2), times=[900.0, 800.0, 800.0]) is history[-1].value


def test_weights_by_hand_and_their_sum():
    assert polynomial_weights([0, 1], 3) == [-2.0, 3.0]
    assert polynomial_weights([4, 2, 1], 7) == pytest.approx([5.0, -9.0, 5.0])  # 30/6, 18/-2, 15/3
    assert sum(polynomial_weights([11, 7, 3, 2], 13)) == pytest.approx(1.0)


def test_a_history_that_stands_still_gives_exactly_its_value():
    value = torch.randn(2, 5, 3)
    history = [Entry(s, (value.clone(),)) for s in (0, 3, 4)]
    assert torch.equal(extrapolate(history, at(9), order=2)[0], value)


def test_half_precision_is_accumulated_in_float32_and_cast_back():
    # In bfloat16 257 is 256 and 3 * 257 rounds on the way; in float32 the line from 254 to 256 reaches 262 at lag 3.
    history = entries({0: 254, 1: 256}, torch.bfloat16)
    (out,) = extrapolate(history, at(4), order=1)
    assert out.dtype is torch.bfloat16
    assert out[0, 0, 0].item() == 262.0
    (big,) = extrapolate(entries({0: 60000, 1: 60000}, torch.float16), at(9))
    assert bool(big.isfinite().all())  # (1 + 8) * 60000 - 8 * 60000 in float16 would not be


def test_every_stream_is_forecast_and_the_history_is_left_alone():
    history = [Entry(s, (torch.full((1, 3, 2), float(s)), torch.full((1, 1, 2), -2.0 * s))) for s in (0, 1)]
    video, text = extrapolate(history, at(5))
    assert video.unique().tolist() == [5.0]
    assert text.unique().tolist() == [-10.0]
    assert [e.value[0][0, 0, 0].item() for e in history] == [0.0, 1.0]


def test_carrying_on_ignores_the_spacing():
    assert number(carry_on(entries({2: 5, 5: 11}), 0.5)) == 14.0  # 11 + 0.5 * 6
    assert number(carry_on_forecast(0.5).fn(entries({2: 5, 5: 11}), at(9))) == 14.0


class Line(ReusePolicy):
    """Everything recomputed at steps 0, 1, 4; forecast between."""

    depth = 2

    def __init__(self, **options):
        self.options = options

    def decide(self, state, call, site):
        return Recompute() if call.step.index in (0, 1, 4) else forecast(call.run, **self.options)


def test_the_decision_extrapolates_in_a_session():
    session, model, out = run_scripted(Line(), lambda b, t: 3 * t, 7)
    assert out == [0, 3, 6, 9, 12, 15, 18]
    assert letters(session) == {"joint.0": "CCFFCFF"}
    assert model.transformer_blocks[0].num_runs == 3


def test_a_jump_puts_the_forecast_of_its_target_in_place():
    target = Site(Part.BLOCK, Kind.JOINT, 2, 3, 2)

    class Jump(Line):
        jumps = True

        def decide(self, state, call, site):
            if site.start == 0 and call.step.index not in (0, 1, 4):
                return forecast(call.run, through=target)
            return Recompute(keep=site == target)

    session, model, out = run_scripted(Jump(), lambda b, t: 100 * b + 3 * t, 7, num_blocks=3)
    assert out == [200, 203, 206, 209, 212, 215, 218]
    assert letters(session) == {f"joint.{i}": "CCFFCFF" for i in range(3)}
    assert session.trace.column("lag")[6:9] == [1, 1, 1]
    assert [b.num_runs for b in model.transformer_blocks] == [3, 3, 3]
    assert session.cache.peak_bytes == 2 * 4 * 2 * 4  # two outputs [1, 4, 2] float32, of the target only


def test_a_jump_with_nothing_cached_is_forced():
    target = Site(Part.BLOCK, Kind.JOINT, 1, 2, 1)

    class Early(ReusePolicy):
        depth = 2

        def decide(self, state, call, site):
            return forecast(call.run, through=target) if site.start == 0 else Recompute()

    session, _, out = run_scripted(Early(), lambda b, t: 100 * b + t, 2, num_blocks=2)
    assert out == [100, 100]
    assert session.trace.column("forced") == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": -1}, r"x: order=-1 must be a whole number >= 0"),
        ({"spacing": "sigma"}, "x: spacing='sigma' must be one of step, timestep"),
        ({"damping": 1.5}, "x: damping=1.5 must be 0.0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_forecast(**{"order": 1, "spacing": "step", "owner": "x", **options})


def test_timesteps_come_from_the_run():
    run = Run(3, [900.0, 500.0, 400.0], [])
    assert number(forecast(run, spacing="timestep").fn(entries({0: 9, 1: 5}), at(2))) == pytest.approx(4.0)
