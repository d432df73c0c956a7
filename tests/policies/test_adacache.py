"""AdaCache on sub-modules whose outputs are numbers of the timestep, so that changes and intervals are known by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from toys import SmoothDiT, letters, run_smooth, toy_session

from fsframework.core import Artifact, Kind, ReuseWarning, Run, Site
from fsframework.core.registry import POLICIES
from fsframework.core.site import Part
from fsframework.models import Latte, OpenSora
from fsframework.policies.adacache import AdaCache, carried_over, frames_apart, interval_of

THREE = ((0.15, 3), (0.3, 2), (1.0, 1))


class Said(nn.Module):
    """Gives back a number that a script says for the timestep; counts its calls."""

    def __init__(self, script):
        super().__init__()
        self.script, self.now, self.num_runs = script, 0.0, 0

    def forward(self, hidden_states):
        self.num_runs += 1
        return torch.full_like(hidden_states, self.script(self.now))


class SaidBlock(nn.Module):
    """x + g attn(x) + g ff(x), with a gate that a script says too."""

    def __init__(self, script, gate):
        super().__init__()
        self.attn1, self.ff, self.said = Said(script), Said(lambda t: t), gate

    def gate(self, timestep):
        return torch.tensor(self.said(float(timestep[0]))).reshape(1, 1, 1)

    def forward(self, hidden_states, timestep):
        self.attn1.now = self.ff.now = float(timestep[0])
        hidden_states = hidden_states + self.gate(timestep) * self.attn1(hidden_states)
        return hidden_states + self.gate(timestep) * self.ff(hidden_states)


class SaidDiT(nn.Module):
    def __init__(self, scripts, gate=lambda t: 1.0):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([SaidBlock(script, gate) for script in scripts])

    def forward(self, hidden_states, timestep, return_dict=False):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


def run(policy, num_steps, *scripts, gate=lambda t: 1.0):
    """Decisions of the last block's MLP, the outputs, and the session."""
    model, out = SaidDiT(scripts, gate), []
    with torch.no_grad(), toy_session(model, policy, num_steps) as session:
        for step in range(num_steps):
            out.append(float(model(torch.zeros(1, 4, 2), torch.tensor([float(step)]))[0][0, 0, 0]))
    return session.trace.decisions(f"joint.{len(scripts) - 1}.mlp"), out, session


def test_the_change_per_step_sets_the_interval_and_the_last_two_steps_are_computed():
    outputs = [10, 11, 12, 13, 13.4, 13.8, 14, 14, 14, 14]
    decisions, _, session = run(AdaCache(codebook=THREE), 10, lambda t: outputs[int(t)])
    # Step 1 measures 0.1 after 10: interval 3. Step 4 measures (13.4 - 11)/11/3 = 0.073: 3. Step 7: 0.015: 3, but for the end.
    assert decisions == "CCRRCRRCCC"
    logged = session.trace.heatmap("distance", Part.ATTENTION).of("joint.0.attention")
    assert logged[1] == pytest.approx(0.1)
    assert logged[4] == pytest.approx(2.4 / 11 / 3)


def test_a_faster_change_gives_a_shorter_interval():
    assert run(AdaCache(codebook=THREE), 10, lambda t: 10 + 2 * t)[0] == "CCRCRCRRCC"  # .2 .17 .13
    with pytest.warns(ReuseWarning, match="reused nothing"):
        assert run(AdaCache(codebook=THREE), 10, lambda t: 2.0**t)[0] == "C" * 10  # 1 a step


def test_all_sub_modules_follow_the_metric_layer():
    fast, still = (lambda t: 2.0**t), (lambda t: 5.0)
    # Of two layers the fraction 0.48 is the first, 0.5 the second.
    decisions, _, session = run(AdaCache(codebook=THREE, metric_depths=(0.5,)), 8, fast, still)
    assert set(letters(session).values()) == {decisions} == {"CCRRCRCC"}
    with pytest.warns(ReuseWarning, match="reused nothing"):
        assert run(AdaCache(codebook=THREE, metric_depths=(0.48,)), 8, fast, still)[0] == "C" * 8


