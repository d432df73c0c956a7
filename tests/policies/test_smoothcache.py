"""SmoothCache: errors, greedy scan and interpolation worked out by hand."""

import math
import warnings

import pytest
import torch
from torch import nn
from toys import SmoothDiT, letters, run_smooth, toy_session

from fsframework.core import REUSE, Artifact, Kind, Part, ReuseWarning, Run, Site
from fsframework.policies.smoothcache import SmoothCache, greedy, interpolated

ATTENTION, MLP = Site(Part.ATTENTION, Kind.JOINT, 0, 1), Site(Part.MLP, Kind.JOINT, 0, 1)


def drifting(num_steps, slope, max_lag=3):
    """Errors that grow by `slope` a step of lag."""
    return [[slope * k] * (num_steps - k) for k in range(1, max_lag + 1)]


def text(steps):
    """Of which steps compute, or of the decisions."""
    return "".join("R" if step is REUSE or step is False else "C" for step in steps)


def artifact(path, errors, num_steps, timesteps=None, **facts):
    timesteps = list(range(num_steps)) if timesteps is None else timesteps
    Artifact("smoothcache", {"errors": errors, "timesteps": timesteps}, {"num_steps": num_steps, **facts}).save(path)
    return str(path)


def both(num_steps, attention, mlp):
    return {"joint.attention": drifting(num_steps, attention), "joint.mlp": drifting(num_steps, mlp)}


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.05, "CCCCCCCCCC"), (0.1, "CRCRCRCRCC"), (0.25, "CRRCRRCRRC"), (0.31, "CRRRCRRRCC"), (9.0, "CRRRCRRRCC")],
)
def test_the_longest_lag_within_alpha_is_reused_and_the_last_step_is_computed(alpha, expected):
    """Errors 0.1, 0.2, 0.3 at lags 1, 2, 3."""
    assert text(greedy(drifting(10, 0.1), alpha, 10)) == expected


def test_errors_are_read_at_the_computed_step_and_a_longer_lag_may_be_within_alpha_where_a_shorter_is_not():
    errors = [[0.9, 0.9, 0.1, 0.9, 0.1, 0.9], [0.9, 0.2, 0.9, 0.9, 0.2]]
    # 0: none. 1: lag 2 only, so 2 and 3 are reused. 4: lag 1. 6 is the last.
    assert text(greedy(errors, 0.2, 7)) == "CCRRCRC"


def test_an_error_that_is_not_finite_is_never_within_alpha():
    assert text(greedy([[math.nan, math.inf, 0.0]], 1e9, 4)) == "CCCC"
    assert text(greedy([[math.nan, 0.0, 0.0]], 1e9, 4)) == "CCRC"


def test_kinds_follow_schedules_of_their_own_and_blocks_of_a_kind_the_same(tmp_path):
    path = artifact(tmp_path / "a.json", both(8, 0.1, 0.2), 8)
    model = SmoothDiT(num_blocks=2)
    with toy_session(model, SmoothCache(alpha=0.2, artifact=path), 8) as session:
        run_smooth(model, 8)
    assert letters(session) == {
        "joint.0.attention": "CRRCRRCC", "joint.0.mlp": "CRCRCRCC",
        "joint.1.attention": "CRRCRRCC", "joint.1.mlp": "CRCRCRCC",
    }  # fmt: skip
    policy, run = SmoothCache(alpha=0.2, artifact=path), next(iter(session._last.runs.values()))
    assert text(policy.schedule(run)) == "CRRRRRCC"
    assert session.meter.num_reads == 0


def test_only_kinds_that_are_reused_are_cached(tmp_path):
    path = artifact(tmp_path / "a.json", both(8, 0.1, 0.9), 8)
    policy, model = SmoothCache(alpha=0.2, artifact=path), SmoothDiT(num_blocks=3)
    with toy_session(model, policy, 8) as session:
        run_smooth(model, 8)
    assert policy.num_cached(next(iter(session._last.runs.values()))) == 3
    assert session.cache.peak_bytes == 3 * 6 * 8 * 4


def test_an_alpha_of_zero_changes_nothing(tmp_path):
    path = artifact(tmp_path / "a.json", both(8, 0.1, 0.1), 8)
    model = SmoothDiT()
    with toy_session(model, SmoothCache(alpha=0.0, artifact=path), 8):
        out = run_smooth(model, 8)
    assert all(torch.equal(a, b) for a, b in zip(out, run_smooth(model, 8)))


def test_steps_by_hand_the_more_exact_name_first():
    sites = [ATTENTION, MLP, Site(Part.MLP, Kind.TEMPORAL, 1, 2)]
    policy = SmoothCache(steps={"mlp": [2, 3, 99], "temporal.mlp": []})
    decided = policy.start(Run(6, range(6), sites)).decisions
    assert [text(decided[site]) for site in sites] == ["CCCCCC", "CRCCRC", "CRRRRC"]


