"""Gated policies, shown on Learning-to-Cache: HarmoniCa decides by a table of the same kind."""

import warnings

import pytest
import torch
from toys import SmoothDiT, run_smooth, toy_session

from fsframework.core import Artifact
from fsframework.core.gates import GateTable
from fsframework.policies.harmonica import HarmoniCa
from fsframework.policies.l2c import LearningToCache

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
FACTS = {"family": "toy", "scheduler": "DDIM"}
GATES = {"joint.0": [1.0, 0.05, 1.0, 0.3], "joint.1": [1.0, 0.2, 1.0, 0.08]}
SHARES = {"joint.0": 0.5, "joint.1": 0.3}
both = pytest.mark.parametrize("policy_class", [LearningToCache, HarmoniCa])
NAMES = {LearningToCache: "l2c", HarmoniCa: "harmonica"}


def artifact(folder, policy_class=LearningToCache, gates=GATES, storage="residual", **facts):
    path = folder / "gates.json"
    values = GateTable(gates, SHARES).values("block", storage)
    Artifact(NAMES[policy_class], values, {**FACTS, "num_steps": 4, **facts}).save(path)
    return str(path)


def run(policy, num_steps=4, facts=FACTS):
    with toy_session(SmoothDiT(num_blocks=2), policy, num_steps, facts=facts) as session:
        predictions = run_smooth(session.bound.transformer, num_steps)
    return session, predictions


@both
def test_a_site_is_reused_at_the_steps_whose_gate_is_not_above_the_threshold(tmp_path, policy_class):
    path = artifact(tmp_path, policy_class)
    session, _ = run(policy_class(artifact=path))
    assert session.trace.decisions("joint.0") == "CRCC"
    assert session.trace.decisions("joint.1") == "CCCR"
    session, _ = run(policy_class(artifact=path, threshold=0.2))
    assert session.trace.decisions("joint.0") == "CRCC"
    assert session.trace.decisions("joint.1") == "CRCR"


@both
def test_gates_above_the_threshold_change_nothing(tmp_path, policy_class):
    _, expected = run(policy_class(gates=[]))
    _, found = run(policy_class(artifact=artifact(tmp_path, policy_class), threshold=0.0))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_budget_reuses_the_smallest_gates_and_no_more_than_it_needs(tmp_path):
    # Of 4 steps a cell of joint.0 saves 0.5 / 4 = 0.125 and one of joint.1 0.3 / 4 = 0.075.
    table = GateTable(GATES, SHARES)
    reused = {budget: table.within(budget, "l2c") for budget in (1.0, 0.9, 0.875, 0.8, 0.75, 0.6)}
    cells = {
        budget: [(site, step) for site, row in computes.items() for step, c in enumerate(row) if not c]
        for budget, computes in reused.items()
    }
    assert cells[1.0] == []
    assert cells[0.9] == cells[0.875] == [("joint.0", 1)]  # the smallest gate, 0.05; 0.875 is left
    assert cells[0.8] == [("joint.0", 1), ("joint.1", 3)]  # then 0.08; exactly 0.8 is left
    assert cells[0.75] == [("joint.0", 1), ("joint.1", 1), ("joint.1", 3)]  # then 0.2; 0.725 is left
    assert [table.flops_fraction(reused[budget]) for budget in (0.75, 0.6)] == pytest.approx([0.725, 0.6])


def test_the_budget_of_the_policy_is_that_of_its_artifact(tmp_path):
    session, _ = run(LearningToCache(artifact=artifact(tmp_path), budget=0.8))
    assert session.trace.decisions("joint.0") == "CRCC"
    assert session.trace.decisions("joint.1") == "CCCR"


@pytest.mark.filterwarnings("default::fsframework.core.review.ReuseWarning")
def test_a_budget_of_gates_that_were_learned_at_one_price_warns(tmp_path):
    path = artifact(tmp_path)

    def warned(options, **chosen):
        made = Artifact.load(path, "l2c")
        Artifact("l2c", made.values, made.facts, provenance={"options": options}).save(path)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run(LearningToCache(artifact=path, **chosen))
        return [str(one.message) for one in found if "learned at one price" in str(one.message)]

    one_price = {"penalty": 0.01, "final_penalty": None}
    assert "train.penalty=0.01" in warned(one_price, budget=0.8)[0]
    assert warned(one_price) == []
    assert warned({"penalty": 0.01, "final_penalty": 1.0}, budget=0.8) == []


