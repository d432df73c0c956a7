"""EasyCache on latents and predictions given as numbers, one per step."""

import math

import pytest
import torch
from toys import ScriptedDiT, SmoothDiT, run_smooth, toy_session

from fsframework.core import Run
from fsframework.policies.easycache import EasyCache

quiet = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


def run(policy, latents, predictions, order=("joint",), facts=None):
    """Every branch gets the step's latent and predicts the step's number."""
    model = ScriptedDiT(1, lambda block, t: predictions[int(t)])
    num_steps, out = len(latents), []
    with torch.no_grad(), toy_session(model, policy, num_steps, facts=facts or {}) as session:
        for step, x in enumerate(latents):
            for branch in order:
                with session.branch(branch):
                    out.append(float(model(torch.full((1, 4, 2), float(x)), torch.tensor([float(step)]))[0].mean()))
    return session, model, out


RISING = list(range(8))
"""The latent moves by 1 a step."""


def test_the_rate_of_the_last_two_computed_steps_times_the_movement_adds_up_to_the_threshold():
    policy = EasyCache(threshold=0.15, warmup=2, last=0)
    session, model, out = run(policy, RISING, [10 + s for s in RISING])
    # k = 1 throughout. |v| is 11 at step 1: 1/11, then 2/11 > 0.15; 13 at step 3: 1/13, 2/13; 15 at step 5: 1/15, 2/15.
    assert session.trace.decisions("model") == "CCRCRCRR"
    assert model.transformer_blocks[0].num_runs == 4
    distances = session.trace.column("distance")
    errors = [d for d, part in zip(distances, session.trace.column("site")) if part == "model"][2:]
    assert errors == pytest.approx([1 / 11, 2 / 11, 1 / 13, 2 / 13, 1 / 15, 2 / 15])
    # A reuse gives the latent plus the last v - x, which is 10 at every step.
    assert out == pytest.approx([10 + s for s in RISING])


def test_the_rate_is_the_predictions_movement_over_the_latents_between_computed_steps():
    # Steps 0, 1: the latent moves by 2, the prediction by 1, so k = 0.5; then the latent moves by 4: 0.5 * 4 / 20 = 0.1.
    session, _, out = run(EasyCache(threshold=0.11, warmup=2, last=0), [0, 2, 6, 7], [19, 20, 90, 22])
    # Step 3: 0.1 + 0.5 * 1 / 20 = 0.125 is too much, so it is computed.
    assert session.trace.decisions("model") == "CCRC"
    assert out == pytest.approx([19, 20, 6 + (20 - 2), 22])


def test_after_a_computed_step_the_rate_spans_the_reused_steps_before_it():
    latents, predictions = [0, 1, 2, 3, 4], [10, 11, 0, 17, 0]
    session, _, _ = run(EasyCache(threshold=0.18, warmup=2, last=0), latents, predictions)
    # Step 2: 1/11; step 3: 2/11 > 0.18. Computed steps 1 and 3: k = (17 - 11) / (3 - 1) = 3, and |v| = 17: 3/17 < 0.18.
    assert session.trace.decisions("model") == "CCRCR"
    rows = [d for d, s in zip(session.trace.column("distance"), session.trace.column("site")) if s == "model"]
    assert rows[4] == pytest.approx(3 / 17)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "CCRRRRRC"),
        ({"last": 0}, "CCRRRRRR"),
        ({"last": 3}, "CCRRRCCC"),
        ({"warmup": 0.5}, "CCCCRRRC"),
        ({"threshold": 0.0}, "CCCCCCCC"),
    ],
)
@quiet
def test_the_first_and_last_steps_are_always_computed(options, expected):
    session, _, _ = run(EasyCache(**{"threshold": 100.0, "warmup": 2, **options}), RISING, [10 + s for s in RISING])
    assert session.trace.decisions("model") == expected


def test_a_prediction_that_stands_still_has_a_rate_of_zero_and_is_reused():
    session, _, _ = run(EasyCache(warmup=2), RISING, [5.0] * 8)
    assert session.trace.decisions("model") == "CCRRRRRC"


