import csv
import json
import time
from pathlib import Path

import pytest
import torch
from wandb_file import offline_records

from fsframework.config.grid import Executor, load_ablation
from fsframework.run import ablation as module
from fsframework.run import runner
from fsframework.run.ablation import Book, ablate, plan_cells, rehearsal
from fsframework.run.launch import Launcher, World, is_first_process, launcher


@pytest.fixture
def loads(monkeypatch, loaded_model):
    """The models that were loaded, by name; each is the random Latte."""
    found = []

    def load(plan):
        found.append(plan.config.model.name)
        return loaded_model

    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(
        "fsframework.run.report.write_report",
        lambda folders, out, title: out.write_text("\n".join(folder.name for folder in folders)),
    )
    return found


@pytest.fixture
def grid(tmp_path, pipeline_folder):
    """Load a grid over one video of 2 steps; static reuse computes the first and reuses the second."""

    def load(text: str, *overrides: str):
        base = {
            "model": str(pipeline_folder),
            "policy": {"name": "static", "warmup": 1},
            "sampling": {"num_steps": 2, "num_frames": 8, "height": 16, "width": 16},
            "prompts": ["digit 6 is moving up and down"],
            "metrics": ["psnr"],
            "tracking": {"wandb": "disabled"},
            "output": {"runs_dir": str(tmp_path / "runs")},
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(f"base: {json.dumps(base)}\n{text}")
        return load_ablation(file, overrides)

    return load


def states(found) -> list[str]:
    return [row["state"] for row in found.cells]


def fail_at(monkeypatch, error: BaseException, **options) -> None:
    """Make the cells whose policy has these options raise while their first video is measured."""
    measure = runner._measure

    def failing(job, *rest, **more):
        if options.items() <= job.plan.policy_options.items():
            raise error
        return measure(job, *rest, **more)

    monkeypatch.setattr(runner, "_measure", failing)


def test_cells_are_run_directories_and_the_table_has_a_row_for_each(grid, loads, tmp_path):
    found = ablate(grid("grid: {policy.interval: [2, 3], seeds.per_prompt: [1, 2]}"))
    assert states(found) == ["finished"] * 4
    assert found.is_complete
    assert len(loads) == 1  # one model for all cells
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir() if not p.name.startswith("_"))
    assert folders == sorted(row["directory"] for row in found.cells)
    assert all((tmp_path / "runs" / name / "metrics.json").is_file() for name in folders)
    assert len(list((tmp_path / "runs" / "_reference").rglob("*.safetensors"))) == 2  # seeds 0 and 1, shared

    table = json.loads((found.folder / "ablation.json").read_text())
    assert [row["changes"] for row in table["cells"]][1] == {"policy.interval": 2, "seeds.per_prompt": 2}
    psnr = table["cells"][1]["metrics"]["psnr"]
    assert (psnr["n"], psnr["unit"], psnr["better"]) == (2, "dB", "higher")
    assert psnr["low"] <= psnr["mean"] <= psnr["high"]

    rows = list(csv.DictReader((found.folder / "ablation.csv").open()))
    assert [row["policy.interval"] for row in rows] == ["2", "2", "3", "3"]
    assert (rows[1]["psnr.n"], rows[1]["reuse_fraction"], rows[1]["state"]) == ("2", "0.5", "finished")
    assert float(rows[1]["psnr"]) == pytest.approx(psnr["mean"])
    lines = (found.folder / "ablation.md").read_text().splitlines()
    assert lines[4].startswith("| policy.interval | seeds.per_prompt | state | n | speedup | FLOPs saved | reused |")
    assert lines[7].startswith("| 2 | 2 | finished | 2 |")
    given = (found.folder / "report.html").read_text().split()  # the stub writes what it was given
    assert given == [*(row["directory"] for row in found.cells), found.folder.name]
    assert "interval=2, per_prompt=2" in found.text()


