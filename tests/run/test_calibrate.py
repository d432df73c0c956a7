import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fsframework.cli import main
from fsframework.config import load_config
from fsframework.core import POLICIES, Artifact, Curve, Fit, HeatMap, ReusePolicy
from fsframework.models.loading import load_model
from fsframework.policies import FullCompute
from fsframework.run import calibrate as module
from fsframework.run import launch
from fsframework.run.calibrate import calibrate
from fsframework.run.calibrate_map import DARKEST, LIGHTEST
from fsframework.run.calibrate_picture import picture
from fsframework.run.calibrate_store import Records
from fsframework.run.catalog import list_policies
from fsframework.run.resolve import artifacts_of, load_plugin, policy_options, with_artifacts
from fsframework.run.runner import run

RAMP = Path(__file__).with_name("ramp.py")
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


def options_for(overrides: list[str], folder: Path) -> list[str]:
    """Two clips of 4 steps, three rollouts each: "full", "every 2", "every 3"."""
    return [
        *[text for text in overrides if not text.startswith(("policy.", "name="))],
        "policy=ramp",
        "sampling.num_steps=4",
        "prompts.limit=2",
        f"plugins=[{RAMP}]",
        f"output.artifact={folder / 'ramp.json'}",
    ]


@pytest.fixture
def options(overrides, tmp_path):
    return options_for(overrides, tmp_path)


@pytest.fixture(scope="module")
def once(overrides_below, loaded_model, tmp_path_factory):
    """A calibration that was finished, and its result."""
    folder = tmp_path_factory.mktemp("once")
    return calibrate(load_config(None, options_for(overrides_below(folder), folder)), loaded_model)


@pytest.fixture
def finished(once, tmp_path):
    """A copy of it for a test of its own, where `options` put it."""
    shutil.copytree(once.artifact.parent, tmp_path, dirs_exist_ok=True)
    moved = lambda path: tmp_path / path.relative_to(once.artifact.parent)
    return dataclasses.replace(
        once, artifact=moved(once.artifact), picture=moved(once.picture), records=moved(once.records)
    )


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """The policy's name is known also where no config brings the plugin, and forgotten in the end."""
    load_plugin(RAMP)
    yield
    del POLICIES._entries["ramp"]


def record_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.json") if p.name != "key.json")


def count_videos(monkeypatch) -> list[tuple[str, int]]:
    """(prompt, seed) of every video that is generated from here on, filled in as they are."""
    from fsframework.core import LoadedModel

    made: list[tuple[str, int]] = []
    original = LoadedModel.generate_latents

    def generate(self, prompt, seed, **sampling):
        latents = original(self, prompt, seed, **sampling)
        made.append((prompt, seed))
        return latents

    monkeypatch.setattr(LoadedModel, "generate_latents", generate)
    return made


def test_latents_are_those_the_video_is_decoded_from(loaded_model):
    sampling = dict(num_steps=2, height=16, width=16, num_frames=8)
    latents = loaded_model.generate_latents("digit 6 is moving up and down", 3, **sampling)
    video = loaded_model.generate("digit 6 is moving up and down", 3, **sampling)
    assert latents.dtype == torch.float32
    assert latents.shape[0] == 1
    with torch.no_grad():
        frames = loaded_model.pipe.decode_latents(latents, 8, decode_chunk_size=14)
    expected = loaded_model.pipe.video_processor.postprocess_video(video=frames, output_type="pt")[0]
    assert torch.equal(expected.permute(0, 2, 3, 1).clamp(0, 1), video)


