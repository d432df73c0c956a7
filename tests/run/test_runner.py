import json
import math
import shutil
from pathlib import Path

import pandas
import pytest

from fsframework.config import load_config
from fsframework.core.trace import COLUMNS
from fsframework.data.video import read_video
from fsframework.run import runner
from fsframework.run.artifacts import RunDirectory
from fsframework.run.runner import run


def records_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def short_report():
    """The report has tests of its own, and tests/test_cli.py runs with the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsframework.run.report.write_report", lambda folders, out, title: out.write_text("report"))
        yield


@pytest.fixture(scope="module")
def finished(pipeline_folder, loaded_model, tmp_path_factory):
    """A finished run of static reuse over three captions, 8 steps, W&B offline."""
    config = load_config(
        None,
        [
            "name=finished",
            f"model.name={pipeline_folder}",
            "policy={name: static, warmup: 2}",
            "sampling={num_steps: 8, num_frames: 8, height: 16, width: 16}",
            "prompts=[digit 6 is moving up and down, digit 3 is moving left and right, a cat]",
            "metrics=[psnr, ssim, adherence]",
            f"output.runs_dir={tmp_path_factory.mktemp('finished')}",
        ],
    )
    return run(config, loaded_model)


def test_a_run_directory_holds_every_file_of_the_design(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.json", "trace.parquet", "videos.jsonl", "videos", "report.html", "wandb",
    }  # fmt: skip
    assert finished.name.startswith("finished-")


def test_every_video_has_a_file_beside_its_reference_and_a_line_of_record(finished):
    records = records_of(finished)
    assert [(r["index"], r["seed"]) for r in records] == [(0, 0), (1, 1), (2, 2)]
    assert records[0]["file"] == "videos/0000-digit-6-is-moving-up-and-down.mp4"
    assert records[0]["reference_file"] == "videos/0000-digit-6-is-moving-up-and-down-reference.mp4"
    for record in records:
        assert read_video(finished / record["file"]).shape == (8, 128, 128, 3)
        assert read_video(finished / record["reference_file"]).shape == (8, 128, 128, 3)
    assert len(list((finished / "videos").iterdir())) == 6


def test_reuse_fraction_and_flops_are_what_the_schedule_says(finished):
    # 8 steps, W = 2, interval 2: C C R C R C R C, so 3 of 8 steps reuse all 4 blocks.
    metrics = metrics_of(finished)
    assert metrics["reuse_fraction"]["mean"] == 3 / 8
    assert 0.3 < metrics["flops_saved"]["mean"] < 3 / 8  # embedding and head still run
    assert math.isclose(metrics["flops_speedup"]["mean"], 1 / (1 - metrics["flops_saved"]["mean"]), rel_tol=1e-3)
    assert metrics["host_reads_per_step"]["mean"] == 0


def test_every_metric_has_mean_interval_n_unit_and_direction(finished):
    metrics = metrics_of(finished)
    wanted = (
        "speedup wall_speedup flops_speedup flops_saved reuse_fraction cache_bytes_peak host_reads_per_step psnr ssim"
    )
    for name in wanted.split():
        entry = metrics[name]
        assert {"mean", "low", "high", "n", "unit", "better"} <= set(entry)
        assert entry["low"] <= entry["mean"] <= entry["high"]
        assert entry["n"] == 3
    assert metrics["psnr"]["unit"] == "dB"
    assert (metrics["psnr"]["better"], metrics["cache_bytes_peak"]["better"]) == ("higher", "lower")
    assert metrics["adherence"]["n"] == 2  # not defined for the cat
    assert (metrics["policy"], metrics["num_videos"]) == ("static", 3)


def test_speedup_is_total_reference_seconds_over_total_method_seconds_of_pairs_timed_together(finished):
    records, metrics = records_of(finished), metrics_of(finished)
    for name, clock in (("speedup", "cpu_seconds"), ("wall_speedup", "wall_seconds")):
        total = sum(r[f"reference_{clock}"] for r in records) / sum(r[clock] for r in records)
        assert math.isclose(metrics[name]["mean"], total)
    assert metrics["timing"]["clock_of_speedup"] == "process CPU seconds"
    assert metrics["timing"]["num_pairs"] == 3


def test_the_trace_has_one_row_per_visit_with_the_videos_numbers(finished):
    trace = pandas.read_parquet(finished / "trace.parquet")
    assert list(trace.columns) == list(COLUMNS)
    assert trace.groupby("video").size().to_dict() == dict.fromkeys(range(3), 8 * 4)
    first = trace[(trace.video == 1) & (trace.site == "spatial.0")]
    assert "".join(first.decision.str[2]) == "ccucucuc"  # re-c-ompute, re-u-se


def test_the_environment_names_code_versions_device_and_command(finished):
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["device"] == "cpu"
    assert environment["threads"] >= 1
    assert set(environment) >= {"git", "cpu_count", "command", "time", "platform"}


def test_the_saved_config_repeats_the_run_into_the_same_directory(finished, loaded_model, capsys):
    config = load_config(finished / "config.yaml")
    assert config.policy["interval"] == 2  # defaults of the policy are written out
    assert run(config, loaded_model) == finished
    assert "all 3 videos are there already" in capsys.readouterr().err


def test_videos_made_by_other_code_are_kept_with_a_note(overrides, loaded_model, monkeypatch, capsys):
    monkeypatch.setattr("fsframework.run.provenance.git_state", lambda _: {"revision": "a" * 40, "dirty": False})
    folder = run(load_config(None, overrides), loaded_model)
    assert "made at revision" not in capsys.readouterr().err
    monkeypatch.setattr("fsframework.run.provenance.git_state", lambda _: {"revision": "b" * 40, "dirty": False})
    for missing in ((), ("metrics.json",)):
        for name in missing:
            (folder / name).unlink()
        run(load_config(None, overrides), loaded_model)
        assert "made at revision aaaaaaaa, now it is bbbbbbbb" in capsys.readouterr().err


def test_a_finished_run_is_not_touched_again(finished, loaded_model):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    run(load_config(finished / "config.yaml"), loaded_model)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_the_directory_depends_on_what_changes_results_and_on_nothing_else(overrides, loaded_model, tmp_path):
    def directory(*more: str) -> str:
        plan = runner.make_plan(load_config(None, [*overrides, *more]))
        return runner.prepare(plan, loaded_model, tmp_path, runner.launch.World()).directory.path.name

    same = directory()
    assert directory(f"output.runs_dir={tmp_path / 'elsewhere'}") == same
    assert directory("tracking.wandb=offline", "tracking.group=g") == same
    assert directory("policy.interval=2") == same  # the default written out
    assert directory("launch.num_processes=2") == same
    for change in (
        "policy.interval=3", "sampling.num_steps=9", "seeds.base=1", "prompts.limit=2", "metrics=[psnr]",
        "sampling.guidance_scale=2.0", "reference.timing_videos=1", "policy=full", "launch.num_threads=1",
    ):  # fmt: skip
        assert directory(change) != same, change
    assert directory("name=other").partition("-")[2] == same.partition("-")[2]


def test_full_compute_is_identical_to_the_bare_pipeline_and_says_so(overrides, loaded_model):
    folder = run(load_config(None, [*overrides, "policy=full", "prompts.limit=2"]), loaded_model)
    assert [r["identical"] for r in records_of(folder)] == [True, True]
    metrics = metrics_of(folder)
    assert metrics["psnr"]["mean"] == math.inf
    assert metrics["reuse_fraction"]["mean"] == 0
    assert "bit-identical" in metrics["notes"][0]


def test_json_files_hold_no_token_that_strict_readers_refuse(overrides, loaded_model):
    folder = run(load_config(None, [*overrides, "policy=full", "prompts.limit=1"]), loaded_model)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for text in [(folder / "metrics.json").read_text(), *(folder / "videos.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=refuse)


def test_a_second_run_takes_the_pixels_of_the_cached_reference_but_times_full_compute_anew(overrides, loaded_model):
    first = run(load_config(None, overrides), loaded_model)
    second = run(load_config(None, [*overrides, "policy.interval=3"]), loaded_model)
    runs_dir = first.parent
    assert len(list((runs_dir / "_reference").rglob("*.safetensors"))) == 3
    for one, other in zip(records_of(first), records_of(second)):
        assert other["reference_cpu_seconds"] is not None
        assert other["reference_cpu_seconds"] != one["reference_cpu_seconds"]


def test_without_timing_of_a_cached_reference_there_is_no_speedup_and_the_metrics_say_why(overrides, loaded_model):
    run(load_config(None, overrides), loaded_model)
    again = run(load_config(None, [*overrides, "policy.interval=3", "reference.timing_videos=1"]), loaded_model)
    assert [r["reference_cpu_seconds"] is not None for r in records_of(again)] == [True, False, False]
    metrics = metrics_of(again)
    assert metrics["speedup"]["n"] == metrics["timing"]["num_pairs"] == 1
    assert metrics["psnr"]["n"] == 3
    assert "1 of 3 videos" in metrics["notes"][0]


def test_reference_and_method_take_turns_at_going_first(overrides, loaded_model, monkeypatch):
    order = []
    generate = runner.generate_timed

    def watched(model, clip, sampling, device):
        wrapped = "forward" in model.transformer.transformer_blocks[0].__dict__
        order.append((clip.index, "method" if wrapped else "reference"))
        return generate(model, clip, sampling, device)

    monkeypatch.setattr(runner, "generate_timed", watched)
    run(load_config(None, overrides), loaded_model)
    assert order == [
        (0, "reference"), (0, "method"), (1, "method"), (1, "reference"), (2, "reference"), (2, "method"),
    ]  # fmt: skip


def test_videos_do_not_depend_on_what_was_made_before_them(overrides, loaded_model):
    three = run(load_config(None, overrides), loaded_model)
    alone = run(
        load_config(None, [*overrides, "prompts.texts=[digit 1 is moving up and down]", "seeds.base=2"]), loaded_model
    )
    a, b = records_of(three)[2], records_of(alone)[0]
    assert (three / a["file"]).read_bytes() == (alone / b["file"]).read_bytes()
    assert a["metrics"] == b["metrics"]


def test_a_reuse_warning_is_shown_once_and_kept_with_the_numbers(overrides, loaded_model, capsys):
    folder = run(load_config(None, [*overrides, "policy={name: foresight, gamma: 0.0}"]), loaded_model)
    assert capsys.readouterr().err.count("reused nothing") == 1
    assert len(metrics_of(folder)["warnings"]) == 1


@pytest.mark.parametrize("stop_at", [1, 2])
def test_ctrl_c_leaves_a_directory_from_which_the_same_command_goes_on(
    overrides, loaded_model, monkeypatch, capsys, tmp_path, stop_at
):
    unbroken = run(load_config(None, [*overrides, f"output.runs_dir={tmp_path / 'unbroken'}"]), loaded_model)
    config = load_config(None, overrides)
    measure = runner._measure

    def interrupted(job, session, clip, made, reference, timed):
        if clip.index == stop_at:
            raise KeyboardInterrupt
        return measure(job, session, clip, made, reference, timed)

    monkeypatch.setattr(runner, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, loaded_model)
    message = capsys.readouterr().err
    assert f"stopped with {stop_at} of 3 videos" in message
    assert "the same command goes on" in message
    monkeypatch.setattr(runner, "_measure", measure)
    folder = run(config, loaded_model)
    assert_same_results(unbroken, folder)
    assert len(json.loads((folder / "environment.json").read_text())["resumed"]) == 1


def assert_same_results(one: Path, other: Path) -> None:
    """The same files, videos bit for bit, trace and metrics, except for what a clock or the machine's memory says."""
    names = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names(one) == names(other)
    for video in (one / "videos").iterdir():
        assert video.read_bytes() == (other / "videos" / video.name).read_bytes()
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(one / "trace.parquet"), pandas.read_parquet(other / "trace.parquet")
    )
    timed = lambda name: (
        "seconds" in name or "memory" in name or "joules" in name or name in ("speedup", "wall_speedup", "environment")
    )
    a, b = ({k: v for k, v in metrics_of(folder).items() if not timed(k)} for folder in (one, other))
    assert a == b