def test_a_finished_ablation_loads_nothing_and_writes_no_run_again(grid, loads, tmp_path, capsys):
    cells = grid("grid: {policy.interval: [2, 3]}")
    ablate(cells)
    loads.clear()
    files = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file() and "_ablations" not in str(p)
    }
    assert ablate(cells).is_complete
    assert loads == []
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert "0 to do" in capsys.readouterr().err


def test_a_longer_list_only_runs_what_is_new(grid, loads):
    ablate(grid("grid: {policy.interval: [2]}"))
    book_states = []
    found = grid("grid: {policy.interval: [2, 3]}")
    book = Book(found, plan_cells(found))
    book_states = [book.state(planned) for planned in book.planned]
    assert book_states == ["finished", "pending"]


def test_a_cell_that_fails_is_recorded_and_does_not_stop_the_rest_and_is_tried_again(grid, loads, monkeypatch):
    cells = grid("grid: {policy.interval: [2, 3, 4]}")
    with monkeypatch.context() as patch:
        fail_at(patch, RuntimeError("no memory for this"), interval=3)
        found = ablate(cells)
    assert states(found) == ["finished", "failed", "finished"]
    assert not found.is_complete
    row = found.cells[1]
    assert row["error"] == "RuntimeError: no memory for this"
    log = (found.folder / row["log"]).read_text()
    assert "Traceback" in log
    assert "no memory for this" in log
    assert "interval=3: RuntimeError: no memory for this" in found.text()
    assert "RuntimeError: no memory for this" in (found.folder / "ablation.md").read_text()
    assert len(loads) == 2  # what the failure left of the model may not be sound

    again = ablate(cells)
    assert states(again) == ["finished"] * 3
    assert again.cells[1]["error"] is None
    assert len(loads) == 3
    status = json.loads((again.folder / "status.json").read_text())
    assert status["cells"] == {"finished": 3}
    assert [cell["attempts"] for cell in status["by_cell"]] == [1, 2, 1]


def test_what_the_pipeline_refuses_fails_its_cell_and_keeps_the_model(grid, loads):
    found = ablate(grid("grid: {sampling.height: [17, 16]}"))
    assert states(found) == ["failed", "finished"]
    assert found.cells[0]["error"].startswith("ValueError: LattePipeline can not generate with")
    assert len(loads) == 1


def test_cells_with_the_same_hash_run_once_and_are_named(grid, loads, capsys):
    found = ablate(grid("cells: [{name: a}, {name: b, policy.interval: 2}, {name: c, policy.interval: 3}]"))
    assert [row["same_as"] for row in found.cells] == [None, 0, None]  # 2 is the default
    assert found.cells[0]["directory"] == found.cells[1]["directory"]
    assert found.cells[1]["metrics"] == found.cells[0]["metrics"]
    assert "3 cells, 1 the same as another, 2 to do" in capsys.readouterr().err
    assert "same as a" in (found.folder / "ablation.md").read_text()
    assert json.loads((found.folder / "ablation.json").read_text())["cells"][1]["state"] == "finished"


def test_wrong_cells_are_all_named_before_anything_is_written(grid, loads, tmp_path):
    with pytest.raises(ValueError) as caught:
        ablate(grid("grid: {policy.intervall: [2], model.name: [tiny-late, tiny-latte]}"))
    assert "option 'intervall'" in str(caught.value)
    assert "interval" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        ablate(grid("grid: {model.name: [tiny-late, tiny-latte], policy.interval: [2, 3]}"))
    assert "2 more" not in str(caught.value)
    assert "cell 'model=tiny-late, interval=2' and 1 more: unknown model 'tiny-late'" in str(caught.value)
    assert not (tmp_path / "runs").exists()
    assert loads == []


