"""Grids as a user starts them: other processes, killed, several at once, on Ray."""

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from fsframework.run.artifacts import RunDirectory

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
NUM_CELLS = 24
PLUGIN = """\
# A report of 24 runs is not what is tested here. The process that measures a video of a cell with an interval of KILL_AT
# dies, that of KILL_ONCE_AT only if KILL_MARK is not there yet; that of RAISE_AT raises, in the process RANK_RAISES.
import os, pathlib, signal
from fsframework.run import report, runner
report.write_report = lambda folders, out, title: out.write_text(" ".join(folder.name for folder in folders))
if not hasattr(runner, "unbroken_measure"):  # plugins are run again for every cell
    runner.unbroken_measure = runner._measure
    def measure(job, *rest, **more):
        interval, mark = str(job.plan.policy_options.get("interval")), os.environ.get("KILL_MARK", "")
        if os.environ.get("RAISE_AT") == interval and os.environ.get("RANK_RAISES", "0") == str(job.world.rank):
            raise OSError("disk full")
        if interval in os.environ.get("KILL_AT", "").split():
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("KILL_ONCE_AT") == interval and not os.path.exists(mark):
            pathlib.Path(mark).write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return runner.unbroken_measure(job, *rest, **more)
    runner._measure = measure
"""


def command(folder: Path, pipeline_folder: Path, grid: str, *more: str, executor: str = "local") -> list[str]:
    (folder / "plugin.py").write_text(PLUGIN)
    base = {
        "model": str(pipeline_folder),
        "policy": {"name": "static", "warmup": 1},
        "sampling": {"num_steps": 2, "num_frames": 8, "height": 16, "width": 16},
        "prompts": ["digit 6 is moving up and down"],
        "metrics": ["psnr"],
        "tracking": {"wandb": "disabled"},
        "launch": {"num_threads": 1},
        "output": {"runs_dir": str(folder / "runs")},
        "plugins": ["plugin.py"],
    }
    (folder / "sweep.yaml").write_text(f"base: {json.dumps(base)}\nexecutor: {executor}\ngrid: {grid}\n")
    return [sys.executable, "-m", "fsframework", "ablate", str(folder / "sweep.yaml"), *more]


ALL = "{policy.interval: [2, 3, 4, 5], seeds.per_prompt: [1, 2], seeds.base: [0, 1, 2]}"
FEW = "{policy.interval: [2, 3, 4], seeds.per_prompt: [2], seeds.base: [0]}"
"""Three of the 24."""
FOUR = "{policy.interval: [2, 3, 4, 5], seeds.per_prompt: [2], seeds.base: [0]}"


def finish(arguments: list[str], **environment: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500, env={**ENVIRONMENT, **environment})
    assert done.returncode == 0, done.stderr
    return done.stderr


def run_results(folder: Path) -> dict:
    """Everything in a run directory that no clock and no memory decides."""
    metrics = json.loads((folder / "metrics.json").read_text())
    measured = lambda name: "seconds" in name or name.startswith(("memory", "reference_memory"))
    kept = {k: v for k, v in metrics.items() if not measured(k) and k not in ("speedup", "wall_speedup", "model")}
    return {
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
        "videos": {p.name: p.read_bytes() for p in sorted((folder / "videos").iterdir())},
        "metrics": kept,
        "trace": pandas.read_parquet(folder / "trace.parquet").to_json(),
    }


def results(runs_dir: Path) -> dict[str, dict]:
    return {p.name: run_results(p) for p in runs_dir.iterdir() if not p.name.startswith("_")}


def table(runs_dir: Path) -> list[dict]:
    return json.loads((runs_dir / "_ablations" / "sweep" / "ablation.json").read_text())["cells"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, pipeline_folder):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(command(folder, pipeline_folder, ALL))
    found = results(folder / "runs")
    assert len(found) == NUM_CELLS
    return found


def few_of(unbroken: dict, runs_dir: Path, count: int = 3) -> dict:
    names = [row["directory"] for row in table(runs_dir) if row["state"] == "finished"]
    assert len(names) == count
    return {name: unbroken[name] for name in names}


