"""DBCache on blocks whose outputs, and so whose residuals, are given as numbers."""

import math

import pytest
import torch
from toys import ScriptedDiT, SmoothDiT, run_scripted, run_smooth, toy_session

from fsframework.policies.dbcache import DBCache

quiet = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
F2B1 = dict(first_blocks=2, last_blocks=1, warmup=1)
"""Of 5 blocks: two looked at, two in the middle, one always run."""


def run(policy, first=lambda t: 1.0, middle=lambda t: 10.0, num_steps=6):
    """Blocks 0, 1 output `first(t)`, blocks 2, 3 `middle(t)`; block 4 passes on what it is given, plus 0.5."""

    class Plus(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.num_runs = 0
            self.attn1, self.ff = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, hidden_states, timestep):
            self.num_runs += 1
            return hidden_states + 0.5

    model = ScriptedDiT(4, lambda block, t: first(t) if block < 2 else middle(t))
    model.transformer_blocks.append(Plus())
    out = []
    with torch.no_grad(), toy_session(model, policy, num_steps) as session:
        for step in range(num_steps):
            out.append(float(model(torch.zeros(1, 4, 2), torch.tensor([float(step)]))[0].mean()))
    return session, model, out


def middle_of(session):
    return session.trace.decisions("span.2-4")


def test_the_middle_is_reused_while_the_first_blocks_hardly_change_and_the_last_always_run():
    first = [1.0, 1.04, 1.08, 1.12, 1.12, 2.0]
    session, model, out = run(DBCache(threshold=0.1, **F2B1), lambda t: first[int(t)], lambda t: 7.0 + t)
    # Against step 0: 0.04, 0.08, 0.12 (computed); then 0 against step 3, and 0.88 / 1.12.
    assert middle_of(session) == "CRRCRC"
    assert [block.num_runs for block in model.transformer_blocks] == [6, 6, 3, 3, 6]
    # The middle's change at step 0 is 7 - 1 = 6, at step 3 it is 10 - 1.12; the last block adds 0.5 to all.
    assert out == pytest.approx([7.5, 1.04 + 6.5, 1.08 + 6.5, 10.5, 1.12 + 8.88 + 0.5, 12.5])


@quiet
def test_what_is_looked_at_is_what_the_first_blocks_add_together():
    def script(block, t):
        return 1.0 + t if block == 0 else 5.0  # block 0 changes; blocks 0 and 1 together do not

    session, _, _ = run_scripted(DBCache(first_blocks=2, warmup=1), script, num_steps=4, num_blocks=4)
    assert session.trace.decisions("span.2-4") == "CRRR"
    session, _, _ = run_scripted(DBCache(first_blocks=1, warmup=1), script, num_steps=4, num_blocks=4)
    assert session.trace.decisions("span.1-4") == "CCCC"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "CRRRRRRR"),
        ({"warmup": 3}, "CCCRRRRR"),
        ({"warmup": 0.5}, "CCCCRRRR"),
        ({"max_reused": 3}, "CRRRCCCC"),
        ({"max_reused": 0}, "CCCCCCCC"),
        ({"max_consecutive": 2}, "CRRCRRCR"),
        ({"max_reused": 3, "max_consecutive": 2}, "CRRCRCCC"),
        ({"steps_mask": [1, 0, 1, 0, 0, 1, 1, 0]}, "CRCRRCCR"),
        ({"steps_mask": [1, 0, 1, 0, 0, 1, 1, 0], "warmup": 2}, "CCCRRCCR"),
    ],
)
@quiet
def test_the_limits_hold_where_nothing_changes(options, expected):
    session, _, _ = run(DBCache(**{**F2B1, **options}), num_steps=8)
    assert middle_of(session) == expected


def test_no_more_reuse_once_the_distances_measured_sum_to_max_accumulated():
    # Distances to step 0: 0.01, 0.02, 0.03, 0.04, ...; before step 4 they sum to 0.06 < 0.1, before step 5 to 0.1.
    policy = DBCache(threshold=1.0, max_accumulated=0.095, **F2B1)
    session, _, _ = run(policy, lambda t: 1 + 0.01 * t, num_steps=8)
    assert middle_of(session) == "CRRRRCCC"
    assert session.meter.num_reads == 4


def test_a_static_mask_reuses_without_a_test_and_says_so_beforehand():
    policy = DBCache(steps_mask=[1, 0, 0, 1, 0, 0], mask_decides="static", max_consecutive=1, **F2B1)
    session, _, _ = run(policy, lambda t: 2.0**t)
    assert middle_of(session) == "CRRCRR"
    assert session.meter.num_reads == 0
    assert policy.schedule(next(iter(session._last.runs.values()))) == [True, False, False, True, False, False]


def test_a_dynamic_mask_still_tests():
    session, _, _ = run(DBCache(steps_mask=[1, 0, 0, 1, 0, 0], **F2B1), lambda t: 1.0 if t < 2 else 2.0)
    assert middle_of(session) == "CRCCRR"
    assert session.meter.num_reads == 4


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="steps_mask has 5 entries; this run has 6 steps"):
        run(DBCache(steps_mask=[1, 0, 0, 1, 0], **F2B1))