def test_interpolated_to_its_own_steps_errors_stay_the_same():
    errors = [[0.1, 0.2, 0.4], [0.3, 0.5]]
    own = interpolated(errors, [30, 20, 10, 0], [30, 20, 10, 0])
    assert own[0] == pytest.approx(errors[0])
    assert own[1] == pytest.approx(errors[1])
    assert own[2] == [math.inf]


def test_twice_the_steps_have_half_the_error_at_lag_one_and_reach_twice_as_many_lags():
    coarse = [0.0, 10.0, 20.0, 30.0, 40.0]
    fine = [i * 5.0 for i in range(9)]
    errors = interpolated(drifting(5, 0.2, max_lag=2), coarse, fine)
    assert errors[0] == pytest.approx([0.1] * 8)
    assert errors[1] == pytest.approx([0.2] * 7)
    assert errors[3] == pytest.approx([0.4] * 5)
    assert errors[4] == [math.inf] * 4  # lag 5 is 2.5 measured steps, and only 2 were measured


def test_errors_between_measured_steps_are_in_between():
    errors = interpolated([[0.1, 0.3, 0.3]], [30, 20, 10, 0], [30, 25, 15, 5])
    # From 25 to 15: a lag of one measured step, from half way between those of 0.1 and 0.3.
    assert errors[0][1] == pytest.approx(0.2)
    assert errors[0][0] == pytest.approx(0.05)  # half a measured step at 0.1


def test_timesteps_beyond_the_measured_ones_still_have_an_error():
    errors = interpolated([[0.1, 0.3]], [20, 10, 0], [30, 20, 10, 0, -10])
    assert errors[0] == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_another_number_of_steps_is_carried_over_with_a_warning_and_another_model_refused(tmp_path):
    path = artifact(tmp_path / "a.json", both(5, 0.2, 0.2), 5, [800.0, 600.0, 400.0, 200.0, 0.0], family="latte")
    run = Run(9, [800.0 - 100 * i for i in range(9)], [ATTENTION, MLP], facts={"family": "latte"})
    with pytest.warns(ReuseWarning, match="num_steps was 5, is 9"):
        decided = SmoothCache(alpha=0.2, artifact=path).start(run).decisions
    assert text(decided[MLP]) == "CRRCRRCRC"  # 0.1 a step
    with pytest.raises(ValueError, match="family was latte, is wan"):
        SmoothCache(artifact=path).start(Run(5, range(5), [MLP], facts={"family": "wan"}))
    with pytest.raises(ValueError, match=r"errors of joint.attention, joint.mlp, and none of this model's spatial.mlp"):
        SmoothCache(artifact=path).start(Run(5, run.timesteps[::2], [Site(Part.MLP, Kind.SPATIAL, 0, 1)]))


def test_as_many_steps_at_other_timesteps_are_placed_by_their_timestep(tmp_path):
    # Errors of 0.05 from timesteps of 400 and less on, of 0.9 before.
    even = [1000.0 - 125 * i for i in range(8)]
    errors = [[0.05 if even[i] <= 400 else 0.9 for i in range(8 - k)] for k in (1, 2, 3)]
    path = artifact(tmp_path / "a.json", {"joint.mlp": errors}, 8, even)
    shifted = [5000 * t / (1000 + 4 * t) for t in even]  # 1000, 972, 938, 893, 833, 750, 625, 417
    policy = SmoothCache(alpha=0.1, artifact=path)
    assert text(policy.schedule(Run(8, even, [MLP]))) == "CCCCCCRC"
    assert text(policy.schedule(Run(8, [t + 0.01 for t in even], [MLP]))) == "CCCCCCRC"
    assert text(policy.schedule(Run(8, shifted, [MLP]))) == "CCCCCCCC"


def test_that_errors_are_carried_over_is_said_once_at_the_start(tmp_path):
    path = artifact(tmp_path / "a.json", both(5, 0.2, 0.2), 5)
    policy, run = SmoothCache(alpha=0.2, artifact=path), Run(9, range(9), [MLP])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        policy.start(run)
        policy.schedule(run)
        policy.num_cached(run)
    assert [w.category for w in said] == [ReuseWarning]


class Said(nn.Module):
    def __init__(self, script):
        super().__init__()
        self.script, self.now = script, 0.0

    def forward(self, hidden_states):
        return torch.full_like(hidden_states, self.script(self.now))


class SaidBlock(nn.Module):
    def __init__(self, attention, mlp):
        super().__init__()
        self.attn1, self.ff = Said(attention), Said(mlp)

    def forward(self, hidden_states, timestep):
        self.attn1.now = self.ff.now = float(timestep[0])
        return hidden_states + self.attn1(hidden_states) + self.ff(hidden_states)


