import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from pipelines import CAPTIONS
from routing import config, module_of, random_model
from torch import nn

import fsframework as fsf
from fsframework.core import Artifact, Fit, Run
from fsframework.policies.harmonica import HarmoniCa
from fsframework.policies.l2c import LearningToCache
from fsframework.train.l2c import L2COptions
from fsframework.train.learned import TRAINERS, LearnedModule
from fsframework.train.learned_config import (
    LearnedConfig,
    PromptsConfig,
    SeedRange,
    ValidationConfig,
    load_learned_config,
    options_of,
    trains_a_policy,
)
from fsframework.train.learned_fit import learn

TRAINED = {"l2c": LearningToCache, "harmonica": HarmoniCa}
every_router = pytest.mark.parametrize("trainer", TRAINED)
pytestmark = [
    pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning"),
    pytest.mark.filterwarnings("ignore:Found 1 module"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return random_model()


def weights_of(model):
    return {
        f"{name}.{key}": value.clone()
        for name, part in model.pipe.components.items()
        if isinstance(part, nn.Module)
        for key, value in part.state_dict().items()
    }


# Config.


def write(folder, text):
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def test_a_file_with_the_key_train_is_for_a_policy(tmp_path):
    assert trains_a_policy(write(tmp_path, "train: l2c\n"))
    assert not trains_a_policy(write(tmp_path, "family: latte\n"))


def test_file_and_overrides_come_over_the_defaults(tmp_path):
    path = write(tmp_path, "train: {name: l2c, interval: 3}\nmodel: tiny-latte\nprompts: [a, b]\n")
    made = load_learned_config(path, ["num_iterations=7", "train.penalty=0.5", "validation.prompts=digits"])
    assert (made.num_iterations, made.model.name, made.prompts.texts) == (7, "tiny-latte", ["a", "b"])
    assert made.validation.prompts.set == "digits"
    assert options_of(L2COptions, made) == L2COptions(interval=3, penalty=0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {}\n", "train needs the name of a trainer"),
        ("train: l2c\nlearning_rat: 1\n", "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
        ("train: l2c\nvalidation: {evry: 1}\n", "unknown key 'validation.evry'. Did you mean 'every'?"),
        ("train: l2c\nnum_iterations: many\n", "num_iterations: Value 'many'"),
        ("train: l2c\nnum_iterations: 0\n", "num_iterations=0 must be at least 1"),
        ("train: l2c\nlearning_rate: 0\n", "learning_rate=0.0 must be above 0"),
        ("train: l2c\nprecision: 16-mixed\n", "precision='16-mixed' is not possible"),
        ("train: l2c\nbatch_clips: 3\nnum_processes: 2\n", "batch_clips=3 can not be shared by num_processes=2"),
        ("train: l2c\nvalidation: {patience: 2}\n", "set validation.every"),
        ("train: l2c\nartifact: a.pt\n", "must be a .json file"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, words):
    with pytest.raises(ValueError) as error:
        load_learned_config(write(tmp_path, text), [])
    assert words in str(error.value)


def test_a_mistake_under_train_is_named(tmp_path):
    made = LearnedConfig(train={"name": "l2c", "intervall": 3})
    with pytest.raises(ValueError, match=r"unknown key 'train.intervall'. Did you mean 'interval'"):
        options_of(L2COptions, made)
    with pytest.raises(ValueError, match="train.interval=1 must be at least 2"):
        options_of(L2COptions, LearnedConfig(train={"name": "l2c", "interval": 1}))


def test_an_unknown_trainer_and_clips_that_are_learned_and_validated_on_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"unknown trainer 'l2d'. Did you mean 'l2c'"):
        learn(config(tmp_path, "l2d"), model)
    both = ValidationConfig(every=1, prompts=PromptsConfig(texts=CAPTIONS[:1]), seeds=SeedRange(base=0))
    with pytest.raises(ValueError, match="validation has clips that are learned from"):
        learn(config(tmp_path, validation=both), model)
    assert not list(tmp_path.iterdir())


# Training.


@every_router
def test_gradients_reach_the_router_only_and_the_model_stays_as_it_was(tmp_path, model, trainer):
    before = weights_of(model)
    module = module_of(tmp_path, model, config(tmp_path, trainer))
    module.loss(0).backward()
    gradient = module.router.theta_TM.grad
    gated = module.router.gated_T
    assert bool((gradient[gated] != 0).all())
    assert not gradient[~gated].any()
    assert all(
        p.grad is None
        for part in model.pipe.components.values()
        if isinstance(part, nn.Module)
        for p in part.parameters()
    )
    learn(config(tmp_path, trainer), model)
    after = weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "forward" not in vars(model.transformer)


@pytest.mark.parametrize("trainer", [pytest.param("l2c", marks=pytest.mark.slow), "harmonica"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, monkeypatch, trainer):
    options = {"importance_every": 1} if trainer == "harmonica" else {}
    changes = {
        "num_iterations": 3,
        "validation": ValidationConfig(every=2, prompts=PromptsConfig(texts=CAPTIONS[2:3])),
    }
    model = random_model(num_steps=3)
    whole = learn(config(tmp_path / "whole", trainer, options, **changes), model)
    trainer_class = TRAINERS[trainer]
    healthy = trainer_class.loss

    def power_cut(self, step):
        if step == 2:
            raise KeyError("power cut")
        return healthy(self, step)

    monkeypatch.setattr(trainer_class, "loss", power_cut)
    with pytest.raises(KeyError, match="power cut"):
        learn(config(tmp_path / "killed", trainer, options, **changes), model)
    monkeypatch.undo()
    torch.manual_seed(1234)  # the global random state is no part of a training
    resumed = learn(config(tmp_path / "killed", trainer, options, **changes), model)
    assert resumed.fit.values == whole.fit.values
    assert resumed.fit.numbers == whole.fit.numbers
    artifacts = [Artifact.load(learned.artifact, trainer) for learned in (whole, resumed)]
    assert artifacts[0].digest == artifacts[1].digest, "what the policy will see"
    checkpoints = [torch.load(tmp_path / d / f"{trainer}.ckpt", weights_only=False) for d in ("whole", "killed")]
    for key, value in checkpoints[0]["state_dict"].items():
        assert torch.equal(value, checkpoints[1]["state_dict"][key]), key
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds_per_step"} for line in text.splitlines()]
        for text in [(tmp_path / d / "metrics.jsonl").read_text() for d in ("whole", "killed")]
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [1, 2, 2, 3]  # a row per iteration, and one of the validation


def test_a_finished_training_given_again_changes_nothing_and_one_with_other_settings_is_refused(tmp_path, model):
    first = learn(config(tmp_path), model)
    again = learn(config(tmp_path, log_every=5), model)
    assert again.fit.values == first.fit.values
    assert again.cost["iterations"] == 2
    with pytest.raises(ValueError, match=r"other settings: learning_rate was 0.1, is 0.2"):
        learn(config(tmp_path, learning_rate=0.2), model)
    with pytest.raises(ValueError, match=r"other settings: train was .*interval"):
        learn(config(tmp_path, options={"interval": 3}), model)


@pytest.mark.parametrize(
    ("trainer", "granularity"),
    [
        ("l2c", "submodule"),
        ("harmonica", "block"),
        pytest.param("l2c", "block", marks=pytest.mark.slow),
        pytest.param("harmonica", "submodule", marks=pytest.mark.slow),
    ],
)
def test_the_artifact_runs_as_an_ordinary_policy_within_its_budget(tmp_path, model, trainer, granularity):
    learned = learn(config(tmp_path, trainer, {"granularity": granularity}, num_iterations=1), model)
    artifact = Artifact.load(learned.artifact, trainer)
    assert artifact.facts["num_steps"] == 4
    assert artifact.facts["scheduler"] == "DDIMScheduler"
    assert artifact.provenance["clips"][0] == {"prompt": CAPTIONS[0], "seed": 0}
    names = [site for site in artifact.values["gates"]]
    assert (".mlp" in names[-1]) == (granularity == "submodule")
    policy = TRAINED[trainer](artifact=str(learned.artifact), budget=0.8)
    with fsf.reuse(model.pipe, policy) as session:
        model.generate_latents(CAPTIONS[2], 9)
    summary = session.summary()
    largest = max(artifact.values["flops_share"].values()) / 4
    assert 0.8 - largest <= 1 - summary["flops_saved"] <= 0.8 + 1e-9
    with pytest.raises(ValueError, match="num_steps was 4, is 5"), fsf.reuse(model.pipe, policy):
        model.generate_latents(CAPTIONS[2], 9, num_steps=5)


def test_early_stopping_stops_when_the_measured_value_grows_no_better_and_stays_stopped(tmp_path, model, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 1.99, 1.0, 0.5])
    monkeypatch.setattr(TRAINERS["l2c"], "validate", lambda self: {"validation": next(values)})
    stop = ValidationConfig(every=1, prompts=PromptsConfig(texts=CAPTIONS[2:3]), patience=2, min_change=0.1)
    made = config(tmp_path, num_iterations=6, validation=stop)
    assert learn(made, model).cost["iterations"] == 4  # 2.5 and 1.99 are not 0.1 better than 2.0
    assert learn(made, model).cost["iterations"] == 4
    assert next(values) == 1.0


@pytest.mark.slow
def test_mixed_precision_learns_nearly_the_same(tmp_path, model):
    exact = learn(config(tmp_path / "exact"), model).fit.values["gates"]
    mixed = learn(config(tmp_path / "mixed", precision="bf16-mixed"), model).fit.values["gates"]
    assert exact != mixed
    for site, gates in exact.items():
        assert mixed[site] == pytest.approx(gates, abs=0.02)


def test_a_trainer_of_ones_own_is_registered_and_found_by_name(tmp_path, model):
    @dataclasses.dataclass
    class Options:
        target: float = 2.0

    class Mean(LearnedModule):
        options_class, policy = Options, "l2c"

        def __init__(self, learning):
            super().__init__(learning, nn.Linear(1, 1, bias=False))
            nn.init.zeros_(self.networks.weight)

        run = Run(4, (1.0, 0.5, 0.25, 0.1), ())

        def loss(self, step):
            return (self.networks.weight - self.learning.options.target).square().sum()

        def result(self):
            weight = self.networks.weight.item()
            return Fit({"weight": weight}, {"weight": weight})

    TRAINERS.register("mean-of-a-test")(Mean)
    try:
        learned = learn(config(tmp_path, "mean-of-a-test", num_iterations=5), model)
    finally:
        del TRAINERS._entries["mean-of-a-test"]
    assert learned.fit.numbers["weight"] == pytest.approx(0.5, abs=0.01)  # five steps of 0.1 by Adam
    assert Artifact.load(learned.artifact, "l2c").values == learned.fit.values


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "sys.path[:0] = sys.argv[3:]\n"
        "from routing import config, random_model\n"
        "from fsframework.train.learned_fit import learn\n"
        "torch.set_num_threads(1)\n"
        "changes = {'batch_clips': 2, 'num_processes': int(sys.argv[2])}\n"
        "learn(config(sys.argv[1], 'harmonica', {'importance_every': 1}, **changes), random_model())\n"
    )
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        command = [sys.executable, str(script), str(folder), str(count), *[p for p in sys.path if "tests" in p]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        found[count] = json.loads((folder / "artifact.json").read_text())["values"]
    for site, gates in found[1]["gates"].items():
        assert found[2]["gates"][site] == pytest.approx(gates, abs=1e-4)
    assert found[2]["importance"] == pytest.approx(found[1]["importance"], rel=1e-3)
