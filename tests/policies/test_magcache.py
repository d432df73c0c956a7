"""MagCache's plan worked out by hand, and its table measured on residuals given as numbers."""

import json
import math

import pytest
import torch
from toys import SmoothDiT, run_scripted, run_smooth, toy_session

from fsframework.core import Artifact, ReuseWarning, Run
from fsframework.core.calibration import CHECKED
from fsframework.policies.magcache import MagCache, nearest
from fsframework.policies.smoothcache import SmoothCache

quiet = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


def plan(policy, num_steps=10, branch="joint", **facts):
    run = Run(num_steps, list(range(num_steps)), [], branch, facts=facts)
    return "".join("C" if computed else "R" for computed in policy.schedule(run))


def artifact(tmp_path, ratios, **facts):
    path = tmp_path / "magcache.json"
    Artifact("magcache", {"ratios": ratios}, facts).save(path)
    return str(path)


def test_the_error_of_the_accumulated_ratio_sums_up_to_the_threshold():
    # a = 0.9, 0.81: e = 0.1, 0.29; then a fresh start.
    options = dict(ratios=[0.9], retention=0.2, max_consecutive=9)
    assert plan(MagCache(threshold=0.29 + 1e-9, **options)) == "CCRRCRRCRR"
    assert plan(MagCache(threshold=0.2, **options)) == "CCRCRCRCRC"
    assert plan(MagCache(threshold=0.0, **options)) == "CCCCCCCCCC"


def test_ratios_above_and_below_one_cancel_in_the_ratio_but_not_in_the_error():
    # a = 1.25, 1, 1.25, 1: e = 0.25, 0.25, 0.5, 0.5.
    ratios = [1.0, 1.25, 0.8, 1.25, 0.8, 1.25]
    options = dict(ratios=ratios, retention=0.0, max_consecutive=9)
    assert plan(MagCache(threshold=0.3, **options), 6) == "CRRCRR"  # steps 4, 5: 0.8, 1: 0.2, 0.2
    assert plan(MagCache(threshold=0.51, **options), 6) == "CRRRRC"


def test_no_more_than_max_consecutive_in_a_row():
    options = dict(ratios=[1.0], retention=0.2, threshold=0.1)
    assert plan(MagCache(max_consecutive=3, **options)) == "CCRRRCRRRC"
    assert plan(MagCache(max_consecutive=0, **options)) == "C" * 10


def test_the_retained_steps_are_a_floored_share_and_at_least_the_first():
    options = dict(ratios=[1.0], threshold=0.1, max_consecutive=99)
    assert plan(MagCache(retention=0.29, **options)) == "CCRRRRRRRR"
    assert plan(MagCache(retention=0.0, **options)) == "CRRRRRRRRR"
    assert plan(MagCache(retention=1.0, **options)) == "C" * 10


def test_the_table_enters_from_the_first_step_after_the_retained_ones_only():
    ratios = [1.0, 0.2, 0.99, 0.99, 0.99]
    assert plan(MagCache(ratios=ratios, threshold=0.07, retention=0.4, max_consecutive=9), 5) == "CCRRR"


def test_published_settings_are_taken_by_model():
    options = dict(ratios=[0.98])  # e = 0.02, 0.0596, 0.1184, 0.1960, 0.2921
    assert plan(MagCache(**options)) == "CCRRCRRCRR"  # 0.06
    assert plan(MagCache(**options), family="opensora") == "CCRRRCRRRC"  # 0.12, 3
    assert plan(MagCache(**options), family="wan", checkpoint="wan2.1-t2v-14b") == "CCRRRRCRRR"  # 0.24
    assert plan(MagCache(**options), family="flux", checkpoint="flux-dev") == "CRRRRCRRRR"  # 0.1 retained
    assert plan(MagCache(threshold=0.03, **options), checkpoint="flux-dev") == "CRCRCRCRCR"
    assert plan(MagCache(**options), family="hunyuan-video", checkpoint="hunyuan-video") == "CCRRRRCRRR"


@pytest.mark.parametrize(
    ("family", "checkpoint"),
    [("wan", "wan2.2-ti2v-5b"), ("flux", "flux-kontext-dev"), ("hunyuan-video", "hunyuan-video-i2v")],
)
def test_another_checkpoint_of_a_family_does_not_have_the_published_settings(family, checkpoint):
    assert plan(MagCache(ratios=[0.98]), family=family, checkpoint=checkpoint) == "CCRRCRRCRR"  # 0.06


