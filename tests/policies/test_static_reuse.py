import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.policies import StaticReuse


def test_every_second_step_is_reused_after_the_warmup():
    session, model, out = run_scripted(StaticReuse(interval=2, warmup=3), lambda b, t: 100 * b + t, 8, num_blocks=2)
    assert letters(session) == {"joint.0": "CCCRCRCR", "joint.1": "CCCRCRCR"}
    assert out == [100, 101, 102, 102, 104, 104, 106, 106]
    assert [block.num_runs for block in model.transformer_blocks] == [5, 5]


def test_the_default_warmup_is_fifteen_percent():
    session, _, _ = run_scripted(StaticReuse(interval=3), lambda b, t: t, 20)
    assert session.trace.decisions("joint.0") == "CCCRRCRRCRRCRRCRRCRR"


def test_a_range_leaves_the_blocks_outside_it_alone():
    session, _, out = run_scripted(
        StaticReuse(warmup=1, first_block=1, last_block=2), lambda b, t: 100 * b + t, 4, num_blocks=4
    )
    assert letters(session) == {"joint.0": "CCCC", "joint.1": "CRCR", "joint.2": "CRCR", "joint.3": "CCCC"}
    assert out == [300, 301, 302, 303]


def test_a_phase_puts_the_recompute_first():
    session, _, _ = run_scripted(StaticReuse(warmup=2, phase=1), lambda b, t: t, 7)
    assert session.trace.decisions("joint.0") == "CCCRCRC"


def test_one_hidden_state_is_cached_whatever_the_number_of_blocks():
    session, _, _ = run_scripted(StaticReuse(warmup=1), lambda b, t: t, 4, num_blocks=6)
    assert session.cache.peak_bytes == 4 * 2 * 4  # [1, 4, 2] float32


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (StaticReuse(warmup=9), "warmup of 9 steps .* longer than the run of 8"),
        (StaticReuse(first_block=2, last_block=7), r"blocks 2\.\.7 are not a range of this model's 4 blocks"),
        (StaticReuse(first_block=3, last_block=1), r"blocks 3\.\.1"),
    ],
)
def test_what_does_not_fit_the_run_is_an_error(policy, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(policy, lambda b, t: t, 8, num_blocks=4)


def test_fewer_reuse_steps_than_a_cycle_allows():
    session, _, _ = run_scripted(StaticReuse(interval=4, reuse_steps=1, warmup=2), lambda b, t: t, 11)
    assert session.trace.decisions("joint.0") == "CCRCCCRCCCR"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"interval": 3, "reuse_steps": 3}, "reuse_steps=3 must be 0 to interval - 1 = 2"),
        ({"interval": 2.5}, "static: interval=2.5 must be a whole number"),
        ({"phase": 0.5}, "static: phase=0.5 must be a whole number"),
        ({"last_block": 1.0}, "static: last_block=1.0 must be a whole number or none"),
        ({"warmup": "3"}, "static: warmup='3' must be a number"),
        ({"storage": "bogus"}, "static: storage='bogus' must be one of output, residual"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        StaticReuse(**options)


def test_residual_storage_reuses_each_block_of_the_range_on_its_live_input():
    model = SmoothDiT(num_blocks=3)
    policy = StaticReuse(warmup=1, first_block=1, last_block=1, storage="residual")
    with toy_session(model, policy, 2) as session:
        out = run_smooth(model, 2)
    assert letters(session) == {"joint.0": "CC", "joint.1": "CR", "joint.2": "CC"}
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    t0, t1 = torch.zeros(1), torch.ones(1)
    first, second, third = model.transformer_blocks
    with torch.no_grad():
        then = first(x, t0)
        expected = third(first(1.1 * x, t1) + second(then, t0) - then, t1)
    assert torch.allclose(out[1], expected, atol=1e-5)
    assert session.cache.peak_bytes == 6 * 8 * 4  # one block in the range, one residual


def test_with_output_storage_the_blocks_before_the_range_run_for_nothing():
    def run(first):
        model = SmoothDiT(num_blocks=3)
        with toy_session(model, StaticReuse(warmup=1, first_block=first, last_block=1), 4) as session:
            return run_smooth(model, 4), session.summary()["flops_saved"]

    (whole, saved), (part, less) = run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(whole, part))
    assert saved == pytest.approx(2 * less)
