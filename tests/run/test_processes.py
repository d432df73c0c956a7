"""Runs as a user starts them: other processes, killed, several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from fsframework.run.artifacts import RunDirectory

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


def command(folder: Path, overrides: list[str], *more: str) -> list[str]:
    config = folder / "run.yaml"
    config.write_text("seeds: {per_prompt: 8}\n")
    return [sys.executable, "-m", "fsframework", "run", str(config), *overrides, *more]


def finish(arguments: list[str]) -> subprocess.CompletedProcess:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


def results(folder: Path) -> dict:
    """Everything in a run directory that is not measured of the machine: clocks, the process's memory, its energy."""
    metrics = json.loads((folder / "metrics.json").read_text())
    words = ("seconds", "speedup", "memory_bytes", "energy")
    timed = lambda name: any(word in name for word in words) and name != "flops_speedup"
    return {
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
        "videos": {p.name: p.read_bytes() for p in sorted((folder / "videos").iterdir())},
        "metrics": {k: v for k, v in metrics.items() if not timed(k)},
        "trace": pandas.read_parquet(folder / "trace.parquet").to_json(),
    }


def only_run(runs_dir: Path) -> Path:
    (folder,) = [p for p in runs_dir.iterdir() if p.name != "_reference"]
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, overrides_below):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(command(folder, overrides_below(folder)))
    return results(only_run(folder / "runs"))


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "kill", "kill -9"])
def test_a_stopped_run_goes_on_to_the_same_files_and_metrics_as_one_that_never_stopped(
    tmp_path, overrides, unbroken, how
):
    arguments = command(tmp_path, overrides)
    # A shell's background job (`make test &`) ignores SIGINT and its children inherit that; a user's terminal does not.
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=_default_interrupt
    )
    records = lambda: [p for p in (tmp_path / "runs").glob("*/videos.jsonl") if p.read_text().count("\n") >= 2]
    deadline = time.monotonic() + 120
    while not records() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    folder = only_run(tmp_path / "runs")
    assert not (folder / "metrics.json").exists(), "stopped too late to test anything"
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "the same command goes on from there" in stderr
        assert "Traceback" not in stderr
    done = finish(arguments)
    assert "24 videos" in done.stdout
    assert results(folder) == unbroken


def test_two_processes_make_the_same_videos_as_one(tmp_path, overrides, unbroken):
    finish(command(tmp_path, overrides, "launch.num_processes=2"))
    assert results(only_run(tmp_path / "runs")) == unbroken


def child_of(process: subprocess.Popen) -> int:
    """The second of two processes: Fabric starts it from the first, with LOCAL_RANK=1."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in task.read_text().split():
        if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("there is no second process")


def test_a_process_that_is_killed_loses_its_current_video_only(tmp_path, overrides, unbroken):
    # Process 0 makes videos 0, 2, 4, ..., process 1 makes 1, 3, 5, ... of the 24.
    arguments = command(tmp_path, overrides, "launch.num_processes=2")
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    recorded = lambda: {
        json.loads(line)["index"]
        for file in (tmp_path / "runs").glob("*/videos.jsonl")
        for line in file.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    }
    deadline = time.monotonic() + 600
    while not {0, 1, 3} <= recorded() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    before = recorded()
    os.kill(child_of(process), signal.SIGKILL)
    assert process.wait(120) != 0
    folder = only_run(tmp_path / "runs")
    assert not (folder / "metrics.json").exists()
    done = {record["index"]: record for record in RunDirectory(folder).read_records()}
    assert before <= set(done)  # nothing that was finished is lost
    for rank in range(2):
        own = sorted(index for index in done if index % 2 == rank)
        assert own == list(range(rank, rank + 2 * len(own), 2))  # and what is missing begins with the current video
    stamps = {folder / r["file"]: (folder / r["file"]).stat().st_mtime_ns for r in done.values()}
    assert len(stamps) < 24
    finish(command(tmp_path, overrides))  # goes on in one process
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert results(folder) == unbroken


def test_a_process_that_dies_fails_the_run_and_the_same_command_completes_it(tmp_path, overrides, unbroken):
    # A plugin makes the second process die at its first video, while the first process goes on.
    arguments = command(tmp_path, overrides, "launch.num_processes=2")
    plugin = tmp_path / "dies.py"
    plugin.write_text(
        "import os\n"
        "if os.environ.get('LOCAL_RANK') == '1' and os.environ.get('DIES'):\n"
        "    from fsframework.run import runner\n"
        "    def die(*args, **kwargs): os._exit(9)\n"
        "    runner._measure = die\n"
    )
    arguments += [f"plugins=[{plugin}]"]
    died = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env={**ENVIRONMENT, "DIES": "1"})
    assert died.returncode != 0
    folder = only_run(tmp_path / "runs")
    assert not (folder / "metrics.json").exists()
    finish(arguments)
    assert {**results(folder), "files": None} == {**unbroken, "files": None}
