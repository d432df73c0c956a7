"""The predictor's arithmetic by hand: a block that gives 100 + t moves by lag / (100 + t)."""

import math
import re

import numpy as np
import pytest
from toys import run_scripted

from fsframework.core import Artifact, Kind, Part, Run, Site
from fsframework.policies.predictor import FEATURES, Network, Predictor, Tracker, predict

BLOCKS = [Site(Part.BLOCK, Kind.SPATIAL, 0, 1, 0), Site(Part.BLOCK, Kind.TEMPORAL, 1, 2, 0)]


def run_of(timesteps, sites=BLOCKS, **facts):
    return Run(len(timesteps), timesteps, sites, facts=facts)


def steady(policy, num_steps=10, script=lambda b, t: 100 + t, num_blocks=1):
    session, _, _ = run_scripted(policy, script, num_steps, num_blocks)
    return session


def artifact(path, bias=0.0, storage="output", max_lag=1.0, num_steps=10, weights=None, **more):
    """A network that says `bias` whatever it sees, but for the features in `weights`."""
    n = len(FEATURES)
    weight = np.array([[(weights or {}).get(name, 0.0) for name in FEATURES]])
    network = Network(np.zeros(n), np.ones(n), [(weight, np.array([bias]))])
    values = {"storage": storage, "max_lag": max_lag, **network.to_values(), **more}
    Artifact("predictor", values, {"num_steps": num_steps}).save(path)
    return str(path)


def test_without_a_network_a_site_goes_on_at_its_last_rate():
    # After the warmup of 2 steps: d(1, 0) = 1 / 101, so one step on it will be 1 / 101 = 0.0099, two steps on 0.0198.
    session = steady(Predictor(budget=0.015, warmup=2, max_lag=9, storage="output"))
    assert session.trace.decisions("joint.0") == "CCRCRCRCRC"
    predicted = {session.trace.column("step")[row]: value for row, value in session.trace.logged("predicted").items()}
    assert predicted[2] == pytest.approx(1 / 101)
    assert predicted[3] == pytest.approx(2 / 101)
    # Step 3 measured 2 / 103 over two steps: 1 / 103 a step.
    assert predicted[4] == pytest.approx(1 / 103)
    distances = {session.trace.column("step")[row]: value for row, value in session.trace.logged("distance").items()}
    assert distances == pytest.approx({1: 1 / 101, 3: 2 / 103, 5: 2 / 105, 7: 2 / 107, 9: 2 / 109})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"budget": 0.025}, "CCRRCRRCRR"),  # two steps are 0.0198, three 0.0297
        ({"budget": 0.025, "max_lag": 1}, "CCRCRCRCRC"),
        ({"budget": 0.025, "max_lag": 0.1}, "CCRCRCRCRC"),
        ({"budget": 1.0, "max_lag": 3}, "CCRRRCRRRC"),
        ({"budget": 0.0}, "CCCCCCCCCC"),
        ({"budget": 0.015, "warmup": 0.5}, "CCCCCRCRCR"),
    ],
)
def test_a_site_is_reused_while_the_prediction_is_under_the_budget_and_the_lag_is_allowed(options, expected):
    session = steady(Predictor(**{"warmup": 2, "max_lag": 9, "storage": "output", **options}))
    assert session.trace.decisions("joint.0") == expected


def test_each_site_decides_alone_and_there_is_one_read_for_all():
    script = lambda b, t: 100 + t if b == 0 else 100 + 3 * t  # three times as fast
    session = steady(Predictor(budget=0.025, warmup=2, max_lag=9, storage="output"), script=script, num_blocks=2)
    assert session.trace.decisions("joint.0") == "CCRRCRRCRR"
    assert session.trace.decisions("joint.1")[:4] == "CCCC"
    assert session.meter.num_reads <= 9


def test_a_network_says_how_much_more(tmp_path):
    twice = artifact(tmp_path / "a.json", math.log(2))
    options = {"warmup": 2, "max_lag": 9, "storage": "output", "artifact": twice}
    assert steady(Predictor(budget=0.025, **options)).trace.decisions("joint.0") == "CCRCRCRCRC"
    assert steady(Predictor(budget=0.015, **options)).trace.decisions("joint.0") == "CCCCCCCCCC"