def test_a_budget_below_what_every_learned_gate_saves_says_what_is_possible(tmp_path):
    policy = LearningToCache(artifact=artifact(tmp_path), budget=0.55)
    with pytest.raises(ValueError, match=r"budget=0.55 can not be met.*0.600 of the FLOPs are left"):
        run(policy)


def test_one_value_is_cached_per_site_that_is_ever_reused(tmp_path):
    policy = LearningToCache(artifact=artifact(tmp_path, gates={**GATES, "joint.1": [1.0, 0.9, 1.0, 0.9]}))
    session, _ = run(policy)
    assert session.cache.peak_counts() == {"joint": (1, 0)}
    (declared,) = [policy.num_cached(run) for run in session._last.runs.values()]
    assert declared == 1


@both
@pytest.mark.parametrize(
    ("facts", "num_steps", "words"),
    [
        ({"family": "other", "scheduler": "DDIM"}, 4, "family was toy, is other"),
        ({"family": "toy", "scheduler": "Euler"}, 4, "scheduler was DDIM, is Euler"),
        (FACTS, 5, "num_steps was 4, is 5"),
    ],
)
def test_an_artifact_of_another_model_sampler_or_number_of_steps_is_refused(
    tmp_path, policy_class, facts, num_steps, words
):
    with pytest.raises(ValueError, match=words):
        run(policy_class(artifact=artifact(tmp_path, policy_class)), num_steps, facts)


def test_what_is_missing_or_does_not_fit_is_to_be_trained_not_calibrated(tmp_path):
    with pytest.raises(
        ValueError, match=r"no artifact .*none.json. Make it with `fsf train CONFIG.yaml` with `train: l2c`"
    ):
        run(LearningToCache(artifact=str(tmp_path / "none.json")))
    with pytest.raises(ValueError, match=r"Train again for it: `fsf train CONFIG.yaml sampling.num_steps=5`"):
        run(LearningToCache(artifact=artifact(tmp_path)), num_steps=5)


def test_an_artifact_for_other_sites_or_storage_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none for joint.1"):
        run(LearningToCache(artifact=artifact(tmp_path, gates={"joint.0": GATES["joint.0"]})))
    with pytest.raises(ValueError, match=r"policy.storage=output"):
        run(LearningToCache(artifact=artifact(tmp_path, storage="output")))
    with pytest.raises(ValueError, match="made for the policy 'l2c', not for 'harmonica'"):
        run(HarmoniCa(artifact=artifact(tmp_path)))


@both
def test_without_gates_it_says_how_to_train_them(policy_class):
    with pytest.raises(ValueError, match=rf"fsf train CONFIG.yaml` \(train: {NAMES[policy_class]}"):
        run(policy_class())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0.0, "artifact": "a.json"}, "budget=0.0 is a fraction"),
        ({"budget": 0.5}, "budget needs an artifact"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"gates": [0.5, 1.5]}, "found 1.5"),
        ({"gates": [0.5], "artifact": "a.json"}, "give one of them"),
        ({"granularity": "layer"}, "granularity='layer' must be one of block, submodule"),
        ({"storage": "delta"}, "storage='delta' must be one of output, residual"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    for policy_class in NAMES:
        with pytest.raises(ValueError, match=words):
            policy_class(**options)


def test_submodules_are_asked_about_where_the_artifact_was_trained_on_them(tmp_path):
    path = tmp_path / "gates.json"
    gates = {f"joint.{i}.{part}": [1.0, 0.0, 1.0, 1.0] for i in range(2) for part in ("attention", "mlp")}
    Artifact("l2c", GateTable(gates, dict.fromkeys(gates, 0.2)).values("submodule", "residual"), FACTS).save(path)
    session, _ = run(LearningToCache(artifact=str(path)))
    assert [site.name for site in session.sites] == list(gates)
    assert session.trace.decisions("joint.1.mlp") == "CRCC"
