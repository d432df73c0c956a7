"""First-Block-Cache on blocks whose outputs, and so whose residuals, are given as numbers."""

import math

import pytest
import torch
from toys import SmoothDiT, run_scripted, run_smooth, toy_session

from fsframework.policies.first_block_cache import FirstBlockCache

REST = "span.1-3"


def run(policy, first, last=lambda t: 10 * t, num_steps=6, num_blocks=3):
    """Block 0 outputs `first(t)` (the input is 0, so that is its residual), the last block `last(t)`."""

    def script(block, t):
        return first(t) if block == 0 else last(t)

    return run_scripted(policy, script, num_steps=num_steps, num_blocks=num_blocks)


def test_the_rest_is_reused_while_the_first_blocks_residual_stays_within_the_threshold_of_the_last_computed_step():
    first = [1.0, 1.04, 1.08, 1.12, 1.12, 2.0]
    session, model, _ = run(FirstBlockCache(threshold=0.1), lambda t: first[int(t)])
    # Against step 0: 0.04, 0.08, 0.12 (computed); then 0 against step 3, and 0.88 / 1.12.
    assert session.trace.decisions(REST) == "CRRCRC"
    assert session.trace.decisions("span.0-1") == "CCCCCC"
    distances = [d for s, d in zip(session.trace.column("site"), session.trace.column("distance")) if s == "span.0-1"]
    assert distances[1:] == pytest.approx([0.04, 0.08, 0.12, 0.0, 0.88 / 1.12], abs=1e-6)
    assert [block.num_runs for block in model.transformer_blocks] == [6, 3, 3]


def test_a_reuse_adds_the_old_change_of_the_rest_to_the_live_first_block():
    first = [1.0, 1.04, 1.08, 1.12, 1.12, 2.0]
    _, _, out = run(FirstBlockCache(threshold=0.1), lambda t: first[int(t)], last=lambda t: 7.0 + t)
    # Step 0: 7, a change of 6 after the first block; steps 1, 2: 1.04 + 6, 1.08 + 6; step 3: 10, a change of 8.88.
    assert out == pytest.approx([7.0, 7.04, 7.08, 10.0, 1.12 + 8.88, 12.0])


def test_a_threshold_of_zero_never_reuses_even_what_does_not_change():
    with pytest.warns(UserWarning, match="reused nothing"):
        session, _, _ = run(FirstBlockCache(threshold=0.0), lambda t: 1.0)
    assert session.trace.decisions(REST) == "CCCCCC"


def test_a_residual_of_zero_that_stays_zero_is_no_change():
    session, _, _ = run(FirstBlockCache(), lambda t: 0.0)
    assert session.trace.decisions(REST) == "CRRRRR"


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_a_residual_that_was_zero_and_is_no_longer_is_recomputed():
    session, _, _ = run(FirstBlockCache(), lambda t: float(t >= 2))
    assert session.trace.decisions(REST) == "CRCRRR"


def test_the_warmup_is_computed_without_a_host_read():
    session, _, _ = run(FirstBlockCache(warmup=3), lambda t: 1.0)
    assert session.trace.decisions(REST) == "CCCRRR"
    assert session.meter.num_reads == 3


@pytest.mark.parametrize(("limit", "expected"), [(0, "CCCCCC"), (1, "CRCRCR"), (2, "CRRCRR")])
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_max_consecutive_ends_a_row_of_reuses(limit, expected):
    session, _, _ = run(FirstBlockCache(max_consecutive=limit), lambda t: 1.0)
    assert session.trace.decisions(REST) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_a_distance_that_is_not_finite_never_means_reuse(bad):
    session, _, _ = run(FirstBlockCache(threshold=100.0), lambda t: bad if t == 2 else 1.0)
    assert session.trace.decisions(REST) == "CRCCRR"  # step 2 is stored; step 3, compared with it, is computed too


def test_each_branch_decides_alone():
    model = SmoothDiT(num_blocks=3)
    x = torch.randn(1, 6, 8)
    with torch.no_grad(), toy_session(model, FirstBlockCache(), 5) as session:
        for step in range(5):
            for branch, scale in (("cond", 1.0), ("uncond", 1.0 + step)):
                with session.branch(branch):
                    model(x * scale, torch.zeros(1) + step)
    assert session.trace.decisions(REST, "cond") == "CRRRR"
    assert session.trace.decisions(REST, "uncond") == "CCCCC"


def test_the_cache_holds_two_residuals():
    session, _, _ = run(FirstBlockCache(), lambda t: 1.0)
    assert session.cache.peak_bytes == 2 * (4 * 2 * 4)


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model, policy = SmoothDiT(num_blocks=3), FirstBlockCache(threshold=0.2)
    alone = []
    videos = ((8, 1), (5, 2), (8, 3))
    for num_steps, seed in videos:
        with toy_session(model, policy, 8):
            alone.append(run_smooth(model, num_steps, seed=seed))
    with toy_session(model, policy, 8):
        for (num_steps, seed), expected in zip(videos, alone):
            assert all(torch.equal(a, b) for a, b in zip(run_smooth(model, num_steps, seed=seed), expected))


def test_a_model_of_one_block_is_refused():
    with pytest.raises(ValueError, match="at least 2 blocks"):
        run(FirstBlockCache(), lambda t: 1.0, num_blocks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1 must be a finite number >= 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": math.inf}, "threshold=inf"),
        ({"max_consecutive": -1}, "max_consecutive=-1 must be >= 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        FirstBlockCache(**options)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="longer than the run of 6 steps"):
        run(FirstBlockCache(warmup=7), lambda t: 1.0)
