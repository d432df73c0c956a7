import json

import pandas
import pytest

from fsframework.config import load_config
from fsframework.config.schema import TrackingConfig
from fsframework.run.artifacts import RunDirectory
from fsframework.run.runner import run
from fsframework.run.tracking import Tracker, step_curves


@pytest.fixture(autouse=True)
def short_report(monkeypatch):
    monkeypatch.setattr("fsframework.run.report.write_report", lambda folders, out, title: out.write_text("report"))


class FakeRun:
    """Stands in for a W&B run; can fail at a given call."""

    def __init__(self, fails_at=None):
        self.rows, self.summary, self.artifacts, self.ended, self.fails_at = [], {}, [], None, fails_at

    def log(self, row):
        if self.fails_at is not None and len(self.rows) == self.fails_at:
            raise OSError("disk full")
        self.rows.append(row)

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def finish(self, exit_code=0):
        self.ended = exit_code

    resumed = False

    def define_metric(self, *args, **kwargs):
        pass


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
    assert "trace.parquet" in fake.artifacts[0].manifest.entries
    assert fake.ended == 0


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