@pytest.mark.parametrize(
    ("table", "num_steps", "expected"),
    [
        ([1, 2, 3], 3, [1, 2, 3]),
        ([1, 2, 3, 4], 7, [1, 2, 2, 3, 3, 3, 4]),  # 0, 0.5, 1, 1.5, ..., 3; halves go to the even index, as released
        ([5, 1, 1, 1], 8, [5, 1, 1, 1, 1, 1, 1, 1]),  # the first entry is no measured ratio and is for step 0 alone
        ([1, 2, 3, 4, 5], 3, [1, 3, 5]),
        ([1, 2, 3], 1, [1]),
        ([7], 4, [7, 7, 7, 7]),
    ],
)
def test_nearest_interpolation(table, num_steps, expected):
    assert nearest(table, num_steps) == expected


def test_a_reuse_adds_the_old_residual_to_the_live_input_and_reads_nothing():
    policy = MagCache(ratios=[1.0], threshold=0.1, max_consecutive=1, retention=0.0)
    session, model, out = run_scripted(policy, lambda block, t: 5.0 + t, num_steps=4, num_blocks=2)
    assert session.trace.decisions("trunk") == "CRCR"
    assert out == [5.0, 5.0, 7.0, 7.0]
    assert [block.num_runs for block in model.transformer_blocks] == [2, 2]
    assert session.meter.num_reads == 0
    assert session.cache.peak_bytes == 4 * 2 * 4
    smooth = SmoothDiT(num_blocks=2)
    with toy_session(smooth, policy, 2):
        outputs = run_smooth(smooth, 2)
    inputs = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(outputs[1], 1.1 * inputs + (outputs[0] - inputs))


def test_a_table_of_another_length_is_used_with_a_warning():
    policy = MagCache(ratios=[1.0, 1.0, 0.5], threshold=0.1, retention=0.0)
    with pytest.warns(ReuseWarning, match="a table of 3 steps; this run has 5"):
        session, _, _ = run_scripted(policy, lambda block, t: 1.0, num_steps=5)
    assert session.trace.decisions("trunk") == "CRRCC"


def test_without_a_table_the_error_says_how_to_get_one():
    with pytest.raises(ValueError, match="Measure it with `fsf calibrate magcache MODEL sampling.num_steps=4`"):
        run_scripted(MagCache(), lambda block, t: 1.0, num_steps=4)


def test_an_artifact_holds_a_table_per_branch(tmp_path):
    path = artifact(tmp_path, {"cond": [1.0] * 5, "uncond": [0.5] * 5})
    policy = MagCache(artifact=path, threshold=0.1, retention=0.0)
    assert plan(policy, 5, "cond") == "CRRRC"
    assert plan(policy, 5, "uncond") == "CCCCC"
    assert plan(policy, 5, "joint") == "CCCCC"  # the mean, 0.75
    assert plan(MagCache(artifact=artifact(tmp_path, {"joint": [1.0] * 5}), threshold=0.1), 5, "cond") == "CRRRC"


def test_an_artifact_of_another_model_is_refused_and_of_another_number_of_steps_carried_over(tmp_path):
    path = artifact(tmp_path, {"joint": [1.0, 1.0, 0.5]}, family="latte", num_steps=3)
    policy = MagCache(artifact=path, threshold=0.1, retention=0.0)
    with pytest.warns(ReuseWarning, match="num_steps was 3, is 5"):
        session, _, _ = run_scripted(policy, lambda block, t: 1.0, num_steps=5, facts={"family": "latte"})
    assert session.trace.decisions("trunk") == "CRRCC"
    with pytest.raises(ValueError, match="family was latte, is wan"):
        run_scripted(policy, lambda block, t: 1.0, num_steps=3, facts={"family": "wan"})


def test_an_artifact_without_ratios_is_refused(tmp_path):
    path = tmp_path / "magcache.json"
    Artifact("magcache", {}, {}).save(path)
    with pytest.raises(ValueError, match="holds no 'ratios'"):
        run_scripted(MagCache(artifact=str(path)), lambda block, t: 1.0, num_steps=3)


def calibrate(policy, scripts, num_steps=5):
    calibration, records = policy.calibration(), []
    for script in scripts:
        session, _, _ = run_scripted(calibration.rollouts(None)["full"], script, num_steps, num_blocks=2)
        record = calibration.record("full", session.trace, torch.zeros(1), torch.zeros(1))
        records.append(json.loads(json.dumps(record)))
    run = next(iter(session._last.runs.values()))
    return calibration.fit({"full": records}, run), records


def test_calibration_measures_the_ratio_of_the_residuals_norms_per_step():
    residuals = [4.0, 2.0, 3.0, 3.0, 1.5]
    fit, records = calibrate(MagCache(threshold=0.3, retention=0.0), [lambda block, t: residuals[int(t)]])
    assert records[0]["ratios"]["joint"] == pytest.approx([0.5, 1.5, 1.0, 0.5])
    assert records[0]["spread"]["joint"] == pytest.approx([0.0] * 4, abs=1e-6)
    assert fit.values["ratios"]["joint"] == pytest.approx([1.0, 0.5, 1.5, 1.0, 0.5])
    # Planned: 0.5 and 0.5 are too much at steps 1 and 2; step 3 is reused; a = 0.5 at step 4 is too much.
    assert fit.numbers["share of recomputed steps, both branches"] == 4 / 5
    assert fit.curves[0].x == [1, 2, 3, 4]


