"""What each command of `fsf` does, from its arguments on. Whatever is heavy is imported in the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import fsframework

CELLS_LEFT = 1
"""Exit code of an ablation with cells that failed or are not finished."""


def run(arguments: argparse.Namespace) -> None:
    """Make one run; print its numbers and where its report is."""
    from fsframework.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    from fsframework.run.launch import is_first_process
    from fsframework.run.results import table
    from fsframework.run.runner import run

    folder = run(config)
    if not is_first_process():
        return
    metrics = json.loads((folder / "metrics.json").read_text())
    print(table([(metrics["policy"], metrics)]))
    print(f"{metrics['num_videos']} videos of {metrics['model']}, {metrics['sampling']['num_steps']} steps")
    print(f"report: {folder / 'report.html'}")


def ablate(arguments: argparse.Namespace) -> int:
    """Run a grid, or list its cells; 1 if cells are left."""
    import dataclasses

    from fsframework.config.grid import load_ablation

    ablation = load_ablation(arguments.config, arguments.overrides)
    executor = ablation.executor
    if arguments.executor is not None:
        executor = dataclasses.replace(executor, name=arguments.executor)
    if arguments.jobs is not None:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
        executor = dataclasses.replace(executor, jobs=arguments.jobs)
    part = _part(arguments.part)
    from fsframework.run.ablation import ablate, rehearsal

    if arguments.dry_run:
        print(rehearsal(ablation, executor, arguments.seconds_per_step))
        return 0
    result = ablate(ablation, executor, part)
    if result.is_first:
        print(result.text())
    return 0 if result.is_complete else CELLS_LEFT


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--part {text}: write I/N with I from 0 to N - 1, such as 0/8")
    return int(index), int(count)


def calibrate(arguments: argparse.Namespace) -> None:
    """Measure what a policy needs to know of a model."""
    from fsframework.config.load import load_config

    what, rest = arguments.what, arguments.rest
    if what.endswith((".yaml", ".yml")):
        config = load_config(what, rest)
    elif not rest or "=" in rest[0]:
        raise ValueError(f"which model? fsf calibrate {what} MODEL; see `fsf list models`")
    else:
        from fsframework.run.catalog import list_models, list_policies

        is_turned = rest[0] in {p.name for p in list_policies()} and what in {m.name for m in list_models()}
        if is_turned:
            raise ValueError(f"the policy comes first: fsf calibrate {' '.join([rest[0], what, *rest[1:]])}")
        config = load_config(None, [f"policy={json.dumps(what)}", f"model={json.dumps(rest[0])}", *rest[1:]])
    from fsframework.run.calibrate import calibrate
    from fsframework.run.launch import is_first_process

    result = calibrate(config)
    if is_first_process():
        print(result.text())


def bench(arguments: argparse.Namespace) -> None:
    """Measure methods side by side."""
    from fsframework.run.bench_config import load_bench

    names = [word for word in arguments.rest if "=" not in word]
    if len(names) > 1:
        raise ValueError(f"fsf bench measures one model; found {', '.join(names)}")
    config = load_bench(names[0] if names else None, [word for word in arguments.rest if "=" in word])
    from fsframework.run.bench import bench

    bench(config)


def demo(arguments: argparse.Namespace) -> None:
    """Three runs and one report of them."""
    from fsframework.run.demo import demo

    demo(arguments.overrides, fresh=arguments.fresh)


def train(arguments: argparse.Namespace) -> None:
    """Train a policy for a frozen model, or a tiny model."""
    if not Path(arguments.config).is_file():
        raise ValueError(f"no such file: {arguments.config}")
    from fsframework.train.learned_config import trains_a_policy

    if trains_a_policy(arguments.config):
        _learn(arguments.config, arguments.overrides)
        return
    from fsframework.train.tiny import main as train

    train([arguments.config, *arguments.overrides])


def _learn(path: str, overrides: list[str]) -> None:
    from fsframework.train.learned_config import load_learned_config

    config = load_learned_config(path, overrides)
    from fsframework.run.artifacts import write_text
    from fsframework.run.calibrate_picture import picture
    from fsframework.run.progress import quiet_libraries
    from fsframework.run.provenance import environment, model_fingerprint
    from fsframework.train.learned_fit import learn

    quiet_libraries()
    folder = Path(fsframework.__file__).resolve().parent
    learned = learn(
        config,
        describe=lambda model: {
            "fingerprint": model_fingerprint(model.path),
            "environment": environment(str(model.transformer.device), folder),
        },
    )
    if learned.is_first:
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in learned.fit.numbers.items())
        drawing = picture(learned.fit, f"{learned.policy} trained on {learned.model}", numbers)
        write_text(learned.artifact.with_suffix(".svg"), drawing)
        print(learned.text())


def report(arguments: argparse.Namespace) -> None:
    """Write one page about run directories."""
    folders = [Path(name) for name in arguments.run_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no such run directory: {folder}")
        is_grid = (folder / "ablation.json").is_file()  # stands for its finished cells
        if not is_grid and not (folder / "metrics.json").is_file():
            inside = sorted(str(p.parent) for p in folder.glob("*/metrics.json"))
            hint = f" Did you mean one of its runs: {', '.join(inside[:4])}?" if inside else ""
            stopped = (folder / "config.yaml").is_file()
            what = "was not finished: `fsf run` it again" if stopped else "is not a run directory"
            raise ValueError(f"{folder} has no metrics.json, so it {what}.{hint}")
    if arguments.out:
        out = Path(arguments.out)
    else:
        parent = folders[0] if len(folders) == 1 else Path(os.path.commonpath([f.resolve().parent for f in folders]))
        out = parent / "report.html"
    from fsframework.run.report import write_report

    print(f"report: {write_report(folders, out, ' vs '.join(f.resolve().name for f in folders))}")


def compare(arguments: argparse.Namespace) -> None:
    """Print or write tables of finished runs."""
    paths = [Path(name) for name in arguments.paths]
    for path in paths:
        if not path.exists():
            raise ValueError(f"no such run directory or grid: {path}")
    quality = []
    for metric, value in _pairs("--quality", arguments.quality, "psnr=35"):
        try:
            quality.append((metric, float(value)))
        except ValueError:
            raise ValueError(f"--quality {metric}={value}: the value must be a number, such as psnr=35") from None
    from fsframework.run.compare import Options, compare
    from fsframework.run.compare_sweep import REACH

    options = Options(
        at=arguments.at,
        quality=quality,
        baseline=arguments.baseline,
        by=arguments.by,
        metrics=arguments.metric,
        split=arguments.split,
        series=dict(_pairs("--series", arguments.series, "ours=ours-*")),
        reach=REACH if arguments.reach is None else arguments.reach,
        mixed_references=arguments.mixed_references,
    )
    comparison = compare(paths, options)
    if not arguments.out:
        print(comparison.text())
    for name in arguments.out:
        for file in comparison.write(Path(name)):
            print(f"comparison: {file}")


def _pairs(option: str, words: Sequence[str], example: str) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} {word}: write it like {example}")
        found.append((name, value))
    return found
