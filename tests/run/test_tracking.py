import json
import math
import subprocess
import sys

import pandas
import pytest
from wandb_file import items, offline_records

from fsframework.config import load_config
from fsframework.config.schema import TrackingConfig
from fsframework.run.artifacts import RunDirectory
from fsframework.run.runner import run
from fsframework.run.tracking import Tracker, step_curves, video_table


@pytest.fixture(autouse=True)
def short_report(monkeypatch):
    monkeypatch.setattr("fsframework.run.report.write_report", lambda folders, out, title: out.write_text("report"))


class FakeRun:
    """Stands in for a W&B run; can fail at a given call of `log`, or at a method by name."""

    def __init__(self, fails_at=None, fails_in=None):
        self.rows, self.summary, self.artifacts, self.ended = [], {}, [], None
        self.fails_at, self.fails_in = fails_at, fails_in

    def log(self, row):
        if self.fails_at is not None and len(self.rows) == self.fails_at:
            raise OSError("disk full")
        self.rows.append(row)

    def log_artifact(self, artifact):
        self._fail("log_artifact")
        self.artifacts.append(artifact)

    def finish(self, exit_code=0):
        self.ended = exit_code
        self._fail("finish")

    resumed = False

    def define_metric(self, *args, **kwargs):
        self._fail("define_metric")

    def _fail(self, name):
        if self.fails_in == name:
            raise BrokenPipeError(f"in {name}")


@pytest.fixture
def fake(monkeypatch):
    made = FakeRun()
    monkeypatch.setattr("wandb.init", lambda **kwargs: made)
    return made


def test_the_mirror_holds_numbers_clips_curves_totals_and_trace(overrides, loaded_model, fake):
    folder = run(load_config(None, [*overrides, "tracking.wandb=offline"]), loaded_model)
    videos = [row for row in fake.rows if "video/psnr" in row]
    assert [row["video/index"] for row in videos] == [0, 1, 2]
    assert all(
        {"clips/method", "clips/reference", "video/reuse_fraction", "video/cpu_seconds"} <= set(r) for r in videos
    )
    curves = [row for row in fake.rows if "step/index" in row]
    assert [row["step/reuse_fraction"] for row in curves] == [0, 0, 1, 0, 1, 0, 1, 0]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert fake.summary["psnr"] == metrics["psnr"]["mean"]
    assert fake.summary["psnr.low"] == metrics["psnr"]["low"]
    (table,) = [row["videos"] for row in fake.rows if "videos" in row]
    assert table.columns[:3] == ["index", "prompt", "seed"]
    records = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    assert table.get_column("psnr") == [record["metrics"]["psnr"] for record in records]
    by_type = {artifact.type: artifact for artifact in fake.artifacts}
    assert set(by_type) == {"trace", "checkpoint"}
    assert set(by_type["trace"].manifest.entries) == {"trace.parquet", "videos.jsonl", "config.yaml", "metrics.json"}
    assert by_type["checkpoint"].metadata["model_fingerprint"] == metrics["model_fingerprint"]
    assert fake.ended == 0


def test_online_is_one_key_and_the_config_holds_all_of_the_run(overrides, loaded_model, monkeypatch):
    asked = {}
    monkeypatch.setattr("wandb.init", lambda **options: asked.update(options) or FakeRun())
    folder = run(load_config(None, [*overrides, "tracking.wandb=online"]), loaded_model)
    assert asked["mode"] == "online"
    assert (asked["project"], asked["id"], asked["resume"]) == ("fsframework", folder.name, "allow")
    assert asked["config"]["policy_options"]["warmup"] == 2
    assert asked["config"]["run"]["seeds"] == {"base": 0, "per_prompt": 1}
    assert asked["config"]["run"]["sampling"]["num_steps"] == 8


def test_a_calibration_that_the_policy_read_is_an_artifact(tmp_path, fake):
    directory = RunDirectory(tmp_path)
    for file in (directory.trace, directory.records, directory.config, directory.metrics):
        file.write_text("")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "teacache-latte.json").write_text("{}")
    Tracker(fake, pytest.fail).finish(directory, [], {"policy": "teacache", "model": "a/b c"}, lambda: TRACE)
    by_type = {artifact.type: artifact for artifact in fake.artifacts}
    assert list(by_type["calibration"].manifest.entries) == ["teacache-latte.json"]
    assert by_type["calibration"].metadata == {"policy": "teacache"}
    assert by_type["checkpoint"].name.startswith("checkpoint-a-b-c")