def test_the_artifact_says_what_was_measured_on_which_run_and_from_what(finished, tmp_path):
    result = finished
    assert result.artifact == tmp_path / "ramp.json"
    artifact = Artifact.load(result.artifact, "ramp")
    assert len(artifact.values["changes"]) == 4
    assert artifact.values["changes"][0] == 0
    assert all(change > 0 for change in artifact.values["changes"][1:])
    assert artifact.values["errors"]["full"] == 0
    assert 0 < artifact.values["errors"]["every 2"] < artifact.values["errors"]["every 3"]
    assert artifact.facts["family"] == "latte"
    assert artifact.facts["num_steps"] == len(artifact.facts["timesteps"]) == 4
    assert artifact.facts["latent_shape"] == [2, 4, 8, 8, 8]  # two guidance halves
    assert "device" not in artifact.facts
    source = artifact.provenance
    assert [clip["seed"] for clip in source["clips"]] == [0, 1]
    assert source["model"]["fingerprint"]
    assert source["sampler"]["class"] == artifact.facts["scheduler"]
    assert source["sampling"]["num_steps"] == 4
    assert source["policy_options"]["longest"] == 3
    assert source["rollouts"]["every 2"] == {"class": "Every", "interval": 2}
    assert source["numbers"] == {"mean_change": pytest.approx(sum(artifact.values["changes"]) / 4)}
    assert source["environment"]["versions"]["torch"]
    assert len(record_files(result.records)) == 2 * 3
    assert not (result.records / "reference_latents").exists()
    assert ElementTree.fromstring(result.picture.read_text()).tag.endswith("svg")
    assert f"policy: {{name: ramp, artifact: {result.artifact}}}" in result.text()
    assert "mean_change" in result.text()
    changes = artifact.values["changes"]
    assert result.recomputed_steps == 1 + sum(change > 0.1 for change in changes[1:])
    assert result.wanting is None


def test_the_records_are_of_the_right_rollout_and_clip(finished):
    found = [json.loads(path.read_text()) for path in record_files(finished.records)]
    assert {(r["rollout"], r["seed"]) for r in found} == {
        (name, seed) for name in ("full", "every 2", "every 3") for seed in (0, 1)
    }
    assert len({r["record"]["error"] for r in found if r["rollout"] != "full"}) == 4


def test_where_the_artifact_goes_by_default_depends_on_all_that_decides_it(
    options, loaded_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = [text for text in options if not text.startswith("output.artifact")] + ["prompts.limit=1"]
    first = calibrate(load_config(None, options), loaded_model)
    assert first.artifact.parent == Path("artifacts")
    assert first.artifact.name.startswith("ramp-random-latte-4steps-")
    assert calibrate(load_config(None, options), loaded_model).artifact == first.artifact
    other = calibrate(load_config(None, [*options, "policy.threshold=0.2"]), loaded_model)
    assert other.artifact != first.artifact
    assert other.records == first.records  # the fit alone reads the threshold


def test_a_calibration_in_a_yaml_file_of_a_run_writes_the_artifact_the_run_will_read(options, loaded_model, tmp_path):
    options = [text for text in options if not text.startswith(("output.artifact", "policy"))]
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "run.yaml").write_text("policy: {name: ramp, artifact: mine.json}\n")
    result = calibrate(load_config(folder / "run.yaml", options), loaded_model)
    assert result.artifact == folder / "mine.json"
    assert run(load_config(folder / "run.yaml", [*options, "metrics=[psnr]"]), loaded_model)


def test_stopped_in_the_middle_it_goes_on_without_making_a_record_twice(
    options, finished, loaded_model, monkeypatch, capsys
):
    unbroken = finished
    values = Artifact.load(unbroken.artifact, "ramp").values
    for path in record_files(unbroken.records):
        path.unlink()
    unbroken.artifact.unlink()
    made = count_videos(monkeypatch)
    original = module._rollout

    def stop_at_the_fourth(*args, **kwargs):
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "_rollout", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        calibrate(load_config(None, options), loaded_model)
    assert len(made) == 3
    assert "stopped with 3 of 6 records" in capsys.readouterr().err
    assert not unbroken.artifact.exists()
    assert len(list((unbroken.records / "reference_latents").iterdir())) == 2
    monkeypatch.setattr(module, "_rollout", original)
    calibrate(load_config(None, options), loaded_model)
    assert len(made) == 6
    assert Artifact.load(unbroken.artifact, "ramp").values == values


