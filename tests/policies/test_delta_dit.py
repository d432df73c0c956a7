from dataclasses import replace

import pytest
import torch
from toys import ScriptedDiT, SmoothDiT, letters, run_smooth, toy_session

from fsframework.core import DISCARD, RECOMPUTE, REUSE, Kind, Part, Run, Site
from fsframework.policies import ForecastReuse
from fsframework.policies.delta_dit import DeltaDiT

HIDDEN_STATE = 6 * 8 * 4


def smooth(policy, num_steps, num_blocks=4):
    model = SmoothDiT(num_blocks=num_blocks)
    with toy_session(model, policy, num_steps) as session:
        out = run_smooth(model, num_steps)
    return session, model, out


def test_the_rear_span_is_reused_before_the_boundary_and_the_front_span_from_it_on():
    session, _, _ = smooth(DeltaDiT(interval=3, boundary=5, num_blocks=1), 10)
    assert letters(session, ["span.0-1", "span.3-4"]) == {"span.0-1": "CCCCCRCRRC", "span.3-4": "CRRCRCCCCC"}
    assert letters(session, [f"joint.{i}" for i in range(4)]) == {
        "joint.0": "CCCCCRCRRC",
        "joint.1": "CCCCCCCCCC",
        "joint.2": "CCCCCCCCCC",
        "joint.3": "CRRCRCCCCC",
    }


def test_fractions_follow_the_number_of_steps_and_of_blocks():
    session, _, _ = smooth(DeltaDiT(num_blocks=0.5), 8)  # boundary 0.5 of 8 is step 4
    assert letters(session, ["span.0-2", "span.2-4"]) == {"span.0-2": "CCCCCRCR", "span.2-4": "CRCRCCCC"}
    session, _, _ = smooth(DeltaDiT(num_blocks=0.5, boundary=0.3), 6, num_blocks=5)  # 1.8 is step 2; 2 of 5 blocks
    assert letters(session, ["span.0-2", "span.3-5"]) == {"span.0-2": "CCCRCR", "span.3-5": "CRCCCC"}


def test_the_old_change_of_the_span_is_added_to_its_live_input():
    _, model, out = smooth(DeltaDiT(interval=2, boundary=2, num_blocks=2), 2)
    first, second, third, fourth = model.transformer_blocks
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    t0, t1 = torch.zeros(1), torch.ones(1)
    with torch.no_grad():
        old = second(first(x, t0), t0)
        change = fourth(third(old, t0), t0) - old
        expected = second(first(1.1 * x, t1), t1) + change
    assert torch.allclose(out[1], expected, atol=1e-5)


def test_the_full_step_before_the_boundary_captures_both_spans():
    # Steps 4 to 7 are one cycle: 5 reuses the rear span, 6 and 7 the front one.
    session, _, _ = smooth(DeltaDiT(interval=4, boundary=6, num_blocks=1), 8)
    assert letters(session, ["span.0-1", "span.3-4"]) == {"span.0-1": "CCCCCCRR", "span.3-4": "CRRRCRCC"}
    assert not any(session.trace.column("forced"))


@pytest.mark.parametrize(("boundary", "spans"), [(0, 1), (1.0, 1), (4, 2)])
def test_one_residual_is_cached_per_span_that_is_ever_reused(boundary, spans):
    policy = DeltaDiT(boundary=boundary)
    session, _, _ = smooth(policy, 8)
    run = next(iter(session._last.runs.values()))
    assert sum(RECOMPUTE in plan for plan in policy.start(run).decisions) == spans
    # Of two spans one is done with before the other begins, and what can no longer be read is not kept.
    assert session.cache.peak_bytes == HIDDEN_STATE
    assert policy.num_cached(run) == 1


def test_under_a_forecast_each_span_keeps_the_newest_full_steps_and_none_in_between():
    """Full steps are 0, 3, 6, 9; the rear span is reused up to step 5, the front one from step 7 on, by way of 3 and 6."""
    policy = DeltaDiT(interval=3, boundary=6, num_blocks=1)
    run = Run(11, range(11), [Site(Part.SPAN, Kind.JOINT, 0, 1), Site(Part.SPAN, Kind.JOINT, 3, 4)])
    names = {DISCARD: "d", RECOMPUTE: "K", REUSE: "R"}

    def plans(depth):
        front, rear = policy.start(replace(run, depth=depth)).decisions
        return "".join(map(names.get, front)), "".join(map(names.get, rear))

    assert plans(1) == ("ddddddKRRKR", "KRRKRRddddd")
    assert plans(2) == ("dddKddKRRKR", "KRRKRRddddd")
    assert [policy.num_cached(replace(run, depth=depth)) for depth in (1, 2, 3)] == [1, 4, 5]
    session, _, _ = smooth(ForecastReuse(policy), 11)
    assert letters(session, ["span.0-1", "span.3-4"]) == {"span.0-1": "CCCCCCCFFCF", "span.3-4": "CFFCFFCCCCC"}
    assert session.cache.peak_bytes == 4 * HIDDEN_STATE


def test_an_interval_of_one_is_full_compute():
    model = SmoothDiT()
    bare = run_smooth(model, 5)
    with toy_session(model, DeltaDiT(interval=1), 5) as session:
        out = run_smooth(model, 5)
    assert all(torch.equal(a, b) for a, b in zip(out, bare))
    assert session.cache.peak_bytes == 0


def test_two_videos_in_one_session_equal_each_alone():
    def video(model, seed):
        return torch.stack(run_smooth(model, 6, seed=seed))

    alone = []
    for seed in (1, 2):
        model = SmoothDiT()
        with toy_session(model, DeltaDiT(), 6):
            alone.append(video(model, seed))
    model = SmoothDiT()
    with toy_session(model, DeltaDiT(), 6) as session:
        together = [video(model, seed) for seed in (1, 2)]
    assert session.num_videos == 2
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"boundary": 1.5}, "boundary=1.5 must be a fraction of the steps"),
        ({"boundary": -1}, "boundary=-1"),
        ({"num_blocks": 0.6}, "num_blocks=0.6 must be a fraction of the blocks, above 0.0 and at most 0.5"),
        ({"num_blocks": 0}, "num_blocks=0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DeltaDiT(**options)


def test_spans_that_would_overlap_are_an_error():
    with pytest.raises(ValueError, match=r"num_blocks=3 blocks .* overlap in a model of 4 blocks; at most 2"):
        toy_session(ScriptedDiT(4, lambda b, t: t), DeltaDiT(num_blocks=3), 4)
