"""VBench (Huang et al. 2023, arXiv:2311.17982) for a finished run: `python -m fsframework.metrics.vbench RUN_DIR`.

VBench is no metric of a run like the others: it wants files under names of its own, loads a network for each of its
dimensions, and pins versions of torch's neighbours that contradict ours. So its videos are exported, and it is run as a
program from an environment of its own, if there is one::

    python -m venv ~/vbench && ~/vbench/bin/pip install vbench
    python -m fsframework.metrics.vbench runs/foresight-1a2b --program ~/vbench/bin/vbench

`RUN_DIR/vbench/` then holds `videos/<prompt>-<number>.mp4`, `prompts.json`, VBench's own results, and `vbench.json`:
for each dimension the mean over videos with its 95 % interval and n.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsframework.metrics.statistics import bootstrap

CUSTOM_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""Those that VBench judges for any prompt."""
STANDARD_DIMENSIONS = (
    *CUSTOM_DIMENSIONS,
    "temporal_flickering",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "temporal_style",
    "appearance_style",
    "overall_consistency",
)
"""All of VBench's; the rest need the prompts of its own suite, to which it knows the answers."""
MOST_NAME_BYTES = 240


def export(run_directory: Path, folder: Path, reference: bool = False) -> dict[str, str]:
    """Put a run's videos (or their references) into `folder/videos` under VBench's names; file name -> prompt.

    The first video of a prompt is `<prompt>-0.mp4`, the next `-1`, in the order of the run. A prompt that can be no file
    name (with a slash, or too long) is shortened; custom input finds it in `folder/prompts.json` all the same.

    Raises:
        ValueError: there is no finished video in `run_directory`.
    """
    records_file = run_directory / "videos.jsonl"
    if not records_file.is_file():
        raise ValueError(f"{run_directory} is no run directory: it has no videos.jsonl")
    records = [json.loads(line) for line in records_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not records:
        raise ValueError(f"{run_directory} has no finished video")
    videos = folder / "videos"
    shutil.rmtree(videos, ignore_errors=True)
    videos.mkdir(parents=True)
    prompts: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: record["index"]):
        stem = _file_stem(record["prompt"])
        name = f"{stem}-{seen[stem]}.mp4"
        seen[stem] += 1
        source = (run_directory / record["reference_file" if reference else "file"]).resolve()
        try:
            os.link(source, videos / name)
        except OSError:  # another file system
            shutil.copyfile(source, videos / name)
        prompts[name] = record["prompt"]
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=2, ensure_ascii=False), encoding="utf-8")
    return prompts


def _file_stem(prompt: str) -> str:
    stem = re.sub(r"[/\0]", " ", prompt).strip() or "video"
    while len(stem.encode()) > MOST_NAME_BYTES:
        stem = stem[:-1]
    return stem


def evaluate(
    folder: Path, program: str, dimensions: Sequence[str], standard: bool = False
) -> dict[str, dict[str, Any]]:
    """Run VBench on what `export` wrote, one dimension after the other; its results by dimension.

    Raises:
        RuntimeError: VBench gave no result for a dimension.
    """
    # VBench starts `python` through a shell: that must be the one of its own environment, and no path may need quotes.
    environment = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    found = {}
    for dimension in dimensions:
        results = folder / "results" / dimension
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        command = [program, "evaluate", "--videos_path", "videos", "--dimension", dimension]
        command += ["--output_path", f"results/{dimension}"]
        command += (
            ["--mode", "vbench_standard"] if standard else ["--mode", "custom_input", "--prompt_file", "prompts.json"]
        )
        done = subprocess.run(command, cwd=folder, env=environment, check=False)
        files = sorted(results.glob("*_eval_results.json"))
        if not files:  # its exit status says nothing: it is 0 after a failure, too
            raise RuntimeError(
                f"VBench gave no result for {dimension} (exit status {done.returncode}); its own message is above."
            )
        found[dimension] = summary(json.loads(files[-1].read_text(encoding="utf-8"))[dimension])
    return found


def summary(result: Sequence[Any]) -> dict[str, Any]:
    """VBench's `[score, videos]` of a dimension as an entry like those of metrics.json, with its own score beside it."""
    score, videos = result
    entry = bootstrap([float(video["video_results"]) for video in videos]).entry()
    return {**entry, "vbench_score": float(score)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fsframework.metrics.vbench",
        description="Export a finished run's videos as VBench wants them and run VBench on them where it is installed.",
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN_DIR")
    parser.add_argument("--dimensions", nargs="+", metavar="NAME", help="default: the six that need no prompt suite")
    parser.add_argument("--standard", action="store_true", help="the prompts are VBench's own suite")
    parser.add_argument("--reference", action="store_true", help="judge the full-compute references instead")
    parser.add_argument("--program", default="vbench", help="VBench's program, by name or path; default: vbench")
    options = parser.parse_args(arguments)
    known = STANDARD_DIMENSIONS if options.standard else CUSTOM_DIMENSIONS
    dimensions = options.dimensions or known
    if unknown := [name for name in dimensions if name not in known]:
        where = "VBench" if options.standard else "VBench for prompts of your own (--standard has more)"
        print(f"{where} has no dimension {unknown[0]!r}. Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    folder = options.run_directory / ("vbench-reference" if options.reference else "vbench")
    try:
        prompts = export(options.run_directory, folder, options.reference)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(prompts)} videos in {folder / 'videos'}")
    program = shutil.which(str(Path(options.program).expanduser()))
    if program is None:
        print(
            f"VBench was not run: there is no program {options.program!r}. Install it into an environment of its own (its "
            f"pins contradict ours): python -m venv ~/vbench && ~/vbench/bin/pip install vbench; then run this command "
            f"again with --program ~/vbench/bin/vbench.",
            file=sys.stderr,
        )
        return 0 if options.dimensions is None else 1
    try:
        found = evaluate(folder, str(Path(program).resolve()), dimensions, options.standard)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    (folder / "vbench.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    for name, entry in found.items():
        print(f"{name:24} {entry['mean']:.4f}  95 % {entry['low']:.4f} to {entry['high']:.4f}  n {entry['n']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