def test_ranks_share_clips_and_rollouts_and_come_to_the_same_artifact(options, finished, pipeline_folder, monkeypatch):
    values = Artifact.load(finished.artifact, "ramp").values
    for path in record_files(finished.records):
        path.unlink()
    finished.artifact.unlink()
    made = count_videos(monkeypatch)
    rank, barrier = threading.local(), threading.Barrier(2)

    class Threads(launch.World):
        """Two threads in place of two processes."""

        def barrier(self) -> None:
            barrier.wait(120)

        @contextmanager
        def together(self):
            yield
            self.barrier()

    monkeypatch.setattr(module.launch, "start", lambda count, device: Threads(rank.number, 2))
    plan = module.make_plan(load_config(None, options))
    monkeypatch.setattr(module, "make_plan", lambda config: plan)
    counts = [0, 0]
    models = [load_model(str(pipeline_folder)) for _ in range(2)]

    def work(number: int) -> None:
        rank.number = number
        calibrate(load_config(None, options), models[number])

    original = module._rollout

    def counted(job, *arguments):
        counts[job.world.rank] += 1
        return original(job, *arguments)

    monkeypatch.setattr(module, "_rollout", counted)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, number) for number in range(2)]:
            done.result(timeout=120)
    assert counts == [3, 3]
    assert len(made) == 6
    assert Artifact.load(finished.artifact, "ramp").values == values


def test_a_damaged_record_is_made_again_with_its_reference(options, finished, loaded_model, monkeypatch):
    result = finished
    values = Artifact.load(result.artifact, "ramp").values
    (damaged,) = [
        path for path in record_files(result.records) if path.name.startswith("every-2") and "seed1" in path.name
    ]
    damaged.write_text(damaged.read_text()[:40])
    made = count_videos(monkeypatch)
    calibrate(load_config(None, options), loaded_model)
    assert [seed for _, seed in made] == [1, 1]  # the reference's latents were dropped when all was done
    assert Artifact.load(result.artifact, "ramp").values == values


def test_more_prompts_take_over_the_records_there_are_and_another_fit_generates_nothing(
    options, finished, loaded_model, monkeypatch
):
    made = count_videos(monkeypatch)
    again = calibrate(load_config(None, [*options, "policy.threshold=0.5"]), loaded_model)
    assert made == []
    assert again.records == finished.records
    more = calibrate(load_config(None, [*options, "prompts.limit=3"]), loaded_model)
    assert [seed for _, seed in made] == [2, 2, 2]
    assert len(Artifact.load(more.artifact, "ramp").provenance["clips"]) == 3
    shorter = calibrate(load_config(None, [*options, "policy.longest=2", "prompts.limit=1"]), loaded_model)
    assert shorter.records != more.records


def test_a_run_with_the_artifact_keeps_a_copy_and_is_named_by_its_content(
    options, finished, loaded_model, tmp_path, monkeypatch
):
    result = finished
    base = [text for text in options if not text.startswith("output.artifact")] + ["prompts.limit=1"]

    def go(path: Path) -> Path:
        return run(load_config(None, [*base, f"policy.artifact={path}", "policy.threshold=0.2"]), loaded_model)

    folder = go(result.artifact)
    copy = folder / "artifacts" / "ramp.json"
    assert copy.read_text() == result.artifact.read_text()
    elsewhere = tmp_path / "elsewhere.json"
    content = json.loads(result.artifact.read_text())
    elsewhere.write_text(json.dumps({**content, "provenance": {}}))
    assert go(elsewhere) == folder
    content["values"]["changes"][3] *= 2
    elsewhere.write_text(json.dumps(content))
    assert go(elsewhere) != folder
    # The kept config repeats the run, whatever became of the original.
    result.artifact.unlink()
    monkeypatch.delitem(POLICIES._entries, "ramp")  # a new process, with the run's copy of the plugin
    assert run(load_config(folder / "config.yaml"), loaded_model) == folder