class SaidDiT(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([SaidBlock(*scripts) for scripts in blocks])

    def forward(self, hidden_states, timestep, return_dict=False):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_calibration_measures_errors_relative_to_the_older_value_averages_blocks_and_serves_every_alpha(tmp_path):
    # Attention 10, 11, 12, ... in one block and still in the other; MLP doubles in both.
    model = SaidDiT((lambda t: 10 + t, lambda t: 2.0**t), (lambda t: 5.0, lambda t: 2.0**t))
    calibration = SmoothCache(max_lag=2).calibration()
    run = Run(5, range(5), [ATTENTION, MLP])
    rollouts = calibration.rollouts(run)
    assert list(rollouts) == ["full"]
    with torch.no_grad(), toy_session(model, rollouts["full"], 5) as session:
        for step in range(5):
            model(torch.zeros(1, 4, 2), torch.tensor([float(step)]))
    assert session.trace.summary()["reuse_fraction"] == 0
    record = calibration.record("full", session.trace, torch.zeros(1), torch.zeros(1))
    fit = calibration.fit({"full": [record, record]}, run)
    errors = fit.values["errors"]
    assert errors["joint.attention"][0] == pytest.approx([1 / 20, 1 / 22, 1 / 24, 1 / 26])
    assert errors["joint.attention"][1] == pytest.approx([2 / 20, 2 / 22, 2 / 24])
    assert errors["joint.mlp"][0] == pytest.approx([1.0] * 4)
    assert errors["joint.mlp"][1] == pytest.approx([3.0] * 3)
    Artifact("smoothcache", fit.values, {"num_steps": 5}).save(tmp_path / "a.json")

    def attention(alpha):
        return text(SmoothCache(alpha=alpha, artifact=str(tmp_path / "a.json")).start(run).decisions[ATTENTION])

    assert [attention(alpha) for alpha in (0.04, 0.047, 0.06, 0.101)] == ["CCCCC", "CCRCC", "CRCRC", "CRRCC"]


def fit_of(*errors):
    """Of videos with these errors of the MLP at lag 1."""
    steps = len(errors[0]) + 1
    records = [{"errors": {"joint.mlp": [list(row)]}, "timesteps": list(range(steps))} for row in errors]
    return SmoothCache(alpha=0.1).calibration().fit({"full": records}, Run(steps, range(steps), [MLP]))


def test_a_kind_that_gives_nan_is_refused_by_name_and_step():
    with pytest.raises(ValueError, match=r"smoothcache: the error of joint\.mlp between steps 2 and 3 is not a number"):
        fit_of([0.1, 0.2, 0.3], [0.1, 0.2, math.nan])


def test_one_clip_that_stands_still_and_a_value_that_was_zero_are_measured():
    assert fit_of([0.0] * 4).numbers["computed_share_of_joint.mlp"] == 3 / 5  # C R C R C
    fit = fit_of([math.inf, 0.0, 0.0, 0.0])  # was 0 at step 0, and is not at step 1
    assert fit.numbers["computed_share_of_joint.mlp"] == 4 / 5  # C C R C C


def test_without_an_artifact_it_says_how_to_make_one():
    with pytest.raises(
        ValueError, match="smoothcache needs the errors of reuse of this model.*fsf calibrate smoothcache MODEL"
    ):
        SmoothCache().start(Run(8, range(8), [MLP]))


def test_two_videos_and_another_number_of_steps_in_one_session():
    model, policy = SmoothDiT(num_blocks=2), SmoothCache(steps={"mlp": [0, 2, 4], "attention": [0, 3]})
    with toy_session(model, policy, 8) as session:
        alone = run_smooth(model, 8)
        session.new_video()
        again = run_smooth(model, 8)
    assert all(torch.equal(a, b) for a, b in zip(alone, again))
    with toy_session(model, policy, 4) as session:
        run_smooth(model, 4)
    assert letters(session, ["joint.1.attention", "joint.1.mlp"]) == {
        "joint.1.attention": "CRRC", "joint.1.mlp": "CRCC",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha=-0.1 must be >= 0"),
        ({"max_lag": 0}, "max_lag=0 must be at least 1 step"),
        ({"artifact": "a.json", "steps": {}}, "give one of them"),
        ({"steps": {"ff": [0]}}, "names 'ff', which is no kind of sub-module: attention"),
        ({"steps": {"mlp": [-1]}}, "numbers of steps from 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothCache(**options)


def test_options_from_a_config():
    from fsframework.run.resolve import build_policy

    policy = build_policy({"name": "smoothcache", "steps": {"mlp": [0, 2]}})
    assert text(policy.start(Run(4, range(4), [MLP])).decisions[MLP]) == "CRCC"