@quiet
def test_a_latent_that_stood_still_gives_no_rate_so_nothing_is_reused_on_it():
    session, _, _ = run(EasyCache(threshold=100.0, warmup=2, last=0), [1, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert session.trace.decisions("model") == "CCCRR"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@quiet
def test_an_error_that_is_not_finite_never_means_reuse_and_is_forgotten(bad):
    predictions = [10, bad, 12, 13, 14, 15, 16, 17]
    session, _, _ = run(EasyCache(threshold=100.0, warmup=2, last=0), RISING, predictions)
    # Step 2 measures a rate against step 1, which is bad; step 3 against step 2, which is not.
    assert session.trace.decisions("model") == "CCCCRRRR"


@pytest.mark.parametrize("order", [("cond", "uncond"), ("uncond", "cond")])
def test_cond_decides_for_both_branches_whichever_is_called_first(order):
    current = [""]
    # Alone, uncond would reuse nothing: its rate is far above 1.
    model = ScriptedDiT(1, lambda block, t: (10 + t) if current[0] == "cond" else 1000.0 * t * t)
    with torch.no_grad(), toy_session(model, EasyCache(threshold=0.15, warmup=2, last=0), 8) as session:
        for step in range(8):
            for branch in order:
                current[0] = branch
                with session.branch(branch):
                    model(torch.full((1, 4, 2), float(step)), torch.tensor([float(step)]))
    assert session.trace.decisions("model", "cond") == "CCRCRCRR"
    assert session.trace.decisions("model", "uncond") == "CCRCRCRR"
    assert session.meter.num_reads == 6


def test_published_settings_are_taken_by_family_and_given_ones_come_first():
    steps = list(range(14))
    predictions = [10 + s for s in steps]
    session, _, _ = run(EasyCache(), steps, predictions)
    assert session.trace.decisions("model").startswith("C" * 10)
    assert "R" not in session.trace.decisions("model")[10:12]  # 1/19 is more than 0.05
    hunyuan = {"family": "hunyuan-video"}
    flat = [1000 + s for s in steps]
    session, _, _ = run(EasyCache(), steps, flat, facts=hunyuan)
    assert session.trace.decisions("model") == "CCCCC" + "R" * 8 + "C"
    session, _, _ = run(EasyCache(threshold=0.0015), steps, flat, facts=hunyuan)
    assert session.trace.decisions("model") == "CCCCCRCRCRCRCC"  # 1/1004, 2/1004


def test_what_is_cached_and_kept_is_four_latents():
    session, _, _ = run(EasyCache(warmup=2), RISING, [5.0] * 8)
    assert session.cache.peak_bytes == 4 * (4 * 2 * 4)


@pytest.mark.parametrize("order", [("cond", "uncond"), ("uncond", "cond")])
def test_a_branch_that_follows_keeps_its_latent_alone(order):
    policy = EasyCache(warmup=2)
    session, _, _ = run(policy, RISING, [5.0] * 8, order)
    assert session.trace.decisions("model", "uncond") == "CCRRRRRC"
    kept = [policy.num_kept(Run(8, RISING, [], branch)) for branch in ("joint", "cond", "uncond")]
    assert kept == [3, 3, 1]
    assert session.cache.peak_bytes == (4 + 2) * (4 * 2 * 4)  # cond 1 and 3, uncond 1 and 1


def test_a_caller_that_writes_into_latent_and_prediction_changes_nothing():
    model, outs = SmoothDiT(num_blocks=2), []
    for writes in (False, True):
        with torch.no_grad(), toy_session(model, EasyCache(threshold=1.0, warmup=2), 6) as session:
            out = []
            for step in range(6):
                x = torch.full((1, 4, 8), 1.0 + step / 10)
                prediction = model(x, torch.tensor([float(step)]))[0]
                out.append(prediction.clone())
                if writes:
                    x.fill_(99.0), prediction.fill_(99.0)
        assert "R" in session.trace.decisions("model")
        outs.append(out)
    assert all(torch.equal(a, b) for a, b in zip(*outs))


def test_videos_in_one_session_equal_each_alone_also_after_one_that_was_cut_short():
    model, policy = SmoothDiT(num_blocks=3), EasyCache(threshold=0.3, warmup=2)
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
        ({"last": -1}, "last=-1 must be >= 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        EasyCache(**options)


@pytest.mark.parametrize(("warmup", "message"), [(1, "at least 2 steps"), (None, "longer than the run of 8 steps")])
def test_a_warmup_that_does_not_fit_is_refused(warmup, message):
    with pytest.raises(ValueError, match=message):
        run(EasyCache(warmup=warmup), RISING, RISING)