def test_the_table_has_a_row_per_video_with_the_facts_of_its_prompt():
    shared = {"seed": 4, "identical": True, "file": "x.mp4", "wall_seconds": 2.0}
    columns, rows = video_table(
        [
            {"index": 0, "prompt": "a", **shared, "facts": {"kind": "cat"}, "metrics": {"psnr": 30.0}},
            {"index": 1, "prompt": "b", **shared, "facts": {}, "metrics": {"psnr": math.inf, "ssim": 1.0}},
        ]
    )
    assert columns == ["index", "prompt", "seed", "fact/kind", "wall_seconds", "psnr", "ssim"]
    assert rows == [[0, "a", 4, "cat", 2.0, 30.0, None], [1, "b", 4, None, 2.0, None, 1.0]]


def test_a_resumed_run_logs_the_videos_of_the_first_attempt_too(overrides, loaded_model, fake):
    folder = run(load_config(None, overrides), loaded_model)
    (folder / "metrics.json").unlink()
    run(load_config(None, [*overrides, "tracking.wandb=offline"]), loaded_model)
    assert [row["video/index"] for row in fake.rows if "video/psnr" in row] == [0, 1, 2]


@pytest.mark.parametrize("fails_at", [0, 2, 5])
def test_a_failure_of_the_mirror_is_one_note_and_the_run_is_whole(
    overrides, loaded_model, monkeypatch, capsys, fails_at
):
    monkeypatch.setattr("wandb.init", lambda **kwargs: FakeRun(fails_at))
    folder = run(load_config(None, [*overrides, "tracking.wandb=offline"]), loaded_model)
    assert capsys.readouterr().err.count("no longer tracked by W&B: OSError: disk full") == 1
    assert json.loads((folder / "metrics.json").read_text())["num_videos"] == 3
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("define_metric", "no longer tracked by W&B: BrokenPipeError: in define_metric"),
        ("log_artifact", "no longer tracked by W&B: BrokenPipeError: in log_artifact"),
        ("finish", "W&B did not finish: BrokenPipeError: in finish"),
    ],
)
def test_a_failure_at_the_beginning_or_the_end_of_the_mirror_loses_nothing(
    overrides, loaded_model, monkeypatch, capsys, where, says
):
    broken = FakeRun(fails_in=where)
    monkeypatch.setattr("wandb.init", lambda **kwargs: broken)
    folder = run(load_config(None, [*overrides, "tracking.wandb=offline"]), loaded_model)
    assert capsys.readouterr().err.count(f"note: {says}\n") == 1
    assert json.loads((folder / "metrics.json").read_text())["num_videos"] == 3
    assert (folder / "report.html").is_file()
    assert broken.ended is not None  # what was begun is closed


def test_without_wandb_there_is_a_note_and_the_run_is_whole(overrides, loaded_model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = run(load_config(None, [*overrides, "tracking.wandb=offline"]), loaded_model)
    assert "note: not tracked by W&B: ModuleNotFoundError" in capsys.readouterr().err
    assert (folder / "metrics.json").is_file()


def test_what_a_resumed_mirror_has_already_is_not_sent_again(tmp_path, monkeypatch):
    resumed = FakeRun()
    resumed.resumed = True
    monkeypatch.setattr("wandb.init", lambda **kwargs: resumed)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "logged.txt").write_text("0\n1\n")
    tracker = Tracker.start(TrackingConfig(wandb="online"), RunDirectory(tmp_path), {}, pytest.fail)
    record = {"prompt": "a", "seed": 3, "file": None, "reference_file": None, "metrics": {"psnr": 30.0}}
    for index in range(3):
        tracker.log_video({**record, "index": index}, tmp_path)
    assert [row["video/index"] for row in resumed.rows] == [2]
    assert (tmp_path / "wandb" / "logged.txt").read_text().split() == ["0", "1", "2"]


