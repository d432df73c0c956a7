"""DBPrune on blocks whose inputs are given as numbers: a scripted block's input is the output of the one before."""

import math

import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.policies.dbprune import DBPrune

quiet = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
OPTIONS = dict(first_blocks=1, warmup=1)


def run(policy, *outputs, num_steps=6):
    """Block b outputs `outputs[b](t)`."""
    return run_scripted(policy, lambda block, t: outputs[block](t), num_steps, len(outputs))


def test_a_block_is_reused_while_its_input_stays_close_to_that_of_its_last_computation():
    first = [1.0, 1.04, 1.08, 1.12, 1.12, 2.0]
    session, model, out = run(DBPrune(threshold=0.1, **OPTIONS), lambda t: first[int(t)], lambda t: 7.0 + t)
    # Block 1's input against step 0: 0.04, 0.08, 0.12 (computed); then 0 against step 3, and 0.88 / 1.12.
    assert letters(session) == {"joint.0": "CCCCCC", "joint.1": "CRRCRC"}
    assert [block.num_runs for block in model.transformer_blocks] == [6, 3]
    # Its change at step 0 is 6, at step 3 it is 8.88, each added to the live input.
    assert out == pytest.approx([7.0, 7.04, 7.08, 10.0, 1.12 + 8.88, 12.0])
    distances = session.trace.heatmap("distance").of("joint.1")
    assert distances[1:] == pytest.approx([0.04, 0.08, 0.12, 0.0, 0.88 / 1.12], abs=1e-6)


def test_each_block_decides_alone():
    # Block 2 is computed in every step, so what enters block 3 doubles; block 1's input stands still.
    session, _, _ = run(DBPrune(**OPTIONS), lambda t: 1.0, lambda t: 1.0, lambda t: 2.0**t, lambda t: 1.0)
    assert letters(session) == {"joint.0": "C" * 6, "joint.1": "CRRRRR", "joint.2": "CRRRRR", "joint.3": "CRRRRR"}
    policy = DBPrune(**OPTIONS, never_blocks=[2])
    session, _, _ = run(policy, lambda t: 1.0, lambda t: 1.0, lambda t: 2.0**t, lambda t: 1.0)
    assert letters(session) == {"joint.0": "C" * 6, "joint.1": "CRRRRR", "joint.2": "CCCCCC", "joint.3": "CCCCCC"}


def test_first_last_and_named_blocks_always_run_and_nothing_of_theirs_is_kept():
    policy = DBPrune(first_blocks=0.2, last_blocks=1, never_blocks=[2], warmup=1)  # 0.2 * 5 is 1
    session, _, _ = run(policy, *[lambda t: 1.0] * 5)
    assert list(letters(session).values()) == ["C" * 6, "CRRRRR", "C" * 6, "CRRRRR", "C" * 6]
    assert session.cache.peak_bytes == 2 * 2 * (4 * 2 * 4)  # residual and input of two blocks
    run_facts = next(iter(session._last.runs.values()))
    assert (policy.num_cached(run_facts), policy.num_kept(run_facts), policy.num_host_reads(run_facts)) == (2, 2, 2)
    assert session.meter.num_reads == 2 * 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "CRRRRR"),
        ({"warmup": 3}, "CCCRRR"),
        ({"max_reused": 2}, "CRRCCC"),
        ({"max_reused": 0}, "CCCCCC"),
        ({"threshold": 0.0}, "CCCCCC"),
    ],
)
@quiet
def test_the_limits_hold_where_nothing_changes(options, expected):
    session, _, _ = run(DBPrune(**{**OPTIONS, **options}), *[lambda t: 1.0] * 3)
    assert session.trace.decisions("joint.1") == session.trace.decisions("joint.2") == expected