def test_a_dry_run_names_cells_and_cost_and_says_where_the_seconds_come_from(grid, loads, tmp_path):
    cells = grid("grid: {policy.interval: [2, 3], seeds.per_prompt: [1, 3]}")
    text = rehearsal(cells, Executor(), seconds_per_step=10)
    # 1 + 3 videos twice under a method and twice as full compute: 16 x 2 steps x 10 s.
    assert "estimate: 5 min of computing" in text
    assert "10 s of full compute per step, as you said" in text
    assert not (tmp_path / "runs").exists()
    assert "1 s of full compute per step of" in (assumed := rehearsal(cells, Executor(jobs=2)))
    assert "assumed: no finished run to go by" in assumed
    assert "estimate: 32 s of computing, 16 s in 2 processes" in assumed
    assert loads == []
    ablate(grid("grid: {policy.interval: [2]}"))
    measured = rehearsal(cells, Executor())
    assert "measured in 1 runs" in measured
    lines = measured.splitlines()
    assert "finished" in lines[1]
    assert "pending" in lines[2]
    assert "4 cells, 3 to do" in measured


def test_slow_references_that_other_cells_share_are_counted_once(grid, loads):
    cells = grid("grid: {policy.interval: [2, 3], seeds.per_prompt: [5]}")
    planned = plan_cells(cells)
    costs = module.estimate(Book(cells, planned), seconds_per_step=100)  # 200 s per video: over a minute
    assert costs.seconds == {0: 200.0 * (5 + 5), 1: 200.0 * (5 + 3)}


def test_ctrl_c_leaves_an_ablation_from_which_the_same_command_goes_on(grid, loads, monkeypatch, capsys):
    cells = grid("grid: {policy.interval: [2, 3, 4]}")
    with monkeypatch.context() as patch:
        fail_at(patch, KeyboardInterrupt(), interval=3)
        with pytest.raises(KeyboardInterrupt):
            ablate(cells)
    assert "1 of 3 cells done; the same command goes on from there" in capsys.readouterr().err
    book = Book(cells, plan_cells(cells))
    assert [book.state(planned) for planned in book.planned] == ["finished", "stopped", "pending"]
    made = []
    generate = runner.generate_timed
    monkeypatch.setattr(runner, "generate_timed", lambda *a: made.append(a[1].index) or generate(*a))
    assert ablate(cells).is_complete
    assert len(made) == 4  # method and full compute of two cells


def test_a_cell_whose_process_was_killed_counts_as_stopped_not_as_running(grid, loads):
    cells = grid("grid: {policy.interval: [2]}")
    book = Book(cells, plan_cells(cells))
    book.open()
    book.begin(book.planned[0])
    assert book.state(book.planned[0]) == "stopped"  # nobody holds its lock
    with module.only_one(book.lock(book.planned[0])):
        assert book.state(book.planned[0]) == "running"


def test_a_cell_that_another_process_is_at_is_left_to_it(grid, loads):
    cells = grid("grid: {policy.interval: [2, 3]}")
    book = Book(cells, plan_cells(cells))
    book.open()
    with module.only_one(book.lock(book.planned[0])):
        found = ablate(cells)
    assert [row["state"] for row in found.cells][1] == "finished"
    assert not found.is_complete
    assert ablate(cells).is_complete


def test_parts_share_the_cells(grid, loads):
    cells = grid("grid: {policy.interval: [2, 3, 4]}")
    first = ablate(cells, part=(0, 2))
    assert states(first) == ["finished", "pending", "finished"]
    assert first.is_complete  # its part is
    second = ablate(cells, part=(1, 2))
    assert states(second) == ["finished"] * 3
    assert (second.folder / "report.html").read_text().count("sweep-") == 3


def test_a_run_directory_that_was_deleted_is_made_again(grid, loads, tmp_path):
    import shutil

    cells = grid("grid: {policy.interval: [2]}")
    folder = tmp_path / "runs" / ablate(cells).cells[0]["directory"]
    shutil.rmtree(folder)
    assert ablate(cells).is_complete
    assert (folder / "metrics.json").is_file()


def test_models_are_loaded_once_each_whatever_the_order_of_the_cells(grid, loads, monkeypatch):
    monkeypatch.setattr("fsframework.run.runner.run", lambda config, model: Path(f"{config.model.dtype}"))
    found = ablate(grid("grid: {policy.interval: [2, 3], model.dtype: [float32, bfloat16]}"))
    assert len(found.cells) == 4
    assert len(loads) == 2