def wait_until(condition, process: subprocess.Popen, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"


def finished_videos(runs: Path) -> dict[Path, int]:
    """The mp4 files of all videos on record -> when they were written."""
    files = []
    for folder in runs.glob("sweep-*"):
        records = RunDirectory(folder).read_records()
        files += [folder / record[key] for record in records for key in ("file", "reference_file")]
    return {file: file.stat().st_mtime_ns for file in files}


def test_a_grid_of_24_cells_killed_twice_at_random_moments_ends_as_one_that_never_was(
    tmp_path, pipeline_folder, unbroken
):
    arguments = command(tmp_path, pipeline_folder, ALL)
    runs = tmp_path / "runs"
    num_finished = lambda: len(list(runs.glob("sweep-*/metrics.json")))
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed of the moments: {seed}")
    chance = random.Random(seed)
    for low, high in ((1, 9), (10, 18)):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        begun, already, at = time.monotonic(), num_finished(), chance.randint(low, high)
        wait_until(lambda at=at: num_finished() >= at, process)
        seconds_per_cell = (time.monotonic() - begun) / max(num_finished() - already, 1)
        time.sleep(chance.uniform(0, min(seconds_per_cell, 60)))  # anywhere within the next cell
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert num_finished() < NUM_CELLS
    stamps = {p: p.stat().st_mtime_ns for p in runs.glob("sweep-*/metrics.json")} | finished_videos(runs)
    assert len(stamps) > 3 * 10  # of 10 cells and more: the metrics, and a video with its reference at least
    finish(arguments)
    assert results(runs) == unbroken
    assert {
        p: p.stat().st_mtime_ns for p in stamps
    } == stamps  # neither finished cells nor finished videos were made again
    assert [row["state"] for row in table(runs)] == ["finished"] * NUM_CELLS


def test_two_processes_of_which_one_is_killed_give_the_same_results(tmp_path, pipeline_folder, unbroken):
    arguments = command(tmp_path, pipeline_folder, FEW, "--jobs", "2")
    said = finish(arguments, KILL_ONCE_AT="3", KILL_MARK=str(tmp_path / "died"))
    assert "interval=3, per_prompt=2, base=0: its process was killed by signal 9" in said
    assert "going on with it" in said
    assert results(tmp_path / "runs") == few_of(unbroken, tmp_path / "runs")


def test_a_cell_that_kills_its_process_every_time_fails_and_the_others_finish(tmp_path, pipeline_folder):
    arguments = command(tmp_path, pipeline_folder, FEW, executor="{jobs: 2, retries: 0}")
    environment = {**ENVIRONMENT, "KILL_AT": "3"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 1
    assert [row["state"] for row in table(tmp_path / "runs")] == ["finished", "failed", "finished"]
    assert "killed by signal 9" in table(tmp_path / "runs")[1]["error"]


def test_processes_that_share_the_videos_of_each_cell_give_the_same_results(tmp_path, pipeline_folder, unbroken):
    finish(command(tmp_path, pipeline_folder, FEW, "launch.num_processes=2"))
    assert results(tmp_path / "runs") == few_of(unbroken, tmp_path / "runs")


def test_an_exception_in_one_of_two_processes_fails_the_cell_in_both_and_the_next_cell_runs(
    tmp_path, pipeline_folder, unbroken
):
    arguments = command(tmp_path, pipeline_folder, FEW, "launch.num_processes=2")
    environment = {**ENVIRONMENT, "RAISE_AT": "3", "RANK_RAISES": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 1
    rows = table(tmp_path / "runs")
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert "process 1 of 2: OSError: disk full" in rows[1]["error"]
    finish(arguments)
    assert results(tmp_path / "runs") == few_of(unbroken, tmp_path / "runs")


def test_processes_that_srun_started_share_the_videos(tmp_path, pipeline_folder, unbroken):
    # SLURM is not here: two processes get the variables that `srun --nodes=1 --ntasks-per-node=2` sets.
    arguments = command(tmp_path, pipeline_folder, FEW)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "sweep", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=1500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "report:" in said[0]
    assert said[1] == ""
    assert results(tmp_path / "runs") == few_of(unbroken, tmp_path / "runs")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_goes_on_with_a_cell_whose_process_died_and_records_those_that_fail_for_good(
    tmp_path, pipeline_folder, unbroken
):
    arguments = command(tmp_path, pipeline_folder, FOUR, "--executor", "ray", "--jobs", "2")
    environment = {
        **ENVIRONMENT, "KILL_ONCE_AT": "3", "KILL_MARK": str(tmp_path / "died"), "RAISE_AT": "4", "KILL_AT": "5",
    }  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "died").is_file()
    rows = table(tmp_path / "runs")
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert rows[2]["error"] == "OSError: disk full"  # an exception: not tried again
    assert rows[3]["error"].startswith("ActorDiedError: ")  # its process died twice
    assert "Traceback" in (tmp_path / "runs" / "_ablations" / "sweep" / rows[2]["log"]).read_text()
    kept = few_of(unbroken, tmp_path / "runs", count=2)
    assert {name: run_results(tmp_path / "runs" / name) for name in kept} == kept  # the others have no metrics yet
    finish(arguments)  # what failed is tried again
    assert results(tmp_path / "runs") == few_of(unbroken, tmp_path / "runs", count=4)