def test_a_run_that_the_artifact_does_not_fit_is_refused_before_anything_is_written(
    options, finished, loaded_model, tmp_path
):
    result = finished
    base = [text for text in options if not text.startswith("output.artifact")]
    with_artifact = [*base, f"policy.artifact={result.artifact}", "prompts.limit=1"]
    for change, words in (
        ("sampling.num_steps=5", "num_steps was 4, is 5"),
        ("sampling.height=24", "latent_shape was"),
    ):
        with pytest.raises(ValueError, match=words):
            run(load_config(None, [*with_artifact, change]), loaded_model)
    assert not (tmp_path / "runs").exists()
    # One sample instead of two guidance halves is the same model all the same.
    assert run(load_config(None, [*with_artifact, "sampling.guidance_scale=1"]), loaded_model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("policy=static", "the policy 'static' needs no calibration. Those that can be calibrated: "),
        (
            "policy={name: forecast, base: {name: teacache}}",
            "the policy 'forecast' reads no artifact itself; calibrate the one inside it. Those that can be calibrated: ",
        ),
        ("policy.longst=3", "Did you mean 'longest'"),
        ("output.artifact=ramp.pt", "an artifact is a .json file; found 'ramp.pt'"),
        ("sampling.height=17", "can not generate with"),
        ("prompts.set=nothing.txt", "no such prompt file"),
    ],
)
def test_a_mistake_is_said_before_anything_is_written(options, loaded_model, tmp_path, change, words):
    options = [text for text in options if not text.startswith("prompts.texts")] + [change]
    with pytest.raises(ValueError, match=words):
        calibrate(load_config(None, options), loaded_model)
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ramp.json", '{"important": 1}', "ramp.json exists and is no artifact; choose another output.artifact"),
        (
            "ramp.json",
            '{"policy": "teacache", "values": {}, "facts": {}, "version": 1}',
            "is an artifact of teacache, not",
        ),
        ("ramp.svg", "<svg/>", "ramp.svg exists and is no picture of a calibration"),
    ],
)
def test_what_is_not_its_own_is_not_replaced_and_that_is_said_before_anything_is_generated(
    options, loaded_model, tmp_path, monkeypatch, name, content, words
):
    (tmp_path / name).write_text(content)
    made = count_videos(monkeypatch)
    with pytest.raises(ValueError, match=words):
        calibrate(load_config(None, [*options, "prompts.limit=1"]), loaded_model)
    assert (tmp_path / name).read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert made == []


def test_that_the_artifact_of_another_run_is_replaced_is_said(options, finished, loaded_model):
    assert finished.replaced is None
    assert calibrate(load_config(None, options), loaded_model).replaced is None  # the same again
    result = calibrate(load_config(None, [*options, "sampling.num_steps=3", "prompts.limit=1"]), loaded_model)
    assert f"note: {result.artifact} held an artifact of num_steps 4 (now 3); that is replaced" in result.text()


def test_a_run_from_which_nothing_can_follow_is_refused_before_anything_is_generated(
    options, loaded_model, tmp_path, monkeypatch
):
    def check(self, run, num_clips):
        raise ValueError(f"ramp: {num_clips} clips of {run.num_steps} steps are too few")

    original = module.make_plan

    def make_plan(config):
        plan = original(config)
        monkeypatch.setattr(type(plan.policy.calibration()), "check", check, raising=False)
        return plan

    monkeypatch.setattr(module, "make_plan", make_plan)
    made = count_videos(monkeypatch)
    with pytest.raises(ValueError, match="ramp: 2 clips of 4 steps are too few"):
        calibrate(load_config(None, options), loaded_model)
    assert made == []
    assert not list(tmp_path.iterdir())


def test_a_second_calibration_at_the_same_time_is_refused(tmp_path):
    key, folder = {"a": 1}, tmp_path / "records"
    with Records(folder).opened(key):
        (folder / ".half.json.tmp").touch()  # the first is just writing it
        with (
            pytest.raises(ValueError, match="another calibration is writing its records to"),
            Records(folder).opened(key),
        ):
            pass
        assert (folder / ".half.json.tmp").exists()
    with Records(folder).opened(key):
        assert [p.name for p in folder.iterdir()] == ["key.json"]


def test_a_folder_that_is_not_there_is_made_and_said_once(tmp_path, capsys):
    folder = tmp_path / "artefacts" / "latte"
    for said in (f"made the folder {folder}\n", ""):
        with Records(folder / "_records" / "ramp-latte").opened({"a": 1}):
            assert capsys.readouterr().err == said
    assert (folder / "_records" / "ramp-latte" / "key.json").is_file()