@quiet
def test_a_dynamic_threshold_follows_the_steps_first_distances():
    # What enters blocks 1, 2, 3 at step 1 has changed by 0.09, 0.11, 0.2, if the block before was computed.
    changes = {0: 0.09, 1: 0.11, 2: 0.2}

    def block(number):
        return lambda t: 1.0 + changes.get(number, 0.0) * t

    outputs = [block(b) for b in range(4)]
    static, _, _ = run(DBPrune(threshold=0.1, **OPTIONS), *outputs, num_steps=2)
    # Block 1 is reused (0.09) and adds 0 to 1.09, so block 2 sees 0.09 too, and block 3 the same: all reused.
    assert list(letters(static).values()) == ["CC", "CR", "CR", "CR"]
    policy = DBPrune(threshold=0.08, dynamic=True, first_blocks=1, warmup=1)
    dynamic, _, _ = run(policy, *outputs, num_steps=2)
    # 0.09 against 0.08: computed, giving 1.11. Then 1.25 * 0.09 = 0.1125 < 0.16 lets 0.11 be reused, still 1.11, and
    # for block 3 the threshold is 1.25 * (0.09 + 0.11) / 2 = 0.125.
    assert list(letters(dynamic).values()) == ["CC", "CC", "CR", "CR"]
    thresholds = [dynamic.trace.heatmap("threshold").of(f"joint.{b}")[1] for b in (1, 2, 3)]
    assert thresholds == pytest.approx([0.08, 0.1125, 0.125], rel=1e-5)
    capped, _, _ = run(DBPrune(threshold=0.08, dynamic=True, max_threshold=0.11, **OPTIONS), *outputs, num_steps=2)
    # 0.1125 is not below 0.11, so 0.08 holds: block 2 is computed, giving 1.2 to block 3.
    assert [capped.trace.heatmap("threshold").of(f"joint.{b}")[1] for b in (1, 2, 3)] == pytest.approx([0.08] * 3)
    assert capped.trace.heatmap("distance").of("joint.3")[1] == pytest.approx(0.2)


def test_a_dynamic_threshold_is_never_below_the_fixed_one():
    policy = DBPrune(threshold=0.1, dynamic=True, **OPTIONS)
    session, _, _ = run(policy, lambda t: 1 + 0.01 * t, lambda t: 1 + 0.01 * t, lambda t: 1.0, num_steps=2)
    assert session.trace.heatmap("threshold").of("joint.2")[1] == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@quiet
def test_a_distance_that_is_not_finite_never_means_reuse(bad):
    policy = DBPrune(threshold=100.0, dynamic=True, **OPTIONS)
    session, _, _ = run(policy, lambda t: bad if t == 2 else 1.0, lambda t: 1.0)
    assert session.trace.decisions("joint.1") == "CRCCRR"


def test_each_branch_decides_alone():
    model = SmoothDiT(num_blocks=2)
    x = torch.randn(1, 6, 8)
    with torch.no_grad(), toy_session(model, DBPrune(**OPTIONS), 5) as session:
        for step in range(5):
            for branch, scale in (("cond", 1.0), ("uncond", 1.0 + step)):
                with session.branch(branch):
                    model(x * scale, torch.zeros(1) + step)
    assert session.trace.decisions("joint.1", "cond") == "CRRRR"
    assert session.trace.decisions("joint.1", "uncond") == "CCCCC"


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model, policy = SmoothDiT(num_blocks=3), DBPrune(threshold=0.2, dynamic=True, first_blocks=0, warmup=2)
    alone = []
    videos = ((8, 1), (5, 2), (8, 3))
    for num_steps, seed in videos:
        with toy_session(model, policy, 8):
            alone.append(run_smooth(model, num_steps, seed=seed))
    with toy_session(model, policy, 8):
        for (num_steps, seed), expected in zip(videos, alone):
            assert all(torch.equal(a, b) for a, b in zip(run_smooth(model, num_steps, seed=seed), expected))


def test_a_model_with_too_few_blocks_is_refused():
    with pytest.raises(ValueError, match="leave none of the model's 3 blocks to reuse"):
        run(DBPrune(), *[lambda t: 1.0] * 3)


@pytest.mark.parametrize("block", [3, -1])
def test_a_named_block_that_the_model_has_not_is_refused(block):
    policy = DBPrune(**{**OPTIONS, "never_blocks": [1, block]})
    with pytest.raises(ValueError, match=rf"never_blocks=\[1, {block}\]: this model has blocks 0 to 2, no \[{block}\]"):
        run(policy, *[lambda t: 1.0] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_reused": 2.5}, "dbprune: max_reused=2.5 must be a whole number or none"),
        ({"dynamic": 1}, "dbprune: dynamic=1 must be True or False"),
        ({"threshold": -0.1}, "threshold=-0.1 must be a finite number >= 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"first_blocks": -1}, "first_blocks=-1 must be a number of blocks"),
        ({"last_blocks": 1.5}, "last_blocks=1.5 must be a number of blocks"),
        ({"max_reused": -1}, "max_reused=-1 must be >= 0"),
        ({"relax": 0.0}, "relax=0.0 must be > 0"),
        ({"max_threshold": 0.05}, "max_threshold=0.05 must be finite and at least threshold=0.08"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        DBPrune(**options)
