"""Recordings by hand, patterns of reuse played on them, and a training on a random pipeline."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from pipelines import CAPTIONS
from routing import config, random_model
from toys import run_scripted

import fsframework as fsf
from fsframework.core import Artifact, Kind, Part, Run, Site
from fsframework.policies.predictor import FEATURES, Network, Predictor
from fsframework.train.learned_config import ValidationConfig
from fsframework.train.learned_fit import learn
from fsframework.train.predictor import (
    ChangeNetwork,
    Examples,
    PredictorModule,
    PredictorOptions,
    examples_of,
    play,
    reliability_curve,
    scores_of,
    spearman,
    thinned,
)
from fsframework.train.predictor_recording import LagRecorder, Recording, load, to_plain

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
SITES = [Site(Part.BLOCK, Kind.JOINT, i, i + 1, i) for i in range(3)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curved(num_steps=12, max_lag=4, power=1.5):
    """Distances that grow with the span to some power: sites 0, 1, 2 by 1, 2 and 3 of it."""
    run = Run(num_steps, [1000 * (1 - s / num_steps) for s in range(num_steps)], SITES)
    distances = np.full((num_steps, 3, max_lag), np.nan)
    for step in range(num_steps):
        for lag in range(1, min(step, max_lag) + 1):
            distances[step, :, lag - 1] = np.array([1, 2, 3]) * (lag / num_steps) ** power
    return Recording(run, distances, prompt_norm=0.5)


def test_a_recording_has_the_distance_from_every_value_that_is_still_there(tmp_path):
    recorder = LagRecorder(depth=3, storage="output")
    session, _, _ = run_scripted(recorder, lambda b, t: 100 + t, 5, num_blocks=2)
    path = tmp_path / "one.json"
    path.write_text(json.dumps([to_plain(run, session.trace, 3) for run in recorder.runs]))
    (found,) = load(path)
    assert found.prompt_norm == 1.0, "this model takes no prompt"
    assert [site.name for site in found.run.sites] == ["joint.0", "joint.1"]
    assert found.run.timesteps == [0, 1, 2, 3, 4]
    nan = math.nan
    expected = [
        [nan] * 3,
        [1 / 101, nan, nan],
        [1 / 102, 2 / 102, nan],
        [1 / 103, 2 / 103, 3 / 103],
        [1 / 104, 2 / 104, 3 / 104],
    ]
    for site in (0, 1):
        assert found.distances[:, site] == pytest.approx(np.array(expected), rel=1e-5, nan_ok=True)


def test_a_pattern_asks_for_the_distance_from_what_would_be_cached():
    examples = play(curved(), 0.25, random.Random(0))
    assert examples.features.shape == (9 * 3, len(FEATURES))  # steps 3 to 11
    assert examples.features[:, FEATURES.index("prompt embedding norm")].unique().exp().item() == pytest.approx(0.5)
    target = examples.target.reshape(9, 3).exp()
    lags = (target / torch.tensor([1.0, 2.0, 3.0])) ** (1 / 1.5) * 12
    assert torch.allclose(lags, lags.round(), atol=1e-3)
    assert lags.round().min() == 1
    assert lags.round().max() <= 4
    assert lags[0].round().tolist() == [1, 1, 1], "the warmup computes everything"
    spans = examples.features[:, FEATURES.index("span")].reshape(9, 3).exp()
    assert torch.allclose(spans * 12, lags, atol=1e-3)
    # A site that was reused at a step is one step older at the next, else it is one step old.
    steps = lags.round().int().tolist()
    assert all(now[i] in (1, before[i] + 1) for before, now in pairwise(steps) for i in range(3))


def test_every_second_step_of_a_recording_is_a_recording_of_half_the_steps():
    found = thinned(curved(), 2)
    assert found.run.num_steps == len(found.run.timesteps) == 6
    assert found.run.timesteps[1] == pytest.approx(1000 * (1 - 2 / 12))
    # One of 6 steps is a span of 1/6, two 2/6; site 2 moves three times as far.
    assert found.distances.shape == (6, 3, 2)
    assert found.distances[4, 2] == pytest.approx([3 * (1 / 6) ** 1.5, 3 * (2 / 6) ** 1.5])
    assert thinned(curved(), 4) is None, "3 steps remain"
    assert len(examples_of([curved()], 0.25, 1, 0, [1, 2, 4]).target) == 9 * 3 + 4 * 3


def test_what_never_varied_is_not_looked_at():
    features = torch.randn(20, len(FEATURES), generator=torch.Generator().manual_seed(0))
    features[:, 3] = 0.5
    network = ChangeNetwork(4, features)
    torch.nn.init.normal_(network.layers[-1].weight)
    other = features.clone()
    other[:, 3] = 2.0
    assert torch.allclose(network(other), network(features), atol=1e-4)
    other[:, 4] += 1.0
    blind = ChangeNetwork(4, features, [FEATURES[4]])
    blind.layers.load_state_dict(network.layers.state_dict())
    assert torch.allclose(blind(other), blind(features), atol=1e-4), "what is ignored is not either"
    assert not torch.allclose(network(other), network(features), atol=1e-2)


def test_patterns_follow_from_the_seed():
    one, again, other = (examples_of([curved()], 0.25, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one.target, again.target)
    assert not torch.equal(one.target, other.target)


def test_without_training_it_says_the_last_rate_and_trained_it_learns_a_curve():
    examples = examples_of([curved()], 0.25, 20, 0)
    torch.manual_seed(0)
    network = ChangeNetwork(8, examples.features)
    before = scores_of(network(examples.features) + examples.straight, examples)
    assert before["r2"] == pytest.approx(before["r2 at the last rate"])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (network(examples.features) + examples.straight - examples.target).square().mean().backward()
        optimizer.step()
    for steps, most, least in ((12, 4, 0.99), (16, 5, 0.95)):  # patterns, then steps, that were not learned from
        other = examples_of([curved(steps, most)], 0.25, 5, 1)
        with torch.no_grad():
            after = scores_of(network(other.features) + other.straight, other)
        assert after["r2"] > least > after["r2 at the last rate"], steps


def test_the_network_on_the_host_is_the_trained_one():
    torch.manual_seed(0)
    features = torch.randn(50, len(FEATURES)) * 3 + 1
    network = ChangeNetwork(6, features)
    torch.nn.init.normal_(network.layers[-1].weight)
    found = network.to_host()(features.double().numpy())
    assert found == pytest.approx(network(features).detach().numpy(), rel=1e-4, abs=1e-4)


def test_scores_by_hand():
    examples = Examples(torch.zeros(4, 1), torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    scores = scores_of(torch.tensor([1.0, 2.0, 3.0, 6.0]), examples)
    # The targets' mean is 2.5, their squared deviations add up to 5.
    expected = {"error": 1.0, "r2": 1 - 4 / 5, "r2 at the last rate": 1 - 1 / 5, "rank correlation": 1.0}
    assert scores == pytest.approx(expected)
    assert spearman(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(-1.0)
    predicted, measured = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([40.0, 10.0, 20.0, 30.0])
    assert reliability_curve(predicted, measured, bins=2) == ([1.5, 3.5], [20.0, 30.0])


OPTIONS = {
    "hidden": 6, "max_lag": 3, "warmup": 0.25, "replays": 2, "batch_size": 32, "other_steps": [10], "judged_clips": 1,
}  # fmt: skip


def settings(folder, **options):
    validation = ValidationConfig(every=2)
    validation.prompts.texts = CAPTIONS[2:]
    return config(folder, "predictor", {**OPTIONS, **options}, num_iterations=4, validation=validation)


def test_a_training_ends_in_an_artifact_that_the_policy_runs_with_and_is_the_same_again(tmp_path, monkeypatch):
    model = random_model(num_steps=8)
    weights = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    learned = learn(settings(tmp_path / "one"), model)
    artifact = Artifact.load(learned.artifact, "predictor")
    assert artifact.facts["num_steps"] == 8
    assert artifact.values["max_lag"] == 3 / 8
    for judged in ("held-out prompts", "10 steps"):
        scores = {f"{score}, {judged}" for score in ("r2", "r2 at the last rate", "rank correlation")}
        assert scores <= set(learned.fit.numbers)
        assert any(curve.name == judged for curve in learned.fit.curves)
    policy = Predictor(budget=1e9, artifact=str(learned.artifact), max_lag=4)
    with torch.no_grad(), fsf.reuse(model.pipe, policy) as session:
        model.generate_latents(CAPTIONS[2], 7, num_steps=8)
    assert set(session.trace.decisions("spatial.0")) == {"C", "R"}
    assert "RRRR" not in session.trace.decisions("spatial.0"), "the longest lag it was trained on is 3"
    assert all(torch.equal(weights[name], value) for name, value in model.transformer.state_dict().items())
    again = learn(settings(tmp_path / "two"), model)
    assert again.fit.values == learned.fit.values

    def refuse(*_, **__):
        raise AssertionError("recordings are kept")

    monkeypatch.setattr(type(model), "generate_latents", refuse)
    (tmp_path / "two" / "predictor.ckpt").unlink()
    assert learn(settings(tmp_path / "two"), model).fit.values == learned.fit.values


@pytest.mark.slow
def test_a_training_killed_while_it_records_and_twice_while_it_learns_ends_in_the_same_artifact(tmp_path, monkeypatch):
    model = random_model(num_steps=8)

    def run(name):
        made = settings(tmp_path / name, other_steps=[])
        made.num_iterations = 6
        return learn(made, model)

    whole = run("whole")
    start, loss, steps = LagRecorder.start, PredictorModule.loss, []

    def second_video(self, run):
        if list((tmp_path / "killed" / "recordings").glob("*.json")):
            raise KeyError("power cut")
        return start(self, run)

    monkeypatch.setattr(LagRecorder, "start", second_video)
    with pytest.raises(KeyError, match="power cut"):
        run("killed")
    monkeypatch.setattr(LagRecorder, "start", start)
    assert len(list((tmp_path / "killed" / "recordings").iterdir())) == 1
    first, second = sorted(random.sample(range(1, 6), 2))
    for killed_at in (first, second, None):

        def counted(self, step, killed_at=killed_at):
            if step == killed_at:
                raise KeyError("power cut")
            steps.append(step)
            return loss(self, step)

        monkeypatch.setattr(PredictorModule, "loss", counted)
        torch.manual_seed(1234)  # the global random state is no part of a training
        if killed_at is not None:
            with pytest.raises(KeyError, match="power cut"):
                run("killed")
    run("killed")
    assert steps == [0, 1, 2, 3, 4, 5], f"killed at {first} and {second}"
    artifacts = [Artifact.load(tmp_path / name / "artifact.json", "predictor") for name in ("whole", "killed")]
    assert artifacts[0].digest == artifacts[1].digest
    assert artifacts[0].provenance["numbers"] == artifacts[1].provenance["numbers"] == dict(whole.fit.numbers)


def test_a_network_can_look_at_the_prompt_whose_norm_is_read_with_the_distances(tmp_path):
    """A network that says the logarithm of the norm multiplies the prediction by it."""
    n = len(FEATURES)
    weight = np.array([[float(name == "prompt embedding norm") for name in FEATURES]])
    network = Network(np.zeros(n), np.ones(n), [(weight, np.zeros(1))])
    path = tmp_path / "a.json"
    Artifact("predictor", {"storage": "residual", "max_lag": 1.0, **network.to_values()}, {}).save(path)
    model = random_model(num_steps=4)
    given = []

    def three_times(module, args, kwargs):
        given.append(3 * kwargs["encoder_hidden_states"])
        return args, {**kwargs, "encoder_hidden_states": given[-1]}

    handle = model.transformer.register_forward_pre_hook(three_times, with_kwargs=True)
    predicted = []
    for artifact in (str(path), None):
        with torch.no_grad(), fsf.reuse(model.pipe, Predictor(budget=0.0, warmup=2, artifact=artifact)) as session:
            model.generate_latents(CAPTIONS[0], 0, num_steps=4)
        predicted.append(list(session.trace.logged("predicted").values()))
        assert session.meter.num_reads == 3, "after each step but the last; the norm is in the first"
    handle.remove()
    norm = float(given[0].square().mean().sqrt())
    assert norm > 1.5
    assert len(predicted[1]) == 2 * 4
    assert predicted[0] == pytest.approx([norm * one for one in predicted[1]], rel=1e-4)


def test_what_can_not_be_learned_from_is_refused_before_anything_is_made(tmp_path):
    made = settings(tmp_path)
    made.validation = ValidationConfig()
    with pytest.raises(ValueError, match="judged on captions that are not learned from; set validation.every"):
        learn(made, random_model(num_steps=8))
    with pytest.raises(ValueError, match="at least 4 steps"):
        learn(settings(tmp_path), random_model(num_steps=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "both"}, "train.storage='both' must be one of output, residual"),
        ({"hidden": 0}, "train.hidden=0 must be at least 1"),
        ({"strides": [0]}, r"train.strides=\[0\] must be whole numbers of steps, at least 1"),
        ({"ignored": ["spam"]}, "train.ignored: no feature 'spam'. Did you mean 'span'"),
        ({"other_sizes": [[24]]}, r"train.other_sizes=\[\[24\]\] must be a list of \[height, width\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PredictorOptions(**options)