def test_stopped_before_the_first_record_it_says_so(options, loaded_model, monkeypatch, capsys):
    def interrupted(plan, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(load_config(None, options), loaded_model)
    assert "stopped before the first record; the same command begins again." in capsys.readouterr().err


def test_the_command_that_is_kept_asks_for_the_same_whatever_called(options, finished, tmp_path):
    command = Artifact.load(finished.artifact, "ramp").provenance["environment"]["command"]
    assert command[:3] == ["fsf", "calibrate", "ramp"]
    again, asked = load_config(None, ["policy=ramp", f"model={command[3]}", *command[4:]]), load_config(None, options)
    assert {"sampling.num_steps=4", "prompts.limit=2", f"plugins={json.dumps([str(RAMP)])}"} <= set(command[4:])
    for section in ("model", "policy", "sampling", "prompts", "seeds", "engine", "launch", "plugins"):
        assert getattr(again, section) == getattr(asked, section), section


@pytest.mark.parametrize(
    ("method", "gives", "words"),
    [
        ("fit", Fit({"changes": [0.0, float("nan")]}), r"the fit of ramp gave nan for values.changes\[1\]"),
        ("fit", Fit({"changes": torch.zeros(2)}), "the fit of ramp is not JSON: .*Tensor"),
        ("record", {"latents": torch.zeros(1)}, "the record of the rollout 'full' is not JSON: .*Tensor"),
        ("rollouts", {}, "the calibration of ramp names no rollout"),
    ],
)
def test_what_can_not_be_kept_makes_no_artifact(options, loaded_model, monkeypatch, method, gives, words):
    original = module.make_plan

    def make_plan(config):
        plan = original(config)
        sound = plan.policy.calibration()
        broken = type("Broken", (type(sound),), {method: lambda self, *arguments: gives})
        monkeypatch.setattr(type(plan.policy), "calibration", lambda self: broken(2))
        return plan

    monkeypatch.setattr(module, "make_plan", make_plan)
    config = load_config(None, [*options, "prompts.limit=1"])
    with pytest.raises(ValueError, match=words):
        calibrate(config, loaded_model)
    assert not Path(config.output.artifact).exists()


def test_curves_with_the_same_labels_share_a_panel_and_what_is_not_finite_is_left_out():
    curves = [
        Curve("a", [0, 1, 2], [1.0, float("nan"), 3.0], "step", "change"),
        Curve("b", [0, 1, 2], [2.0, 2.0, 2.0], "step", "change"),
        Curve("c, without labels of its own", [0, 1], [0.0, 1.0]),
        Curve("cloud", [1e-4, 1.0], [5, 5], "x", "y", is_line=False),
        Curve("empty", [], [], "x2", "y2"),
    ]
    text = picture(Fit({}, {}, curves), "t <1>", "s")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == 3
    assert "nan" not in text
    lines = [p.get("d") for p in root.iter(f"{space}path") if p.get("class") == "line"]
    assert [d.count("L") for d in lines] == [1, 2, 1]
    assert "10⁻⁴" in text  # a logarithmic axis


def test_of_many_curves_in_a_panel_the_first_and_the_last_are_named():
    curves = [Curve(f"block {i}", [0, 1], [i, i + 1], "step", "change") for i in range(56)]
    text = picture(Fit({}, {}, curves), "t", "s")
    assert "block 0  (one of 56" in text
    assert "block 55" in text
    assert "block 7 " not in text


def test_what_the_policy_wants_besides_the_artifact_is_said(options, finished, loaded_model, monkeypatch):
    original = module.make_plan

    def make_plan(config):
        plan = original(config)

        def start(self, run):
            raise ValueError("ramp: set threshold yourself.")

        monkeypatch.setattr(type(plan.policy), "start", start)
        return plan

    monkeypatch.setattr(module, "make_plan", make_plan)
    text = calibrate(load_config(None, options), loaded_model).text()
    assert "note: the artifact alone is not enough: ramp: set threshold yourself." in text


def test_the_line_to_use_it_has_the_options_it_was_made_with_and_those_the_fit_proposes(
    options, finished, loaded_model, monkeypatch
):
    original = module.make_plan

    def make_plan(config):
        plan = original(config)
        kind, sound = type(plan.policy), type(plan.policy.calibration()).fit
        start = kind.start

        def needs_more(self, run):
            if self.threshold != 0.25:
                raise ValueError("ramp: set threshold yourself.")
            return start(self, run)

        def fit(self, records, run):
            return dataclasses.replace(sound(self, records, run), proposed={"threshold": 0.25})

        monkeypatch.setattr(kind, "start", needs_more)
        monkeypatch.setattr(type(plan.policy.calibration()), "fit", fit)
        return plan

    monkeypatch.setattr(module, "make_plan", make_plan)
    result = calibrate(load_config(None, [*options, "policy.longest=3"]), loaded_model)
    assert f"{{name: ramp, artifact: {result.artifact}, longest: 3, threshold: 0.25}}" in result.text()
    assert "set threshold yourself" in result.text()
    assert result.recomputed_steps is not None


def test_an_axis_is_logarithmic_over_a_wide_range_but_not_along_steps():
    wide = [
        Curve("limit", [1, 49], [2.5, 2.5], "step", "change"),
        Curve("change", [1, 2], [0.04, 0.2], "step", "change"),
    ]
    text = picture(Fit({}, {}, wide), "t", "settings\nfit: numbers")
    assert "10⁻¹" in text
    assert ">20<" in text  # of the steps
    assert ">settings<" in text
    assert ">fit: numbers<" in text


def test_a_map_has_a_square_for_every_number_darker_for_more_and_none_for_nan():
    heat = HeatMap("gates", {"a": [0.0, 0.5, 1.0], "b & c": [float("nan"), 1.0, 2.0]}, low=0.0, high=1.0)
    root = ElementTree.fromstring(picture(Fit({}, maps=[heat]), "t", "s"))
    squares = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == "square"]
    assert [r.find("{http://www.w3.org/2000/svg}title").text for r in squares] == [
        "a, step 0: 0", "a, step 1: 0.5", "a, step 2: 1", "b & c, step 1: 1", "b & c, step 2: 2",
    ]  # fmt: skip
    colours = [r.get("fill") for r in squares]
    assert colours == [
        LIGHTEST,
        "#" + _between(LIGHTEST, DARKEST),
        DARKEST,
        DARKEST,
        DARKEST,
    ]  # 2 is cut to the highest