def test_a_record_cut_off_by_a_kill_is_made_again(overrides, loaded_model):
    folder = run(load_config(None, overrides), loaded_model)
    lines = (folder / "videos.jsonl").read_text().splitlines()
    (folder / "videos.jsonl").write_text("\n".join([lines[0], lines[1], lines[2][:40]]))
    (folder / "metrics.json").unlink()
    assert len(RunDirectory(folder).read_records()) == 2
    run(load_config(None, overrides), loaded_model)
    assert [r["index"] for r in records_of(folder)] == [0, 1, 2]


def test_a_video_whose_file_is_gone_is_made_again(overrides, loaded_model):
    folder = run(load_config(None, overrides), loaded_model)
    kept = (folder / records_of(folder)[1]["file"]).read_bytes()
    (folder / records_of(folder)[1]["file"]).unlink()
    run(load_config(None, overrides), loaded_model)
    assert (folder / records_of(folder)[1]["file"]).read_bytes() == kept


def test_half_written_files_of_a_killed_process_are_removed(overrides, loaded_model):
    folder = run(load_config(None, overrides), loaded_model)
    (folder / "metrics.json").unlink()
    (folder / "videos" / ".0000-x.123.tmp.mp4").write_bytes(b"half")
    run(load_config(None, overrides), loaded_model)
    assert not list(folder.rglob(".*.tmp*"))