def test_taylorseer_extrapolates_the_middles_residual_over_the_computed_steps():
    # The middle's change is 7 + t - 1: 6 and 7 at the computed steps 0 and 1, so 8 and 9 at steps 2 and 3; exact for a line.
    options = {**F2B1, "warmup": 2, "calibrator": "taylorseer"}
    session, _, out = run(DBCache(**options), middle=lambda t: 7.0 + t, num_steps=4)
    assert middle_of(session) == "CCFF"
    assert out == pytest.approx([7.5, 8.5, 9.5, 10.5])
    _, _, copied = run(DBCache(**{**options, "calibrator": "none"}), middle=lambda t: 7.0 + t, num_steps=4)
    assert copied == pytest.approx([7.5, 8.5, 8.5, 8.5])


def test_a_parabola_needs_order_two_and_three_computed_steps():
    options = {**F2B1, "warmup": 3, "calibrator": "taylorseer", "order": 2}
    session, _, out = run(DBCache(**options), middle=lambda t: 7.0 + t * t, num_steps=5)
    assert middle_of(session) == "CCCFF"
    assert out[3:] == pytest.approx([16.5, 23.5])
    assert session.cache.peak_bytes == (1 + 3) * (4 * 2 * 4)  # the first blocks' residual, and three of the middle's


def test_a_forecast_of_one_computed_step_is_a_copy():
    _, _, out = run(DBCache(calibrator="taylorseer", **F2B1), middle=lambda t: 7.0 + t, num_steps=3)
    assert out == pytest.approx([7.5, 7.5, 7.5])


def branches(policy, num_steps=5, order=("cond", "uncond")):
    """The cond branch stands still, the uncond branch grows."""
    model = SmoothDiT(num_blocks=3)
    x = torch.randn(1, 6, 8)
    with torch.no_grad(), toy_session(model, policy, num_steps) as session:
        for step in range(num_steps):
            for branch in order:
                with session.branch(branch):
                    model(x * (1.0 if branch == "cond" else 1.0 + step), torch.zeros(1) + step)
    names = ("span.1-3", "cond"), ("span.1-3", "uncond")
    return [session.trace.decisions(*name) for name in names], session.meter.num_reads


def test_each_branch_decides_alone_or_follows_cond_without_a_host_read():
    assert branches(DBCache(first_blocks=1, warmup=1)) == (["CRRRR", "CCCCC"], 8)
    assert branches(DBCache(first_blocks=1, warmup=1, decides_on="cond")) == (["CRRRR", "CRRRR"], 4)


def test_a_branch_that_runs_before_cond_can_not_follow_it_and_decides_itself():
    policy = DBCache(first_blocks=1, warmup=1, decides_on="cond")
    assert branches(policy, order=("uncond", "cond")) == (["CRRRR", "CCCCC"], 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@quiet
def test_a_distance_that_is_not_finite_never_means_reuse(bad):
    policy = DBCache(threshold=100.0, max_accumulated=1.0, **F2B1)
    session, _, _ = run(policy, lambda t: bad if t == 2 else 1.0)
    assert middle_of(session) == "CRCCRR"


def test_a_threshold_of_zero_never_reuses():
    with pytest.warns(UserWarning, match="reused nothing"):
        session, _, _ = run(DBCache(threshold=0.0, **F2B1))
    assert middle_of(session) == "CCCCCC"


def test_blocks_may_be_given_as_fractions_of_the_depth():
    policy = DBCache(first_blocks=0.25, last_blocks=0.1)
    assert list(policy.spans(28)) == [(0, 7), (7, 25)]  # 2.8 is 3
    assert list(policy.spans(4)) == [(0, 1), (1, 4)]  # 0.4 is 0
    assert list(DBCache(first_blocks=0.01).spans(10)) == [(0, 1), (1, 10)]
    assert list(DBCache().spans(28)) == [(0, 8), (8, 28)]


def test_a_model_with_too_few_blocks_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"8 \+ 0 blocks that always run, but the model has 5.*at most 4"):
        run(DBCache())


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model = SmoothDiT(num_blocks=4)
    policy = DBCache(threshold=0.2, first_blocks=1, warmup=2, calibrator="taylorseer", max_reused=3)
    alone = []
    videos = ((8, 1), (5, 2), (8, 3))
    for num_steps, seed in videos:
        with toy_session(model, policy, 8):
            alone.append(run_smooth(model, num_steps, seed=seed))
    with toy_session(model, policy, 8):
        for (num_steps, seed), expected in zip(videos, alone):
            assert all(torch.equal(a, b) for a, b in zip(run_smooth(model, num_steps, seed=seed), expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1 must be a finite number >= 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"first_blocks": -1}, "first_blocks=-1 must be a number of blocks"),
        ({"last_blocks": 1.5}, "last_blocks=1.5 must be a number of blocks"),
        ({"max_reused": -1}, "max_reused=-1 must be >= 0"),
        ({"max_consecutive": -1}, "max_consecutive=-1 must be >= 0"),
        ({"max_accumulated": -1.0}, "max_accumulated=-1.0 must be >= 0"),
        ({"steps_mask": [1, 2]}, r"steps_mask=\[1, 2\] must be a list of 1"),
        ({"mask_decides": "fixed"}, "mask_decides='fixed' must be one of dynamic, static"),
        ({"decides_on": "uncond"}, "decides_on='uncond' must be one of each, cond"),
        ({"calibrator": "taylor"}, "calibrator='taylor' must be one of none, taylorseer"),
        ({"order": 0}, "order=0 must be at least 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        DBCache(**options)