def test_several_metric_layers_are_averaged():
    first, second = (lambda t: 1.0 + t), (lambda t: 5.0)  # changes at step 1: 1 and 0, mean 0.5
    policy = AdaCache(codebook=((0.49, 4), (0.51, 3), (9.0, 1)), metric_depths=(0.0, 0.5))
    assert run(policy, 9, first, second)[0][:5] == "CCRRC"


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_change_that_is_not_finite_is_interval_one(bad):
    outputs = [1, bad, 1, 1, 1, 1, 1, 1]
    decisions, _, _ = run(AdaCache(codebook=((1.0, 3),)), 8, lambda t: outputs[int(t)])
    assert decisions == "CCCCRRCC"  # step 1 is bad, step 2 is compared with it, step 3 measures 0
    assert interval_of(((1.0, 3),), bad) == 1


def test_after_the_gate_the_old_gate_is_kept_and_before_it_the_new_one_is_used():
    def outputs(gate):
        return run(AdaCache(codebook=((1.0, 3),), gate=gate), 7, lambda t: 10.0, gate=lambda t: 1.0 + t)[1]

    # At step 2: attention 10 and the MLP's 1 of step 1, times the gate of step 1 (2) or of step 2 (3).
    assert outputs("post")[2] == pytest.approx(2 * 11)
    assert outputs("pre")[2] == pytest.approx(3 * 11)


def test_one_lagged_host_read_per_computed_step():
    decisions, _, session = run(AdaCache(codebook=THREE), 10, lambda t: 10.0)
    assert decisions == "CCRRCRRCCC"
    assert session.meter.num_reads == 2  # after steps 1 and 4; step 8 is computed whatever step 7 says


def test_released_codebooks_are_used_for_their_own_number_of_steps():
    def book(speed, num_steps, **facts):
        site = Site(Part.ATTENTION, Kind.TEMPORAL, 1, 2)
        return AdaCache(speed=speed).start(Run(num_steps, range(num_steps), [site], facts=facts)).codebook

    fast = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
    assert book("fast", 30) == fast == book(None, 30, family="opensora")
    assert book("slow", 30)[:3] == ((0.08, 3), (0.16, 2), (0.24, 1))
    assert book("fast", 100)[0] == (0.03, 12)
    assert book("fast", 54)[0] == (pytest.approx(0.08 * 30 / 54), 8)  # 6 * sqrt(1.8) = 8.05
    assert book("fast", 55)[0] == (pytest.approx(0.03 * 100 / 55), 9)  # 12 * sqrt(.55) = 8.9
    with pytest.raises(ValueError, match="speed was published for opensora, not for latte-1.*fsf calibrate"):
        book(None, 30, family="latte", checkpoint="latte-1")


def test_a_book_for_four_times_the_steps_has_a_quarter_of_the_bounds_and_twice_the_intervals():
    assert carried_over(((0.4, 3), (1.0, 1)), 10, 40) == ((0.1, 6), (0.25, 2))
    assert carried_over(((0.4, 3), (1.0, 1)), 40, 10) == ((1.6, 2), (4.0, 1))  # 1.5 rounds to 2; never below 1
    assert carried_over(((0.4, 3),), 10, 10) == ((0.4, 3),)


class Stub:
    """What `frames_apart` and MoReg ask of a call."""

    def __init__(self, adapter, num_samples):
        self.num_samples = num_samples
        self.bound = adapter

    def canonical(self, site, value):
        return self.bound.to_canonical(site.start, value)


@pytest.mark.parametrize("family", [Latte, OpenSora])
def test_frames_are_told_apart_in_spatial_and_temporal_attention(family):
    from toys import tiny_transformer

    bound = family().bind(tiny_transformer(family()))
    bound.num_samples = 2
    video = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4, 1)  # B F N C
    call = Stub(bound, 2)
    spatial = frames_apart(call, Site(Part.ATTENTION, Kind.SPATIAL, 0, 1), (video.flatten(0, 1),))
    temporal = frames_apart(call, Site(Part.ATTENTION, Kind.TEMPORAL, 1, 2), (video.transpose(1, 2).flatten(0, 1),))
    assert torch.equal(spatial, video)
    assert torch.equal(temporal, video)