def test_calibration_averages_over_videos_and_says_how_far_they_are_apart():
    fit, _ = calibrate(MagCache(), [lambda block, t: 1.0 + t, lambda block, t: 1.0])
    assert fit.values["ratios"]["joint"] == pytest.approx([1.0, 1.5, 1.25, (1 + 4 / 3) / 2, 1.125])
    assert fit.numbers["largest difference between videos, both branches"] == pytest.approx(1.0)
    assert [curve.is_line for curve in fit.curves] == [True, False]


def test_the_ratio_is_a_mean_over_tokens_and_its_spread_is_known():
    class Halves(torch.nn.Module):
        """Adds 1 to every token at step 0; at step 1, 1 to the first half and 3 to the second."""

        def __init__(self):
            super().__init__()
            self.attn1, self.ff = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, hidden_states, timestep):
            more = torch.ones_like(hidden_states)
            more[:, more.shape[1] // 2 :] += 2 * timestep
            return hidden_states + more

    model = SmoothDiT(num_blocks=1)
    model.transformer_blocks[0] = Halves()
    calibration = MagCache().calibration()
    with toy_session(model, calibration.rollouts(None)["full"], 2) as session:
        run_smooth(model, 2)
    record = calibration.record("full", session.trace, torch.zeros(1), torch.zeros(1))
    assert record["ratios"]["joint"] == pytest.approx([2.0], rel=1e-4)
    assert record["spread"]["joint"] == pytest.approx([1.0], rel=1e-4)


@quiet
def test_calibration_refuses_ratios_that_are_not_finite():
    with pytest.raises(ValueError, match="ratio of branch 'joint' is nan at step 2 of video 1.*so at 2 of 4 steps"):
        calibrate(MagCache(), [lambda block, t: 1.0, lambda block, t: math.nan if t == 2 else 1.0])
    with pytest.raises(ValueError, match="is nan at step 1 of video 0.*so at 4 of 4 steps.*add together was 0"):
        calibrate(MagCache(), [lambda block, t: 0.0])
    with pytest.raises(ValueError, match="at least 2 steps"):
        calibrate(MagCache(), [lambda block, t: 1.0], num_steps=1)


def test_one_clip_of_a_residual_that_stands_still_has_ratios_of_one():
    fit, _ = calibrate(MagCache(), [lambda block, t: 2.0])
    assert fit.values["ratios"] == {"joint": [1.0] * 5}
    assert not any("between videos" in name for name in fit.numbers)


def test_records_of_other_lengths_are_refused():
    records = [{"ratios": {"joint": [1.0] * n}, "spread": {"joint": [0.0] * n}} for n in (4, 3)]
    with pytest.raises(ValueError, match="video 1 has 3 ratios of branch 'joint', not one for each of the 5 steps"):
        MagCache().calibration().fit({"full": records}, Run(5, range(5), []))


def test_what_calibration_fits_is_what_the_policy_reads(tmp_path):
    residuals = [4.0, 2.0, 3.0, 3.0, 1.5]
    fit, _ = calibrate(MagCache(), [lambda block, t: residuals[int(t)]])
    path = tmp_path / "a.json"
    Artifact("magcache", fit.values, {"num_steps": 5}).save(path)
    assert "num_steps" in CHECKED
    policy = MagCache(artifact=str(path), threshold=0.3, retention=0.0)
    session, _, _ = run_scripted(policy, lambda block, t: 1.0, num_steps=5)
    assert session.trace.decisions("trunk") == "CCCRC"


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model, policy, alone = SmoothDiT(num_blocks=3), MagCache(ratios=[0.98]), []
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
        ({"max_consecutive": -1}, "max_consecutive=-1 must be >= 0"),
        ({"retention": 1.5}, "retention=1.5 is a fraction"),
        ({"ratios": []}, r"ratios=\[\] must be finite numbers > 0"),
        ({"ratios": [1.0, math.nan]}, "must be finite numbers > 0"),
        ({"ratios": [1.0], "artifact": "a.json"}, "either ratios or an artifact"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        MagCache(**options)


@pytest.mark.parametrize("policy", [MagCache(), SmoothCache()])
def test_a_calibration_of_one_step_is_refused_beforehand(policy):
    with pytest.raises(ValueError, match="a run of one step has no"):
        policy.calibration().check(Run(1, [1.0], []), 8)
    policy.calibration().check(Run(2, [1.0, 0.0], []), 1)
