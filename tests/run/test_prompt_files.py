"""Prompt files through a whole run: seeds and facts of their own."""

import json

import pytest

from fsframework.cli import main
from fsframework.config import load_config
from fsframework.run.runner import run


@pytest.fixture
def quick(overrides, monkeypatch):
    monkeypatch.setattr("fsframework.run.report.write_report", lambda folders, out, title: out.write_text("report"))
    kept = [o for o in overrides if not o.startswith("prompts.")]
    return [*kept, "sampling.num_steps=2", "metrics=[psnr]"]


def test_a_file_gives_seeds_and_facts_to_the_records_and_config_yaml_repeats_the_run(quick, loaded_model, tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text(
        "prompt,seeds,category\ndigit 6 is moving up and down,40 41,six\ndigit 3 is moving left and right,,three\n"
    )
    folder = run(load_config(None, [*quick, f"prompts.set={file}", "seeds.base=7"]), loaded_model)
    records = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    assert [(r["prompt"][6], r["seed"], r["facts"]) for r in records] == [
        ("6", 40, {"category": "six"}),
        ("3", 8, {"category": "three"}),  # the second video: 7 + 1
        ("6", 41, {"category": "six"}),
    ]
    file.unlink()  # the run directory stands on its own
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert run(load_config(folder / "config.yaml"), loaded_model) == folder
    assert (folder / "metrics.json").stat().st_mtime_ns == before


def test_without_seeds_and_facts_config_yaml_writes_the_prompts_out(quick, loaded_model, tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("digit 6 is moving up and down\n")
    folder = run(load_config(None, [*quick, f"prompts.set={file}"]), loaded_model)
    assert load_config(folder / "config.yaml").prompts.texts == ["digit 6 is moving up and down"]
    assert not (folder / "prompts.jsonl").exists()


def test_list_prompts_shows_the_sets_and_what_is_in_one(capsys, tmp_path):
    assert main(["list", "prompts"]) == 0
    text = capsys.readouterr().out
    assert "digits-heldout" in text
    assert "vbench" in text
    assert main(["list", "prompts", "digits-heldout"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "digit 2 is moving up and down",
        "digit 5 is moving left and right",
        "digit 9 is moving up and down",
    ]
    (tmp_path / "p.csv").write_text("prompt,seed,category\na cat,3,animal\n")
    assert main(["list", "prompts", str(tmp_path / "p.csv")]) == 0
    assert capsys.readouterr().out == 'a cat  seeds 3  {"category": "animal"}\n'