def test_an_artifact_bounds_the_lag_and_is_for_one_storage_and_its_features(tmp_path):
    path = artifact(tmp_path / "a.json", max_lag=0.1)
    options = {"warmup": 2, "max_lag": 9, "artifact": path}
    assert steady(Predictor(budget=0.025, storage="output", **options)).trace.decisions("joint.0") == "CCRCRCRCRC"
    with pytest.raises(ValueError, match="was trained for storage=output; set policy.storage to that"):
        Predictor(artifact=path).start(run_of(range(10)))


def test_weights_of_an_earlier_format_or_for_other_features_are_refused(tmp_path):
    new = ("distance at last rate / threshold", "threshold / mean of all sites", "prompt embedding norm")
    earlier = [name for name in FEATURES if name not in new]
    path = artifact(tmp_path / "a.json", features=earlier, format=1)
    expected = (
        f"the predictor's weights are of format 1, this fsframework reads format 2; they were trained without the features "
        f"{', '.join(new)}. Train again with `fsf train CONFIG.yaml` (train: predictor)."
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        Predictor(artifact=path, storage="output").start(run_of(range(10)))
    values = Network.zero().to_values()
    del values["format"]
    with pytest.raises(ValueError, match="are of format 1"):
        Network.from_values(values)
    values = {**Network.zero().to_values(), "features": list(reversed(FEATURES))}
    with pytest.raises(ValueError, match="without the features in this order"):
        Network.from_values(values)


def test_a_network_can_look_at_the_threshold(tmp_path):
    """10 to the steps s - W + 1 times the distances: W = 3, d(1, 0) = 1 / 101, d(2, 1) = 1 / 102; d(3, 2) would be 1 / 102."""
    path = artifact(tmp_path / "a.json", weights={"distance at last rate / threshold": 1.0})
    session = steady(Predictor(budget=1.0, warmup=3, max_lag=9, storage="output", artifact=path))
    predicted = {session.trace.column("step")[row]: value for row, value in session.trace.logged("predicted").items()}
    threshold = 0.1 / 101 + 1 / 102
    straight = 1 / 102
    assert predicted[3] == pytest.approx(straight * straight / threshold, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget=-1.0 must be >= 0"),
        ({"max_lag": 0}, "max_lag=0 must be a fraction"),
        ({"max_lag": 1.5}, "max_lag=1.5 must be a fraction"),
        ({"storage": "both"}, "storage='both' must be one of output, residual"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(**options)


@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_a_distance_that_is_not_finite_is_never_a_reuse():
    script = lambda b, t: math.inf if t == 3 else 100 + t
    session = steady(Predictor(budget=0.015, warmup=2, max_lag=9, storage="output"), script=script)
    # Step 3 gives inf and d = nan, so 4 is computed; d(4, 3) = inf / 104, so 5 is; from d(5, 4) on all is well.
    assert session.trace.decisions("joint.0") == "CCRCCCRCRC"
    # In the warmup it is in the threshold, which is then none for the whole video.
    script = lambda b, t: math.inf if t == 1 else 100 + t
    session = steady(Predictor(budget=0.015, warmup=3, max_lag=9, storage="output"), script=script)
    assert session.trace.decisions("joint.0") == "CCCCCCCCCC"


def test_what_the_network_sees_by_hand():
    """Four steps at timesteps 800, 600, 400, 200; the sites move by 0.1 and 0.4 in the first, by 0.2 and 0.4 in the second."""
    tracker = Tracker(run_of([800.0, 600.0, 400.0, 200.0]), warmup=3)
    both = np.array([0, 1])
    tracker.computed(0, both)
    for step, moved in ((1, [0.1, 0.4]), (2, [0.2, 0.4])):
        tracker.measured(step, both, np.array(moved))
        tracker.computed(step, both)
    # A step is a span of 1/4. Rates: 0.4 then 0.8, and 1.6 twice. Means of logarithms are geometric means.
    seen = {name: np.exp(column) for name, column in zip(FEATURES, tracker.features(3).T)}
    usual = [math.sqrt(0.4 * 0.8), 1.6]
    of_all = math.sqrt(0.8 * 1.6)
    expected = {
        "span / last span": [1, 1],
        "span": [0.25, 0.25],
        "last rate / rate before": [2, 1],
        "last rate / warmup rate": [0.8 / usual[0], 1],
        "last rate / mean of all sites": [0.8 / of_all, 1.6 / of_all],
        "mean of all sites / their warmup": [math.sqrt(0.8 / usual[0])] * 2,
        "warmup rate": usual,
        "warmup rate / mean of all sites": [usual[0] / math.sqrt(usual[0] * 1.6), 1.6 / math.sqrt(usual[0] * 1.6)],
        "timestep": [math.exp(0.25)] * 2,
        "share of the run": [math.exp(0.75)] * 2,
        "step size / mean step size": [1, 1],
        "depth": [1, math.exp(0.5)],
        "is spatial": [math.e, 1],
        "is temporal": [1, math.e],
        # Foresight's weights for a warmup of 3 are 0.1 and 1: 0.1 * 0.1 + 0.2 and 0.1 * 0.4 + 0.4.
        "distance at last rate / threshold": [0.2 / 0.21, 0.4 / 0.44],
        "threshold / mean of all sites": [math.sqrt(0.21 / 0.44), math.sqrt(0.44 / 0.21)],
        "prompt embedding norm": [1, 1],  # not known yet
    }
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name] == pytest.approx(values), name
    assert predict(tracker, Network.zero(), 3) == pytest.approx([0.2, 0.4])
    tracker.prompt_norm = 0.7
    assert np.exp(tracker.features(3)[:, FEATURES.index("prompt embedding norm")]) == pytest.approx([0.7, 0.7])


def test_only_the_last_three_warmup_steps_make_the_threshold_and_without_any_it_says_nothing():
    tracker = Tracker(run_of([800.0, 600.0, 400.0, 200.0, 100.0, 50.0], BLOCKS[:1]), warmup=5)
    site, column = np.array([0]), FEATURES.index("distance at last rate / threshold")
    tracker.computed(0, site)
    tracker.measured(1, site, np.array([64.0]))
    tracker.computed(1, site)
    assert tracker.features(2)[0, column] == 0
    for step, moved in ((2, 1.0), (3, 2.0), (4, 3.0)):
        tracker.measured(step, site, np.array([moved]))
        tracker.computed(step, site)
    # 0.01 * 1 + 0.1 * 2 + 3; the last rate was 3 over a span of 100 / 800, step 5 comes after half of that.
    assert np.exp(tracker.features(5)[0, column]) == pytest.approx(1.5 / 3.21)


def test_a_steady_site_is_predicted_alike_in_twice_the_steps():
    """What moves evenly in time moves by half as much in half a step: the rate is the same."""
    predictions = []
    for num_steps in (8, 16):
        times = [1000 * (1 - step / num_steps) for step in range(num_steps)]
        tracker = Tracker(run_of(times, BLOCKS[:1]), warmup=2)
        site = np.array([0])
        for step in range(num_steps // 2 + 1):
            if step:
                tracker.measured(step, site, np.array([0.3 * (times[step - 1] - times[step]) / 1000]))
            tracker.computed(step, site)
        ahead = num_steps // 2 + num_steps // 4  # a quarter of the run after the middle
        predictions.append(float(predict(tracker, Network.zero(), ahead)[0]))
    assert predictions == pytest.approx([0.3 / 4] * 2)


def test_features_far_from_what_was_trained_on_are_cut():
    n = len(FEATURES)
    network = Network(np.zeros(n), np.full(n, 0.5), [(np.ones((1, n)), np.zeros(1))])
    assert network(np.full((1, n), 1.0)) == pytest.approx([2.0 * n])
    assert network(np.full((1, n), 1e6)) == pytest.approx([4.0 * n])


def test_a_network_goes_through_an_artifact():
    rng = np.random.default_rng(0)
    n = len(FEATURES)
    layers = [(rng.normal(size=(3, n)), rng.normal(size=3)), (rng.normal(size=(1, 3)), rng.normal(size=1))]
    network = Network(rng.normal(size=n), rng.uniform(1, 2, size=n), layers)
    again = Network.from_values(network.to_values())
    features = rng.normal(size=(5, n))
    assert again(features) == pytest.approx(network(features), rel=1e-6)