def _between(light, dark):
    return "".join(f"{round((int(light[i : i + 2], 16) + int(dark[i : i + 2], 16)) / 2):02x}" for i in (1, 3, 5))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A YAML file in one folder, and the shell in another."""
    (tmp_path / "study").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "study"


def test_the_path_of_an_artifact_is_relative_to_the_yaml_file_and_else_to_where_one_is(study):
    config = study / "run.yaml"
    config.write_text("policy: {name: ramp, artifact: a.json}\n")
    assert load_config(config).policy["artifact"] == str(study / "a.json")  # neither is there
    (study.parent / "here" / "a.json").touch()
    assert load_config(config).policy["artifact"] == str(study.parent / "here" / "a.json")
    (study / "a.json").touch()
    assert load_config(config).policy["artifact"] == str(study / "a.json")
    assert load_config(config, [f"policy.artifact={study / 'b.json'}"]).policy["artifact"] == str(study / "b.json")
    assert load_config(None, ["policy={name: ramp, artifact: a.json}"]).policy["artifact"] == str(
        Path("a.json").absolute()
    )


def test_the_policies_inside_a_policy_have_their_artifacts_found_too(study):
    config = study / "run.yaml"
    config.write_text(
        "policy: {name: x, when: {name: ramp, artifact: a.json}, more: [{name: ramp, artifact: b.json}, full]}\n"
    )
    policy = load_config(config).policy
    assert policy["when"]["artifact"] == str(study / "a.json")
    assert policy["more"] == [{"name": "ramp", "artifact": str(study / "b.json")}, "full"]


def test_the_options_and_the_digest_of_a_run_see_through_to_the_artifacts_of_inner_policies(finished):
    inner = POLICIES["ramp"](artifact=str(finished.artifact))

    @dataclasses.dataclass(frozen=True)
    class Outer(ReusePolicy[None]):
        policy_fields = ("first", "rest")
        first: object = inner
        rest: tuple[object, ...] = (FullCompute(), inner)

        def decide(self, state, call, site): ...

    found = artifacts_of(Outer())
    assert list(found) == [str(finished.artifact)]
    options = with_artifacts(policy_options(Outer()), {path: artifact.digest for path, artifact in found.items()})
    assert options["first"]["artifact"] == options["rest"][1]["artifact"] == found[str(finished.artifact)].digest
    assert options["rest"][0] == {"name": "full"}


def test_the_list_of_policies_says_which_can_be_calibrated(capsys):
    assert main(["list", "policies", str(RAMP)]) == 0
    assert "fsf calibrate ramp MODEL" in capsys.readouterr().out
    listed = {entry.name: entry for entry in list_policies()}
    assert not listed["static"].is_calibrated
    for name, entry in listed.items():
        measured = POLICIES[name].calibration is not ReusePolicy.calibration
        assert entry.is_calibrated == (measured and any(option.name == "artifact" for option in entry.options)), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ramp"], "which model? fsf calibrate ramp MODEL"),
        (["ramp", "seeds.base=1"], "which model?"),
        (["rampp", "tiny-latte"], "unknown policy 'rampp'. Did you mean 'ramp'"),
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
        (["ramp", "tiny-latte", "seeds.bass=1"], "unknown key 'seeds.bass'. Did you mean 'seeds.base'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_the_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    text = capsys.readouterr().out
    assert "fsf calibrate POLICY MODEL" in text
    assert "fsf calibrate teacache tiny-latte prompts.limit=16" in text


# As a user starts it.


def command(options: list[str], *more: str) -> list[str]:
    model = next(text.partition("=")[2] for text in options if text.startswith("model.name="))
    rest = [text for text in options if not text.startswith(("model.name", "policy="))]
    return [sys.executable, "-m", "fsframework", "calibrate", "ramp", model, *rest, *more]


def finish(arguments: list[str]) -> subprocess.CompletedProcess:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_artifact(options, tmp_path):
    options = [*options, "prompts.limit=3", "seeds.per_prompt=2"]
    once = tmp_path / "once.json"
    finish(command([*options, f"output.artifact={once}"]))
    values = Artifact.load(once, "ramp").values
    arguments = command([*options, f"output.artifact={tmp_path / 'killed' / 'ramp.json'}"])
    for wanted in (3, 9):
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        deadline = time.monotonic() + 120
        count = lambda: len(list((tmp_path / "killed").glob("_records/*/*seed*.json")))
        while count() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "stopped too late to test anything"
        assert not (tmp_path / "killed" / "ramp.json").exists()
    finish(arguments)
    assert Artifact.load(tmp_path / "killed" / "ramp.json", "ramp").values == values


@pytest.mark.slow
def test_two_processes_come_to_the_same_artifact_as_one(options, tmp_path):
    found = []
    for number in (1, 2):
        path = tmp_path / str(number) / "ramp.json"
        done = finish(command([*options, f"output.artifact={path}", f"launch.num_processes={number}"]))
        assert done.stdout.count("use it: ") == 1, "the first process alone speaks"
        found.append(Artifact.load(path, "ramp"))
    assert found[0].values == found[1].values
    assert found[0].digest == found[1].digest


@pytest.mark.slow
def test_the_shipped_tiny_model_is_calibrated_and_run_from_the_command_line(tmp_path):
    artifact = tmp_path / "ramp.json"
    options = ["model.name=tiny-latte", "sampling.num_steps=5", "prompts.limit=2", f"plugins=[{RAMP}]"]
    done = finish(command(options, f"output.artifact={artifact}", "launch.num_threads=1", "policy.longest=2"))
    assert "ramp calibrated on tiny-latte: 2 clips of 5 steps, 2 rollouts" in done.stdout
    assert Artifact.load(artifact, "ramp").facts["checkpoint"] == "tiny-latte"