def latte_run(policy, num_steps=10):
    """A random Latte over a short loop: the session."""
    from toys import Loop, tiny_transformer

    from fsframework.core import ReuseEngine

    loop = Loop(Latte(), tiny_transformer(Latte()))
    with ReuseEngine(Latte().bind(loop.model), policy, scheduler=lambda: loop.scheduler) as session:
        loop(num_steps=num_steps)
    return session


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_moreg_multiplies_the_change_by_a_power_of_the_motion():
    every = dict(codebook=((1.0, 1),), gate="pre")
    plain = latte_run(AdaCache(**every)).trace
    regularised = latte_run(
        AdaCache(**every, moreg=True, motion_scale=0.1, motion_power=1.0, motion_gradient=0.0)
    ).trace
    factor, change, product = regularised.logged("motion"), plain.logged("distance"), regularised.logged("distance")
    # Motion is (a - b) / (|a| + |b|) <= 1, so with scale 0.1 and power 1 the factor is at most 10.
    assert all(0 < value <= 10 for value in factor.values())
    assert sorted(regularised.step[row] for row in factor) == list(range(1, 9))  # 10 % to 90 % of ten steps
    for row, value in product.items():
        assert value == pytest.approx(change[row] * factor.get(row, 1.0), rel=1e-4)


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_the_gradient_of_the_motion_adds_to_the_factor():
    options = dict(codebook=((1.0, 1),), gate="pre", moreg=True, motion_power=1.0)
    without = latte_run(AdaCache(**options, motion_gradient=0.0)).trace.logged("motion")
    with_it = latte_run(AdaCache(**options, motion_gradient=2.0)).trace.logged("motion")
    rows = sorted(without)
    for before, row in pairwise(rows):
        expected = without[row] + 2 * abs(without[row] - without[before])
        assert with_it[row] == pytest.approx(expected, rel=1e-3)


def test_moreg_without_frames_is_an_error_that_says_where_it_works():
    with pytest.raises(ValueError, match=r"moreg needs to tell frames apart.*joint.0.attention \(1, 4, 2\).*Latte"):
        run(AdaCache(codebook=THREE, moreg=True), 6, lambda t: 1.0)


def test_a_block_without_attention_is_an_error():
    with pytest.raises(ValueError, match="self-attention, and this model's blocks have none"):
        AdaCache(codebook=THREE).start(Run(10, range(10), [Site(Part.MLP, Kind.JOINT, 0, 1)]))


def test_two_videos_and_another_number_of_steps_in_one_session():
    def once(model, steps):
        return run_smooth(model, steps)

    policy, model = AdaCache(codebook=((9.0, 2),)), SmoothDiT(num_blocks=2)
    with toy_session(model, policy, 8):
        alone = once(model, 8)
    with toy_session(model, policy, 8) as session:
        once(model, 8)
        session.new_video()
        again = once(model, 8)
    assert session.trace.decisions("joint.1.mlp") == "CCRCRCCC"
    assert all(torch.equal(a, b) for a, b in zip(alone, again))


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_calibration_finds_a_codebook_that_computes_the_target_share(tmp_path):
    outputs = [10 + t + 0.2 * t * t for t in range(20)]
    policy = AdaCache(target=0.5, gate="pre")
    calibration = policy.calibration()
    rollouts = calibration.rollouts(Run(20, range(20), []))
    assert list(rollouts) == ["full"]
    decisions, _, session = run(rollouts["full"], 20, lambda t: outputs[int(t)])
    assert decisions == "C" * 20
    record = calibration.record("full", session.trace, torch.zeros(1), torch.zeros(1))
    assert record["changes"][:2] == pytest.approx([0.12, 1.6 / 11.2])
    fit = calibration.fit({"full": [record]}, Run(20, range(20), []))
    assert fit.numbers["expected_computed_share"] == pytest.approx(0.5, abs=0.051)  # one step of twenty
    Artifact("adacache", fit.values, {"num_steps": 20}).save(tmp_path / "book.json")
    calibrated = AdaCache(artifact=str(tmp_path / "book.json"), gate="pre")
    decisions, _, _ = run(calibrated, 20, lambda t: outputs[int(t)])
    assert 0.35 <= decisions.count("C") / 20 <= 0.6
    with pytest.raises(ValueError, match="measured with gate=pre, but gate=post here"):
        run(AdaCache(artifact=str(tmp_path / "book.json")), 20, lambda t: 1.0)
    with pytest.warns(ReuseWarning, match="num_steps was 20, is 10"):
        run(calibrated, 10, lambda t: outputs[int(t)])