def test_a_cell_does_not_inherit_the_threads_of_the_one_before(grid, loads, monkeypatch):
    seen = []
    before = torch.get_num_threads()

    def run(config, model):
        seen.append(torch.get_num_threads())
        torch.set_num_threads(before + 1)
        return Path("gone")

    monkeypatch.setattr("fsframework.run.runner.run", run)
    try:
        ablate(grid("grid: {policy.interval: [2, 3]}"))
    finally:
        torch.set_num_threads(before)
    assert seen == [before, before]


def test_processes_within_a_cell_and_cells_side_by_side_exclude_each_other(grid, loads):
    cells = grid("grid: {policy.interval: [2]}", "launch.num_processes=2")
    with pytest.raises(ValueError, match=r"2 processes per cell and cells side by side can not be combined"):
        ablate(cells, Executor(jobs=2))


def test_the_executor_ray_says_what_to_install(grid, loads, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'fsframework\[ray\]'"):
        ablate(grid("grid: {policy.interval: [2]}"), Executor(name="ray"))


# Launchers.

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NTASKS": "4"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "4", "LOCAL_RANK": "0"}


def test_torchrun_and_srun_are_recognised_with_their_nodes():
    assert launcher(1, {}) == Launcher("here", 1, 1)
    assert launcher(2, {}) == Launcher("here", 2, 1)
    assert launcher(1, TORCHRUN) == Launcher("torchrun", 4, 2)
    assert launcher(1, SRUN) == Launcher("srun", 2, 2)
    # A plain command in an sbatch script that asked for four tasks: srun did not start it.
    assert launcher(1, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Launcher("here", 1, 1)


def test_srun_with_uneven_nodes_says_what_to_ask_for():
    with pytest.raises(ValueError, match=r"srun started 4 processes on 2 nodes; give it --nodes and --ntasks-per-node"):
        launcher(1, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"})


def test_one_process_of_all_talks_to_the_user():
    assert is_first_process({})
    assert not is_first_process(TORCHRUN)  # local rank 0, of the second node
    assert not is_first_process({"LOCAL_RANK": "1"})
    assert is_first_process({**SRUN, "SLURM_PROCID": "0"})
    assert not is_first_process({**SRUN, "SLURM_PROCID": "2", "SLURM_LOCALID": "0"})


def test_one_process_alone_meets_nobody():
    with World().together():
        World().barrier()
    with pytest.raises(KeyError), World().together():
        raise KeyError("mine")


# W&B.


@pytest.mark.slow
def test_wandb_knows_the_ablation_as_group_the_cell_as_job_type_and_the_directory_as_id(grid, loads, tmp_path):
    found = ablate(grid("grid: {policy.interval: [2, 3]}", "tracking.wandb=offline"))
    for row in found.cells:
        (file,) = (tmp_path / "runs" / row["directory"] / "wandb").glob("offline-run-*/*.wandb")
        (run,) = [record.run for record in offline_records(file) if record.HasField("run")]
        assert (run.run_id, run.run_group, run.job_type) == (row["directory"], "sweep", row["cell"])


def test_a_mirror_that_fails_loses_no_cell(grid, loads, monkeypatch):
    def refuse(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("wandb.init", refuse)
    found = ablate(grid("grid: {policy.interval: [2, 3]}", "tracking.wandb=online"))
    assert states(found) == ["finished"] * 2
    assert found.cells[0]["metrics"]["psnr"]["n"] == 1


def test_the_time_left_is_said_after_each_cell(grid, loads, capsys, monkeypatch):
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    cells = grid("grid: {policy.interval: [2, 3, 4, 5]}")
    planned = plan_cells(cells)
    clock = module.Clock(Book(cells, planned), planned, 1, quiet=False)
    clock.end(planned[0], module.Outcome("finished", "x"))  # after 10 s
    assert "1 of 4 cells, interval=2: finished, about 30 s left" in capsys.readouterr().err
