"""TeaCache on a signal given as one number per step."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import ScriptedDiT, SmoothDiT, ToyAdapter, run_smooth, toy_session

from fsframework.core import Artifact, ReuseEngine, ReuseWarning, Run
from fsframework.policies.teacache import TeaCache, num_recomputed, polynomial, threshold_for_half

quiet = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
LINE = dict(probe="latent", coefficients=[1.0, 0.0])
"""The change of the latent itself."""
TENTH = [1.1**s for s in range(8)]
"""A tenth more every step."""


class Probed(ToyAdapter):
    """Twice the latent for `modulated`, and the timestep for `temb`."""

    def probe(self, name, transformer, arguments, block):
        if name == "modulated":
            return 2 * block["hidden_states"]
        return arguments["timestep"] if name == "temb" else super().probe(name, transformer, arguments, block)


def run(policy, latents, outputs=None, facts=None):
    """A model of two blocks whose output is a number per step, fed with a number per step."""
    outputs = outputs or [5.0 + s for s in range(len(latents))]
    model, out = ScriptedDiT(2, lambda block, t: outputs[int(t)]), []
    steps = list(range(len(latents)))
    with torch.no_grad(), ReuseEngine(Probed().bind(model), policy, timesteps=steps, facts=facts) as session:
        for step, x in enumerate(latents):
            out.append(float(model(torch.full((1, 4, 2), float(x)), torch.tensor([float(step)]))[0].mean()))
    return session, model, out


def trunk(session):
    return session.trace.decisions("trunk")


def test_changes_add_up_until_the_threshold_and_then_from_nothing():
    session, model, _ = run(TeaCache(threshold=0.25, **LINE), TENTH)
    # 0.1, 0.2, 0.3 (computed), 0.1, 0.2, 0.3 (computed), and the last step.
    assert trunk(session) == "CRRCRRCC"
    rows = [d for d, s in zip(session.trace.column("distance"), session.trace.column("site")) if s == "trunk"]
    assert rows[1:7] == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], rel=1e-4)
    assert model.transformer_blocks[0].num_runs == 4
    assert session.meter.num_reads == 6


def test_a_reuse_adds_the_old_residual_to_the_live_input():
    _, _, out = run(TeaCache(threshold=0.25, **LINE), [1.0, 1.1, 1.21, 1.331, 1.4641, 1.61051])
    # Step 0: 5 out of 1 in. Step 3: 8 out of 1.331 in. Step 5 is the last.
    assert out == pytest.approx([5.0, 1.1 + 4, 1.21 + 4, 8.0, 1.4641 + 8 - 1.331, 10.0])


def test_the_change_is_against_the_step_before_also_where_that_was_reused():
    # Changes 0.5, 0, 0, 0: against the last computed step it would stay 0.5.
    session, _, _ = run(TeaCache(threshold=0.6, **LINE), [1.0, 1.5, 1.5, 1.5, 1.5])
    assert trunk(session) == "CRRRC"


def test_the_change_goes_through_the_polynomial_high_order_first():
    assert polynomial([2.0, -3.0, 0.5], 2.0) == 2.5
    # 100 x^2 - 0.4 at x = 0.1 is 0.6.
    session, _, _ = run(TeaCache(probe="latent", coefficients=[100.0, 0.0, -0.4], threshold=1.0), TENTH)
    assert trunk(session) == "CRCRCRCC"


def test_a_polynomial_may_be_negative_and_then_makes_room():
    # -0.2 at the changes of 0, 0.8 at 1: -0.2, -0.4, 0.4 < 0.5.
    latents = [1.0, 1.0, 1.0, 2.0, 4.0, 4.0]
    session, _, _ = run(TeaCache(probe="latent", coefficients=[1.0, -0.2], threshold=0.5), latents)
    assert trunk(session) == "CRRRCC"


LATTE, COG = (TeaCache.published[name]["coefficients"] for name in ("latte-1", "cogvideox-2b"))
WAN = TeaCache.published["wan2.1-t2v-14b"]["coefficients"]


@quiet
@pytest.mark.parametrize(
    ("coefficients", "threshold", "latents", "expected"),
    [
        # P(0.01) = 0.078, twice that is above 0.1, and P(1) = -2080 at step 3.
        (LATTE, 0.1, [1.0, 1.01, 1.0201, 2.0402, 2.0606, 2.0812, 2.1020], "CRCCRCC"),
        (WAN, 0.14, TENTH, "CCCCCCCC"),  # P(0.1) = -0.63; it is above 0 from 0.13 on
        (COG, 0.0, [1.001**s for s in range(8)], "CCCCCCCC"),  # P(0.001) = -0.002, and a threshold of 0 never reuses
        ([1.0, -0.5], 0.5, [1.0, 1.0, 1.25, 1.25], "CCRC"),  # P(0) = -0.5 is outside, P(0.25) = -0.25 is not
    ],
)
def test_an_estimate_far_below_zero_is_outside_the_fit_and_recomputes(coefficients, threshold, latents, expected):
    session, _, _ = run(TeaCache(probe="latent", coefficients=coefficients, threshold=threshold), latents)
    assert trunk(session) == expected
    changes = [abs(b - a) / a for a, b in pairwise(latents)]
    assert num_recomputed(coefficients, threshold, changes) == expected.count("C")


@quiet
@pytest.mark.parametrize("in_place", [False, True])
def test_a_sampler_that_steps_in_place_is_seen_to_change_the_latent(in_place):
    policy = TeaCache(threshold=0.25, **LINE)
    for each in (policy, policy.calibration().rollouts(Run(8, range(8), []))["full"]):
        model, x = ScriptedDiT(2, lambda block, t: 5.0 + t), torch.ones(1, 4, 2)
        with torch.no_grad(), ReuseEngine(Probed().bind(model), each, timesteps=list(range(8))) as session:
            for step in range(8):
                model(x, torch.tensor([float(step)]))
                x = x.mul_(1.1) if in_place else x * 1.1
        assert list(session.trace.logged("signal_change").values()) == pytest.approx(
            [0.1] * (6 if each is policy else 7), rel=1e-4
        )
        if each is policy:
            assert trunk(session) == "CRRCRRCC"


@quiet
def test_the_first_and_last_step_are_always_computed_and_zero_never_reuses_what_changes_or_not():
    assert trunk(run(TeaCache(threshold=100.0, **LINE), TENTH)[0]) == "CRRRRRRC"
    assert trunk(run(TeaCache(threshold=0.0, **LINE), [1.0] * 5)[0]) == "CCCCC"
    assert trunk(run(TeaCache(threshold=1.0, **LINE), [1.0])[0]) == "C"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@quiet
def test_a_change_that_is_not_finite_never_means_reuse_and_is_forgotten(bad):
    for coefficients in ([1.0, 0.0], [-1.0, 0.0]):
        policy = TeaCache(probe="latent", coefficients=coefficients, threshold=100.0)
        session, _, _ = run(policy, [1.0, 1.0, bad, 1.0, 1.0, 1.0, 1.0])
        # Steps 2 and 3 measure with the bad one. (|1 - inf| / inf is NaN too.)
        assert trunk(session) == "CRCCRRC"


def test_the_signal_is_the_probe_of_that_name():
    options = dict(coefficients=[1.0, 0.0], threshold=0.25)
    assert trunk(run(TeaCache(probe="modulated", **options), TENTH)[0]) == "CRRCRRCC"
    # The timestep: 0 to 1 is an infinite change, then 1, 1/2, 1/3, 1/4, 1/5.
    with pytest.warns(ReuseWarning, match="not finite"):
        session, _, _ = run(TeaCache(probe="temb", **options), TENTH)
    assert trunk(session) == "CCCCCCRC"
    assert trunk(run(TeaCache(**options), TENTH)[0]) == "CRRCRRCC"  # modulated, where nothing says otherwise


def test_a_probe_the_model_does_not_have_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="no probe 'tembed'"):
        run(TeaCache(probe="tembed", coefficients=[1.0, 0.0], threshold=0.1), TENTH)


def test_published_settings_are_those_of_the_checkpoint():
    run_of = lambda **facts: Run(50, list(range(50)), [], "joint", facts=facts)
    state = TeaCache().start(run_of(checkpoint="cogvideox-2b", family="cogvideox"))
    assert (state.probe, state.threshold) == ("temb", 0.1)
    # By hand: P(0.1) = -0.0031065890 + 0.0254732368 - 0.059238046 + 0.175769064 - 0.00361568434.
    assert polynomial(state.coefficients, 0.1) == pytest.approx(0.1352819825)
    state = TeaCache(threshold=0.2).start(run_of(checkpoint="latte-1", family="latte"))
    assert (state.probe, state.threshold, len(state.coefficients)) == ("modulated", 0.2, 5)
    with pytest.raises(
        ValueError,
        match="needs the coefficients .*`fsf calibrate teacache .*published are those of opensora-1.2,",
    ):
        TeaCache().start(run_of(checkpoint="tiny-latte", family="latte"))
    # Calibration measures the polynomial, and is given the threshold.
    with pytest.raises(ValueError, match="threshold was published for.*; set threshold yourself.$"):
        TeaCache(**LINE).start(run_of(checkpoint="tiny-latte", family="latte"))
    with pytest.raises(ValueError, match="the published coefficients are not of the signal 'modulated'"):
        TeaCache(probe="modulated").start(run_of(checkpoint="cogvideox-2b"))


def test_a_published_polynomial_is_its_checkpoints_own_and_not_that_of_another_of_the_family():
    run_of = lambda **facts: Run(50, list(range(50)), [], "joint", facts={"family": "hunyuan-video", **facts})
    assert len(TeaCache().start(run_of(checkpoint="hunyuan-video")).coefficients) == 5
    for other in ({"checkpoint": "hunyuan-video-i2v"}, {}):
        with pytest.raises(ValueError, match="needs the coefficients of its polynomial"):
            TeaCache().start(run_of(**other))
        with pytest.raises(ValueError, match="threshold was published for"):
            TeaCache(coefficients=[1.0, 0.0]).start(run_of(**other))


def test_every_published_polynomial_has_five_coefficients_and_a_signal():
    for options in TeaCache.published.values():
        assert len(options["coefficients"]) == 5
        assert options["probe"] in ("modulated", "temb")


def test_an_artifact_gives_polynomial_and_signal_and_is_checked(tmp_path):
    path = tmp_path / "teacache.json"
    values = {"coefficients": [1.0, 0.0], "probe": "latent"}
    Artifact("teacache", values, {"family": "latte", "num_steps": 8}).save(path)
    policy = TeaCache(artifact=str(path), threshold=0.25)
    session, _, _ = run(policy, TENTH, facts={"family": "latte"})
    assert trunk(session) == "CRRCRRCC"
    with pytest.warns(ReuseWarning, match="num_steps was 8, is 6"):
        run(policy, TENTH[:6], facts={"family": "latte"})
    with pytest.raises(ValueError, match="family was latte, is wan"):
        run(policy, TENTH, facts={"family": "wan"})
    with pytest.raises(ValueError, match="is of the signal 'latent', not of probe='temb'"):
        run(TeaCache(artifact=str(path), threshold=0.25, probe="temb"), TENTH)
    Artifact("teacache", {"probe": "latent"}, {}).save(path)
    with pytest.raises(ValueError, match="holds no 'coefficients'"):
        run(policy, TENTH)


def calibrate(policy, videos):
    """`videos`: (latents, outputs) of each."""
    calibration, records = policy.calibration(), []
    facts = Run(len(videos[0][0]), [], [])
    for latents, outputs in videos:
        session, _, _ = run(calibration.rollouts(facts)["full"], latents, outputs)
        assert set(session.trace.column("decision")) == {"recompute"}
        assert session.meter.num_reads == 0
        record = calibration.record("full", session.trace, torch.zeros(1), torch.zeros(1))
        records.append(json.loads(json.dumps(record)))
    return calibration.fit({"full": records}, facts), records


def grow(changes):
    return np.cumprod([1.0, *(1 + np.array(changes))]).tolist()


def test_calibration_pairs_the_changes_of_signal_and_output_and_fits_the_polynomial():
    changes = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6]
    truth = [1.0, -1.0, 0.5, 0.2, 0.05]  # degree 4, high order first
    outputs = grow([polynomial(truth, c) for c in changes])
    policy = TeaCache(probe="latent", threshold=0.3)
    fit, records = calibrate(policy, [(grow(changes), outputs)])
    assert records[0]["signal"]["joint"] == pytest.approx(changes, rel=1e-4)
    assert records[0]["output"]["joint"] == pytest.approx([polynomial(truth, c) for c in changes], rel=1e-4)
    fitted = [polynomial(fit.values["coefficients"], c) for c in changes]
    assert fitted == pytest.approx([polynomial(truth, c) for c in changes], abs=1e-5)
    assert fit.values["probe"] == "latent"
    assert fit.values["range"] == pytest.approx([0.1, 0.6], rel=1e-4)
    assert fit.numbers["R^2"] == pytest.approx(1.0, abs=1e-5)
    assert fit.numbers["residual standard deviation"] < 1e-5
    assert fit.numbers["points"] == 10
    # P is 0.0741, 0.0884, 0.1036, 0.1195, 0.1361, 0.1534, 0.1716, 0.1911, 0.2125, 0.2636: the sums 0.0741, 0.1625, 0.2661,
    # 0.3856 (computed), 0.1361, 0.2895, 0.4611 (computed), 0.1911, 0.4036 (computed), and the last: with the first 5 of 11.
    assert fit.numbers["share of recomputed steps at threshold 0.3"] == pytest.approx(5 / 11)
    assert [(len(c.x), c.is_line) for c in fit.curves] == [(10, False), (100, True)]


def test_a_cloud_is_fitted_by_least_squares():
    changes = [0.05 * i for i in range(1, 11)]
    videos = [(grow(changes), grow([1.1 * c for c in changes])), (grow(changes), grow([0.9 * c for c in changes]))]
    fit, _ = calibrate(TeaCache(probe="latent"), videos)
    fitted = [polynomial(fit.values["coefficients"], c) for c in changes]
    assert fitted == pytest.approx(changes, abs=1e-4)
    # Residuals are a tenth of x, and the mean of x^2 is 0.05^2 * 38.5 = 0.09625; the variance of x is 0.05^2 * 8.25.
    assert fit.numbers["residual standard deviation"] == pytest.approx(math.sqrt(0.0009625), rel=1e-3)
    assert fit.numbers["R^2"] == pytest.approx(1 - 0.0009625 / (0.0009625 + 0.020625), rel=1e-3)
    # No threshold is known. Above 0.45 the sums 0.05 0.15 0.30, 0.25, 0.35 and 0.45 are let pass; after them, and at the
    # last step, it is computed: steps 0, 4, 6, 8 and 10 of eleven.
    assert fit.proposed["threshold"] == pytest.approx(0.45, abs=0.011)
    assert fit.numbers[f"share of recomputed steps at threshold {fit.proposed['threshold']:g}"] == 5 / 11


def fit_of(signal, output):
    records = {"full": [{"signal": {"joint": signal}, "output": {"joint": output}}]}
    return TeaCache(probe="latent").calibration().fit(records, Run(len(signal) + 1, range(len(signal) + 1), []))


@pytest.mark.parametrize(
    ("signal", "output", "message"),
    [
        ([0.1 * i for i in range(9)], [0.1 * i for i in range(9)], "9 different amounts in 9 points.*at least 10"),
        ([0.1, 0.2, 0.3] * 5, [0.1, 0.2, 0.3] * 5, "3 different amounts in 15 points"),
        ([0.1] * 12, [0.1 * i for i in range(12)], "1 different amounts in 12 points"),
        ([0.1 * i for i in range(10)], [0.25] * 10, "the prediction changed by 0.25 at every step"),
        ([0.1 * i for i in range(10)], [math.nan, math.inf, *[0.1] * 8], "2 of 10 changes of the prediction are not"),
        ([0.1 * i for i in range(9)] + [math.nan], [0.1] * 10, "1 of 10 changes of the signal are not"),
        ([0.1 + 1e-9 * i for i in range(10)], [0.1 * i for i in range(10)], "too close together for a polynomial"),
        ([0.1] * 10, [0.1] * 9, "do not pair"),
    ],
    ids=["as few as coefficients", "few values", "still signal", "still output", "nan", "nan signal", "close", "pairs"],
)
def test_records_that_determine_no_polynomial_are_refused_in_words(signal, output, message):
    with pytest.raises(ValueError, match=f"teacache: .*{message}"):
        fit_of(signal, output)


def test_twice_as_many_points_as_coefficients_are_enough():
    signal = [0.1 * i for i in range(10)]
    assert fit_of(signal, [2 * x for x in signal]).numbers["R^2"] == pytest.approx(1.0)


def test_the_expected_number_of_recomputed_steps_is_the_policys_own():
    changes = [0.1] * 7
    session, _, _ = run(TeaCache(threshold=0.25, **LINE), TENTH)
    assert num_recomputed([1.0, 0.0], 0.25, changes) == trunk(session).count("C") == 4


def test_the_cache_holds_the_residual_and_the_signal():
    session, _, _ = run(TeaCache(threshold=0.25, **LINE), TENTH)
    assert session.cache.peak_bytes == 2 * (4 * 2 * 4)


def test_each_branch_adds_up_by_itself():
    model = SmoothDiT(num_blocks=2)
    with torch.no_grad(), toy_session(model, TeaCache(threshold=0.25, **LINE), 5) as session:
        for step in range(5):
            for branch, growth in (("cond", 1.1), ("uncond", 1.4)):
                with session.branch(branch):
                    model(torch.full((1, 4, 8), growth**step), torch.zeros(1) + step)
    assert session.trace.decisions("trunk", "cond") == "CRRCC"
    assert session.trace.decisions("trunk", "uncond") == "CCCCC"


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model, policy, alone = SmoothDiT(num_blocks=3), TeaCache(threshold=0.2, **LINE), []
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
        ({"coefficients": []}, r"coefficients=\[\] must be finite numbers"),
        ({"coefficients": [math.inf]}, "must be finite numbers"),
        ({"coefficients": [1.0], "artifact": "a.json"}, "either coefficients or an artifact"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        TeaCache(**options)


def test_a_threshold_is_proposed_with_which_half_the_steps_are_computed():
    # Every change adds 0.1 to d. Up to 0.2 at most one step in two is reused: 0, 2, 4, 6, 8, 9 of 10 are computed. Above it two
    # in three are: 0, 3, 6, 9.
    assert threshold_for_half([1.0, 0.0], [[0.1] * 9]) == 0.21
    assert [num_recomputed([1.0, 0.0], threshold, [0.1] * 9) for threshold in (0.2, 0.21)] == [6, 4]
    assert threshold_for_half([100.0, 0.0], [[1.0] * 9]) is None  # larger than any


def test_a_calibration_of_too_few_steps_is_refused_beforehand():
    check = TeaCache().calibration().check
    with pytest.raises(ValueError, match="1 clip of 1 step gives 0 points"):
        check(Run(1, [0.0], []), 1)
    with pytest.raises(
        ValueError, match="3 clips of 4 steps give 9 points, and the polynomial has 5 coefficients; .* 10"
    ):
        check(Run(4, range(4), []), 3)
    check(Run(6, range(6), []), 2)
    check(Run(6, range(6), [], branch="cond"), 1)  # a point of each branch
