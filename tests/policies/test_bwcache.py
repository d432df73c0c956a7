"""BWCache on blocks whose outputs, and so mean changes, are numbers worked out by hand."""

import math

import pytest
import torch
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.core import ReuseWarning
from fsframework.policies.bwcache import BWCache


def trunk(policy, script, num_steps, num_blocks=1):
    session, _, out = run_scripted(policy, script, num_steps, num_blocks)
    return session.trace.decisions("trunk"), out, session


def test_a_mean_change_below_the_threshold_reuses_the_next_steps_and_measures_again():
    # 10, 15, 16, ...: changes 0.5, then 1/15 = 0.067 at step 2, the third computed. So steps 3 and 4 are reused, and the
    # last step (3/2 rounded down) is computed. Step 5 measures 3/16 = 0.19 across three steps, step 6 again one, 1/19.
    decisions, out, session = trunk(BWCache(reuse_steps=2), lambda b, t: 14 + t if t else 10, 11)
    assert decisions == "CCCRRCCRRCC"
    # The input is 0, so old output and old residual are the same.
    assert out == [10, 15, 16, 16, 16, 19, 20, 20, 20, 23, 24]
    read = session.trace.heatmap("distance").of("joint.0")
    assert read[2] == pytest.approx(1 / 15)
    assert read[5] == pytest.approx(3 / 16)


def test_what_is_compared_is_the_mean_over_blocks():
    def script(block, t):
        return 10.0 if block else 10 * 1.2**t  # changes 0 and 0.2: mean 0.1

    assert trunk(BWCache(threshold=0.11, reuse_steps=1), script, 6, num_blocks=2)[0] == "CCRCCC"
    with pytest.warns(ReuseWarning, match="reused nothing"):
        assert trunk(BWCache(threshold=0.09, reuse_steps=1), script, 6, num_blocks=2)[0] == "CCCCCC"


def test_a_late_trigger_keeps_the_last_half_of_the_steps_before_it_for_computing():
    # Standing still from step 8: step 9 is the tenth computed one, so of 20 steps the last 5 are computed.
    decisions, _, session = trunk(BWCache(reuse_steps=2), lambda b, t: 2.0 ** min(t, 8), 20)
    assert decisions == "C" * 10 + "RRCRR" + "C" * 5
    assert session.meter.num_reads == 10  # steps 1..9 and 12; nothing is measured for the end


def test_deciding_once_goes_on_in_cycles_whatever_happens():
    def script(block, t):
        return 10.0 if t < 2 else 2.0**t

    assert trunk(BWCache(reuse_steps=2), script, 12)[0] == "CCRRCCCCCCCC"
    decisions, _, session = trunk(BWCache(reuse_steps=2, once=True), script, 12)
    assert decisions == "CCRRCRRCRRCC"
    assert session.meter.num_reads == 1


def test_the_number_of_reused_steps_is_a_tenth_of_the_run():
    def reused(num_steps):
        return trunk(BWCache(), lambda b, t: 1.0, num_steps)[0].split("C")[2]

    assert [len(reused(n)) for n in (30, 50, 4)] == [3, 5, 1]


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_change_that_is_not_finite_never_means_reuse(bad):
    decisions, _, _ = trunk(BWCache(threshold=1e9), lambda b, t: bad if t in (1, 2) else 1.0, 8)
    assert decisions == "CCCCCRCC"  # step 3 is compared with step 2; step 4 measures 0 and is the fifth: two at the end


def test_the_residual_is_added_to_the_live_input_and_the_output_is_put_in_place():
    model, x = SmoothDiT(num_blocks=2), torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    out = {}
    for storage in ("residual", "output"):
        with torch.no_grad(), toy_session(model, BWCache(threshold=9.0, reuse_steps=1, storage=storage), 4):
            for step in range(2):
                second = model(x, torch.tensor([float(step)]))[0]
            out[storage] = model(3 * x, torch.tensor([2.0]))[0]
    assert torch.equal(out["output"], second)
    assert torch.allclose(out["residual"], second + 2 * x, atol=1e-6)


def test_it_holds_every_blocks_output_and_one_of_the_trunk():
    _, _, session = trunk(BWCache(), lambda b, t: 1.0, 8, num_blocks=3)
    assert session.cache.peak_bytes == (3 + 1) * 4 * 2 * 4
    run = next(iter(session._last.runs.values()))
    assert BWCache().num_cached(run) == 4


def test_two_videos_and_another_number_of_steps_in_one_session():
    model, policy = SmoothDiT(num_blocks=2), BWCache(threshold=1.0, reuse_steps=2)
    with toy_session(model, policy, 10) as session:
        alone = run_smooth(model, 10)
        assert "R" in letters(session, ["trunk"])["trunk"]
        session.new_video()
        again = run_smooth(model, 10)
    assert all(torch.equal(a, b) for a, b in zip(alone, again))


def test_each_branch_decides_alone():
    model, x = SmoothDiT(num_blocks=1), torch.randn(1, 6, 8)
    with torch.no_grad(), toy_session(model, BWCache(threshold=0.15, reuse_steps=1), 6) as session:
        for step in range(6):
            for branch, amplitude in (("cond", 1), ("uncond", 2**step)):
                with session.branch(branch):
                    model(x * amplitude, torch.tensor([float(step)]))
    assert session.trace.decisions("trunk", "cond") == "CCRCRC"
    assert session.trace.decisions("trunk", "uncond") == "CCCCCC"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1 must be >= 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"reuse_steps": 0}, "reuse_steps=0 must be at least 1 step"),
        ({"reuse_steps": 3.0}, r"write an integer \(reuse_steps=3\)"),
        ({"storage": "outputs"}, "storage='outputs' must be one of output, residual"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        BWCache(**options)
