import json
import os
import sys
from pathlib import Path

import pytest

from fsframework.metrics import vbench
from fsframework.metrics.vbench import export, main

PROMPTS = ["a cat, playing the piano", "a cat, playing the piano", "black/white film"]

FAKE = """#!{python}
import json, os, sys
assert sys.argv[1] == "evaluate"
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
dimension, out = options["--dimension"], options["--output_path"]
assert os.environ["PATH"].startswith({folder!r})
if dimension == "motion_smoothness":
    sys.exit(0)  # like the real one, which fails with status 0
if options["--mode"] == "custom_input":
    prompts = json.load(open(options["--prompt_file"]))
    assert sorted(prompts) == sorted(os.listdir(options["--videos_path"]))
videos = sorted(os.listdir(options["--videos_path"]))
rows = [{{"video_path": name, "video_results": 0.1 * i}} for i, name in enumerate(videos)]
json.dump({{dimension: [0.5, rows]}}, open(out + "/results_now_eval_results.json", "w"))
"""


@pytest.fixture
def run_directory(tmp_path):
    folder = tmp_path / "run with a space"
    (folder / "videos").mkdir(parents=True)
    lines = []
    for index, prompt in enumerate(PROMPTS):
        names = f"videos/{index:04d}.mp4", f"videos/{index:04d}-reference.mp4"
        for name in names:
            (folder / name).write_text(name)
        lines.append(json.dumps({"index": index, "prompt": prompt, "file": names[0], "reference_file": names[1]}))
    (folder / "videos.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    return folder


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "bin" / "vbench"
    path.parent.mkdir()
    path.write_text(FAKE.format(python=sys.executable, folder=str(path.parent)))
    path.chmod(0o755)
    return path


def test_videos_are_named_by_prompt_and_number_in_the_order_of_the_run(run_directory, tmp_path):
    prompts = export(run_directory, tmp_path / "out")
    assert prompts == {
        "a cat, playing the piano-0.mp4": PROMPTS[0],
        "a cat, playing the piano-1.mp4": PROMPTS[1],
        "black white film-0.mp4": PROMPTS[2],  # a slash can not be in a file's name; prompts.json has the prompt
    }
    assert (tmp_path / "out/videos/a cat, playing the piano-1.mp4").read_text() == "videos/0001.mp4"
    assert json.loads((tmp_path / "out/prompts.json").read_text()) == prompts
    export(run_directory, tmp_path / "out", reference=True)  # again: nothing of the first export is left
    assert (tmp_path / "out/videos/black white film-0.mp4").read_text() == "videos/0002-reference.mp4"
    assert len(os.listdir(tmp_path / "out/videos")) == 3


def test_a_prompt_too_long_for_a_file_name_is_cut_at_a_whole_character():
    assert len(vbench._file_stem("é" * 300).encode()) == 240
    assert vbench._file_stem("///") == "video"


def test_vbench_is_run_per_dimension_and_its_results_get_an_interval(run_directory, program, capsys):
    command = [str(run_directory), "--program", str(program), "--dimensions", "imaging_quality", "dynamic_degree"]
    assert main(command) == 0
    found = json.loads((run_directory / "vbench/vbench.json").read_text())
    assert list(found) == ["imaging_quality", "dynamic_degree"]
    quality = found["imaging_quality"]
    assert quality["mean"] == pytest.approx(0.1)  # of 0, 0.1, 0.2
    assert quality["low"] <= quality["mean"] <= quality["high"]
    assert (quality["n"], quality["vbench_score"]) == (3, 0.5)
    assert "imaging_quality" in capsys.readouterr().out


def test_the_standard_suite_has_more_dimensions(run_directory, program, capsys):
    command = [str(run_directory), "--program", str(program), "--dimensions", "color"]
    assert main(command) == 2
    assert "--standard has more) has no dimension 'color'" in capsys.readouterr().err
    assert main([*command, "--standard", "--reference"]) == 0
    assert (run_directory / "vbench-reference/vbench.json").is_file()


def test_a_dimension_that_vbench_gave_nothing_for_is_an_error_even_if_it_exits_with_0(run_directory, program, capsys):
    assert main([str(run_directory), "--program", str(program), "--dimensions", "motion_smoothness"]) == 1
    assert "VBench gave no result for motion_smoothness (exit status 0)" in capsys.readouterr().err


def test_without_vbench_the_videos_are_exported_and_it_says_what_to_install(run_directory, capsys):
    assert main([str(run_directory), "--program", "no-such-program"]) == 0
    said = capsys.readouterr()
    assert "3 videos in" in said.out
    assert "pip install vbench" in said.err
    assert len(list((run_directory / "vbench/videos").iterdir())) == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no run directory: it has no videos.jsonl" in capsys.readouterr().err
    (tmp_path / "videos.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no finished video"):
        export(tmp_path, Path(tmp_path) / "out")
