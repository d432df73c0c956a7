"""`fsf demo`: the main job in minutes. Full compute, static reuse and Foresight on the bundled tiny model, compared."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsframework.config.load import load_config
from fsframework.run.job import load
from fsframework.run.resolve import make_plan
from fsframework.run.results import table
from fsframework.run.runner import run

RUNS_DIR = "runs/demo"
CAPTIONS = (
    "digit 6 is moving up and down",
    "digit 3 is moving left and right",
    "digit 0 is moving left and right",
    "digit 8 is moving up and down",
)
"""Two each way, all digits different, none of the pairs that training never saw."""
POLICIES: dict[str, tuple[str, ...]] = {
    "full": ("policy=full",),
    "static": ("policy=static", "policy.interval=2"),
    "foresight": ("policy=foresight", "policy.gamma=1.0"),
}
"""Name of a run -> what it changes."""


def demo(overrides: Sequence[str] = (), fresh: bool = False) -> Path:
    """Make the three runs, finished videos kept, and one report that compares them; returns the report.

    Args:
        overrides: `key=value` changes for all three runs, such as `output.runs_dir=FOLDER`.
        fresh: delete the three runs of an earlier demo and their references first.
    """
    begin = time.perf_counter()
    captions = ", ".join(CAPTIONS)
    # One thread: with more, waiting for each other costs a fifth of the CPU time of so small a model.
    common = [
        "launch.num_threads=1",
        f"prompts.texts=[{captions}]",
        f"output.runs_dir={RUNS_DIR}",
        "tracking.group=demo",
    ]
    configs = {
        name: load_config(None, [f"name={name}", *changes, *common, *overrides]) for name, changes in POLICIES.items()
    }
    runs_dir = Path(configs["full"].output.runs_dir)
    if fresh:
        _discard(runs_dir)
    first = next(iter(configs.values()))
    print(f"{first.model.name}: {', '.join(configs)} over {len(CAPTIONS)} captions -> {runs_dir}/", file=sys.stderr)
    model = load(make_plan(first))
    folders = {name: run(config, model) for name, config in configs.items()}
    from fsframework.run.report import write_report

    report = write_report(list(folders.values()), runs_dir / "report.html", "Full compute, static reuse, Foresight")
    results = {name: _read(folder) for name, folder in folders.items()}
    print(f"\n{table(list(results.items()))}\n")
    print(_conditions(results["full"], time.perf_counter() - begin))
    print(f"report: {report}")
    return report


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def _conditions(metrics: dict[str, Any], seconds: float) -> str:
    sampling = metrics["sampling"]
    return (
        f"{metrics['model']}, {metrics['num_videos']} videos each of {sampling['num_steps']} steps, {metrics['dtype']} on "
        f"{metrics['device']}; PSNR and SSIM against full compute of the same seed; this took {seconds:.0f} s"
    )


def _discard(runs_dir: Path) -> None:
    """Remove what an earlier demo made below `runs_dir`, and nothing else."""
    names = [*POLICIES, "_reference"]
    for folder in runs_dir.iterdir() if runs_dir.is_dir() else ():
        if folder.is_dir() and (folder.name in names or folder.name.rpartition("-")[0] in names):
            shutil.rmtree(folder)