def test_a_server_that_can_not_be_reached_is_one_note_and_the_run_is_whole(
    overrides, loaded_model, monkeypatch, capsys
):
    def refuse(**kwargs):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr("wandb.init", refuse)
    folder = run(load_config(None, [*overrides, "tracking.wandb=online"]), loaded_model)
    assert "note: not tracked by W&B: ConnectionError: no route to host\n" in capsys.readouterr().err
    assert (folder / "metrics.json").is_file()


def test_disabled_never_starts_wandb(monkeypatch, tmp_path):
    monkeypatch.setattr("wandb.init", lambda **kwargs: pytest.fail("started"))
    notes = []
    tracker = Tracker.start(TrackingConfig(wandb="disabled"), RunDirectory(tmp_path), {}, notes.append)
    tracker.finish(RunDirectory(tmp_path), [], {}, pandas.DataFrame)
    assert notes == []


TRACE = pandas.DataFrame({"step": [0], "decision": ["recompute"], "distance": [1.0], "threshold": [None]})


def test_curves_are_means_over_videos_branches_and_sites():
    trace = pandas.DataFrame(
        {
            "step": [0, 0, 1, 1],
            "decision": ["recompute", "recompute", "reuse", "recompute"],
            "distance": [1.0, 3.0, None, 5.0],
            "threshold": [None, None, 2.0, 4.0],
        }
    )
    curves = step_curves(trace)
    assert curves["reuse_fraction"].tolist() == [0.0, 0.5]
    assert curves["distance"].tolist() == [2.0, 5.0]
    assert curves["threshold"].tolist()[1] == 3.0


@pytest.mark.slow
def test_the_offline_file_holds_config_curves_table_clips_totals_and_artifacts(overrides, tmp_path):
    """Read back from the disk, with wandb's messages and nothing else of wandb's, after the process that wrote it ended."""
    (tmp_path / "run.yaml").write_text("policy: {name: foresight, warmup: 2, gamma: 1000}\n")
    given = [o for o in overrides if not o.startswith(("policy.", "tracking."))]
    given += ["tracking={wandb: offline, project: study, group: g}"]
    command = [sys.executable, "-m", "fsframework", "run", str(tmp_path / "run.yaml"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith("_")]
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    records = offline_records(file)

    (head,) = [record.run for record in records if record.HasField("run")]
    assert (head.run_id, head.project, head.run_group) == (folder.name, "study", "g")
    config = items(head.config.update)
    assert config["policy_options"]["gamma"] == 1000
    assert config["run"]["prompts"]["texts"][0] == "digit 6 is moving up and down"

    history = [items(record.history.item) for record in records if record.HasField("history")]
    curves = [row for row in history if "step/index" in row]
    trace = step_curves(pandas.read_parquet(folder / "trace.parquet"))
    assert [row["step/reuse_fraction"] for row in curves] == trace["reuse_fraction"].tolist()
    assert trace["reuse_fraction"].tolist()[:4] == [0, 0, 1, 0]
    for name in ("distance", "threshold"):
        measured = [row[f"step/{name}"] for row in curves if f"step/{name}" in row]
        assert measured == pytest.approx(trace[name].dropna().tolist())
        assert measured

    videos = [row for row in history if "clips/method.path" in row]
    assert [row["video/index"] for row in videos] == [0, 1, 2]
    kept = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    for row, record in zip(videos, kept):
        assert row["video/psnr"] == pytest.approx(record["metrics"]["psnr"])
        copy = file.parent / "files" / row["clips/method.path"]
        assert copy.read_bytes() == (folder / record["file"]).read_bytes()
    (table,) = [row["videos.path"] for row in history if "videos.path" in row]
    content = json.loads((file.parent / "files" / table).read_text())
    column = content["columns"].index("prompt")
    assert [row[column] for row in content["data"]] == [record["prompt"] for record in kept]

    summary = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert summary["psnr"] == pytest.approx(metrics["psnr"]["mean"])
    assert summary["psnr.high"] == pytest.approx(metrics["psnr"]["high"])

    artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
    assert {entry.path for entry in artifacts["trace"].manifest.contents} == {
        "trace.parquet", "videos.jsonl", "config.yaml", "metrics.json",
    }  # fmt: skip
    assert [entry.path for entry in artifacts["checkpoint"].manifest.contents] == ["checkpoint.json"]
    (exit_code,) = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert exit_code == 0