def test_a_damaged_cached_reference_is_made_again(overrides, loaded_model):
    folder = run(load_config(None, overrides), loaded_model)
    for file in (folder.parent / "_reference").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    before = metrics_of(folder)["psnr"]
    shutil.rmtree(folder)
    assert metrics_of(run(load_config(None, overrides), loaded_model))["psnr"] == before


def test_a_plugin_travels_with_the_run_and_its_code_is_part_of_the_hash(overrides, loaded_model, tmp_path):
    source = (
        "from dataclasses import dataclass\n"
        "from fsframework import POLICIES\n"
        "from fsframework.policies import StaticReuse\n"
        '@POLICIES.register("mine")\n'
        "@dataclass(frozen=True)\n"
        "class Mine(StaticReuse):\n"
        '    """Mine."""\n'
        "    interval: int = 4\n"
    )
    plugin = tmp_path / "theme" / "policy.py"
    plugin.parent.mkdir()
    plugin.write_text(source)
    (tmp_path / "theme" / "run.yaml").write_text("plugins: [policy.py]\n")
    changes = [*overrides, "policy={name: mine, warmup: 2}", "prompts.limit=1"]

    def go() -> Path:
        return run(load_config(tmp_path / "theme" / "run.yaml", changes), loaded_model)

    folder = go()
    assert metrics_of(folder)["reuse_fraction"]["mean"] == 5 / 8  # C C R R R C R R
    assert (folder / "plugins" / "policy.py").read_text() == source
    plugin.write_text(source.replace('"""Mine."""', '"""Mine, explained."""'))
    assert go() == folder  # a docstring changes nothing
    plugin.write_text(source.replace("interval: int = 4", "interval: int = 4; unused: int = 0"))
    assert go() != folder
