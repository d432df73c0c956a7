import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsframework.cli import main

ROOT = Path(__file__).parents[1]


def fsf(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fsframework", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_help_teaches_with_examples():
    done = fsf("--help")
    assert done.returncode == 0
    for example in (
        "fsf demo",
        "fsf run experiments/quickstart/run.yaml",
        "fsf list policies",
        "fsf bench",
        "FSF_DEBUG",
    ):
        assert example in done.stdout


def test_examples_in_the_help_name_files_that_exist():
    named = {word for word in fsf("--help").stdout.split() if word.endswith(".yaml") and "/" in word}
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "policies"], ["list", "models"], ["list", "metrics"], ["list", "prompts"]]
)
def test_help_and_lists_answer_within_a_second_of_cpu_and_without_torch(arguments):
    calls = f"from fsframework.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
    code = f"import sys\n{calls}print('torch' in sys.modules, file=sys.stderr)"
    begin = os.times().children_user + os.times().children_system
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    cpu_seconds = os.times().children_user + os.times().children_system - begin
    assert done.stderr.strip() == "False"
    assert done.stdout
    assert cpu_seconds < 1.0


def test_list_policies_is_a_line_each_by_group_and_the_options_of_those_that_are_named(capsys, monkeypatch):
    from fsframework.run.catalog import by_group, list_policies

    assert main(["list", "policies"]) == 0
    text = capsys.readouterr().out
    groups = by_group(list_policies())
    assert [line for line in text.splitlines() if line in groups] == list(groups)
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == [policy.name for policy in list_policies()]
    assert {line.split()[0] for line in lines if line.split()[1] == "*"} == {
        policy.name for policy in list_policies() if policy.is_calibrated
    }
    assert all(policy.summary in text for policy in list_policies())  # no terminal: nothing is cut off
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["list", "policies"]) == 0
    assert all(len(line) <= 116 for line in capsys.readouterr().out.splitlines())
    assert main(["list", "policies", "foresight", "static"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("foresight: ")
    assert "\nstatic: " in text
    assert "\nfull: " not in text
    assert "gamma: float = 0.5" in text
    assert "Higher reuses more" in text


def test_what_is_listed_is_what_the_registries_hold(capsys):
    import dataclasses

    import fsframework.policies  # noqa: F401
    from fsframework.core import POLICIES
    from fsframework.metrics import METRICS
    from fsframework.models.loading import checkpoints
    from fsframework.run.catalog import list_metrics, list_models, list_policies

    built_in = {name: cls for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.policies")}
    listed = {entry.name: entry for entry in list_policies()}
    assert sorted(listed) == sorted(built_in)
    for name, policy_class in built_in.items():
        fields = [
            (f.name, repr(f.default if f.default is not dataclasses.MISSING else f.default_factory()))
            for f in dataclasses.fields(policy_class)
        ]
        assert sorted((o.name, o.default) for o in listed[name].options) == sorted(fields), name
        assert all(option.doc for option in listed[name].options), f"{name} has an option without a docstring"
    assert {m.name: (m.family, m.source) for m in list_models()} == {
        name: (next(n for n, a in __import__("fsframework").ADAPTERS.items() if a is adapter), checkpoint.source)
        for name, (adapter, checkpoint) in checkpoints().items()
    }
    assert {m.name: (m.unit, m.better) for m in list_metrics()} == {
        name: (metric.unit, "higher" if metric.higher_is_better else "lower") for name, metric in METRICS.items()
    }


def test_a_plugins_policy_is_listed_with_the_options_it_inherits(capsys):
    assert main(["list", "policies", str(ROOT / "experiments" / "_template" / "policy.py")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("delayed_foresight: ")
    assert "last_steps: int = 5" in text
    assert "gamma: float = 0.5" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn", "x"], "invalid choice: 'runn'"),
        (["run"], "CONFIG.yaml"),
        (["list", "polices"], "invalid choice: 'polices'"),
        (["run", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["train", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["report", "nowhere"], "no such run directory: nowhere"),
        (["report", "."], "is not a run directory"),
        (["list", "policies", "nowhere.py"], "no such file: nowhere.py"),
        (["list", "policies", "foresigth"], "did you mean 'foresight'?"),
        (["run", "--help-me"], "fsf run"),
        (
            ["calibrate", "tiny-latte", "magcache", "seeds.base=1"],
            "the policy comes first: fsf calibrate magcache tiny-latte seeds.base=1",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    done = fsf(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.startswith("fsf")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help_and_version_shows_the_version():
    assert fsf().stdout == fsf("--help").stdout
    assert fsf("--version").stdout == "fsframework 0.1.0\n"


def test_report_on_an_unfinished_run_says_to_run_it_again(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("name: a\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "was not finished: `fsf run` it again" in capsys.readouterr().err


def test_report_on_the_folder_of_runs_names_its_runs(tmp_path, capsys):
    (tmp_path / "a-123").mkdir()
    (tmp_path / "a-123" / "metrics.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path / "a-123") in capsys.readouterr().err


def test_report_takes_the_folder_of_a_grid(tmp_path, capsys):
    (tmp_path / "ablation.json").write_text('{"cells": []}')
    assert main(["report", str(tmp_path)]) == 2
    assert "no cell is finished; run `fsf ablate` first" in capsys.readouterr().err


def test_train_hands_its_arguments_to_the_training_script(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("")
    seen = []
    monkeypatch.setattr("fsframework.train.tiny.main", seen.append)
    assert main(["train", str(tmp_path / "a.yaml"), "seed=3"]) == 0
    assert seen == [[str(tmp_path / "a.yaml"), "seed=3"]]


@pytest.mark.parametrize("name", ["run", "full", "static"])
def test_quickstart_configs_are_valid(name):
    from fsframework.config import load_config
    from fsframework.run.resolve import make_plan

    plan = make_plan(load_config(ROOT / "experiments" / "quickstart" / f"{name}.yaml"))
    assert plan.policy_name == {"run": "foresight"}.get(name, name)
    assert len(plan.clips) == 4