@pytest.mark.parametrize("target", [1.0, 0.8, 0.3])
def test_targets_from_everything_to_little(target):
    calibration = AdaCache(target=target).calibration()
    changes = [0.5 * 0.9**step for step in range(29)]
    fit = calibration.fit({"full": [{"num_steps": 30, "changes": changes}]}, Run(30, range(30), []))
    assert fit.numbers["expected_computed_share"] == pytest.approx(target, abs=0.04)


def fit_of(changes):
    n = len(changes) + 1
    return (
        AdaCache(target=0.5)
        .calibration()
        .fit({"full": [{"num_steps": n, "changes": list(changes)}]}, Run(n, range(n), []))
    )


@pytest.mark.parametrize(
    ("changes", "words"), [([math.nan, 0.1, math.inf, 0.1], "2 of 4"), ([], "0 of 0"), ([math.nan] * 4, "4 of 4")]
)
def test_changes_that_are_not_finite_are_an_error_that_counts_them(changes, words):
    with pytest.raises(ValueError, match=f"adacache: {words} changes are not finite numbers"):
        fit_of(changes)


@pytest.mark.parametrize("change", [0.0, 0.2])
def test_a_change_that_is_always_the_same_still_gives_a_codebook(change):
    fit = fit_of([change] * 19)
    assert fit.numbers["expected_computed_share"] == pytest.approx(0.5, abs=0.051)  # one step of twenty
    (bound, interval), (_, last) = fit.values["codebook"][0], fit.values["codebook"][-1]
    assert bound > change
    assert interval > last == 1


def test_a_calibration_of_too_few_steps_is_refused_beforehand():
    for steps, words in ((1, "a run of 1 step leaves"), (4, "a run of 4 steps leaves none to reuse; .* to 5 or more")):
        with pytest.raises(ValueError, match=words):
            AdaCache().calibration().check(Run(steps, range(steps), []), 8)
    AdaCache().calibration().check(Run(5, range(5), []), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": "medium"}, "speed='medium' must be one of fast, slow"),
        ({"speed": "fast", "codebook": THREE}, "give one of them"),
        ({"codebook": ()}, r"must be \(bound, interval\) pairs"),
        ({"codebook": ((0.2, 2), (0.1, 1))}, "rising bounds"),
        ({"codebook": ((0.2, 0),)}, "at least 1 step"),
        ({"metric_depths": (1.0,)}, "0 <= d < 1"),
        ({"gate": "after"}, "gate='after' must be one of pre, post"),
        ({"motion_strides": (0,)}, "each >= 1"),
        ({"motion_scale": 0.0}, "motion_scale=0.0 must be > 0"),
        ({"motion_gradient": -1.0}, "motion_gradient=-1.0 must be >= 0"),
        ({"target": 0.0}, "0 < target <= 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        AdaCache(**options)


def test_options_from_a_config():
    from fsframework.run.resolve import build_policy

    policy = build_policy({"name": "adacache", "codebook": [[0.1, 3], [1.0, 1]], "metric_depths": [0.2, 0.8]})
    assert isinstance(policy, POLICIES["adacache"])
    assert run(policy, 8, lambda t: 7.0)[0] == "CCRRCRCC"
