"""The `fsf` command. Heavy imports happen inside the command that needs them, so that help and lists answer at once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import fsframework

USER_ERROR = 2
"""Exit code of a mistake that the user can mend."""
CELLS_LEFT = 1
"""Exit code of an ablation with cells that failed or are not finished."""
INTERRUPTED = 130
"""Exit code after Ctrl-C or a polite kill."""

_DESCRIPTION = """\
Feature reuse in diffusion transformers: generate videos under a reuse policy and measure what it costs and saves.

A run is a model, a policy and prompts. It is described by a small YAML file that states differences from the defaults;
any `section.key=value` after it changes one value. A run that was stopped goes on with the same command.
"""

_EXAMPLES = """\
examples:
  fsf demo                                        full compute, static reuse and Foresight side by side, in minutes
  fsf run experiments/quickstart/run.yaml         one run; prints where its report.html is
  fsf run experiments/quickstart/run.yaml policy.gamma=0.25 seeds.per_prompt=2
  fsf run experiments/quickstart/run.yaml policy=static policy.interval=3 name=static3
  fsf calibrate teacache tiny-latte prompts.limit=16   measure the numbers a policy needs for a model
  fsf ablate experiments/foresight_ablation/gamma.yaml --dry-run   a grid of runs: which cells, how long
  fsf bench                                       our policies beside diffusers' and cache-dit's caches: time, FLOPs, error
  fsf report runs/a-1c5767 runs/b-9e01aa          one comparison page of several runs
  fsf compare runs/_ablations/gamma --baseline static   methods at equal compute and at equal quality, with intervals
  fsf list policies                               every policy by group; with names: options, defaults, what they do
  fsf list models | metrics | prompts
  fsf train experiments/learned/tiny-latte-l2c.yaml   train a policy for a frozen model
  fsf train experiments/tiny_models/latte.yaml    train the tiny model again

errors end with exit code 2 and one sentence; set FSF_DEBUG=1 to see where they come from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 if cells of an ablation failed, 2 for a user's mistake, 130 when
    interrupted."""
    parser = _parser()
    arguments = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    if arguments.command is None:
        parser.print_help()
        return 0
    # Waiting OpenMP threads spin by default: that counts as CPU time, and on a machine with other work a small model takes
    # ten times as long (measured: 0.05 s of CPU against 0.2 to 2.8 s for the same video). Must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A polite kill is treated as Ctrl-C: the run says how to go on.
    previous = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None
    try:
        code: int | None = arguments.function(arguments)
        return code or 0
    except KeyboardInterrupt:
        print("fsf: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `fsf list policies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        if os.environ.get("FSF_DEBUG") or not is_user_error(error):
            raise
        print(f"fsf: error: {error}", file=sys.stderr)
        return USER_ERROR
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def is_user_error(error: BaseException) -> bool:
    """Whether the error was raised by this project's code or a plugin, whose `ValueError`s are written for the user.

    A ValueError from inside a library is a defect of ours: it keeps its traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] == "fsframework" or name.startswith("fsf_plugin_")


def _parser() -> argparse.ArgumentParser:
    def add(name: str, function: Any, summary: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )
        command.set_defaults(function=function)
        return command

    parser = _Parser(
        prog="fsf",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fsframework {fsframework.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = add("run", _run, "generate and measure what a YAML file describes; resumes", epilog=_RUN_HELP)
    run.add_argument("config", metavar="CONFIG.yaml", help="the run; see experiments/quickstart/run.yaml")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="changes, such as policy.gamma=0.25")

    ablate = add(
        "ablate",
        _ablate,
        "run a grid of runs and compare them; resumes",
        usage="fsf ablate CONFIG.yaml [key=value ...] [--dry-run] [--jobs N | --executor ray] [--part I/N]",
        epilog=_ABLATE_HELP,
    )
    ablate.add_argument("config", metavar="CONFIG.yaml", help="see experiments/foresight_ablation/gamma.yaml")
    ablate.add_argument("overrides", nargs="*", metavar="key=value", help="changes for all cells")
    ablate.add_argument("--dry-run", action="store_true", help="list the cells and what they will take; run nothing")
    ablate.add_argument("--jobs", type=int, metavar="N", help="run N cells side by side in processes of this machine")
    ablate.add_argument("--executor", choices=("local", "ray"), help="where cells run; default: what the file says")
    ablate.add_argument("--part", metavar="I/N", help="only the cells I, I + N, ... (I from 0): one of N cluster jobs")
    ablate.add_argument(
        "--seconds-per-step", type=float, metavar="S", help="of full compute, for the estimate of --dry-run"
    )

    calibrate = add(
        "calibrate",
        _calibrate,
        "measure, for a model, the numbers that a policy needs; resumes",
        usage="fsf calibrate POLICY MODEL [key=value ...]\n       fsf calibrate CONFIG.yaml [key=value ...]",
        epilog=_CALIBRATE_HELP,
    )
    calibrate.add_argument("what", metavar="POLICY|CONFIG.yaml", help="see `fsf list policies`; or a run's YAML file")
    calibrate.add_argument("rest", nargs="*", metavar="MODEL key=value", help="see `fsf list models`; changes")

    bench = add(
        "bench",
        _bench,
        "measure our policies beside the bare model and the caches of diffusers and cache-dit",
        usage="fsf bench [MODEL] [key=value ...]",
        epilog=_BENCH_HELP,
    )
    bench.add_argument("rest", nargs="*", metavar="MODEL key=value", help="see `fsf list models`; changes")

    demo = add("demo", _demo, "full compute, static reuse and Foresight on the tiny model, with one comparison report")
    demo.add_argument("--fresh", action="store_true", help="do not keep the videos of an earlier demo")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="changes for all three runs")

    train = add(
        "train",
        _train,
        "train a policy for a frozen model, or a tiny model; resumes",
        usage="fsf train CONFIG.yaml [key=value ...]",
        epilog=_TRAIN_HELP,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="such as experiments/learned/tiny-latte-l2c.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="changes, such as num_iterations=50")

    report = add("report", _report, "write one self-contained page about one or several run directories")
    report.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="a run, or a grid's folder (<runs_dir>/_ablations/<name>)"
    )
    report.add_argument("--out", metavar="FILE.html", help="default: report.html in the run, or beside several runs")

    compare = add(
        "compare",
        _compare,
        "tables of finished runs at equal compute and at equal quality",
        usage="fsf compare RUN_DIR|GRID ... [--at F ...] [--quality METRIC=VALUE ...] [--baseline NAME] [--by WHAT] [...]",
        epilog=_COMPARE_HELP,
    )
    compare.add_argument(
        "paths", nargs="+", metavar="RUN_DIR|GRID", help="run directories, runs/_ablations/NAME, or a grid's YAML file"
    )
    compare.add_argument(
        "--at", nargs="+", type=float, metavar="F", help="shares of full compute; default: 0.75 0.5 0.33"
    )
    compare.add_argument("--quality", nargs="+", default=[], metavar="METRIC=VALUE", help="such as psnr=35")
    compare.add_argument("--baseline", metavar="NAME", help="a method; differences to it, and its quality as the level")
    compare.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="tables for each resolution, num_steps, model, prompt or config key",
    )
    compare.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME", help="what to show; the first is compared by"
    )
    compare.add_argument("--split", nargs="+", default=[], metavar="KEY", help="a line for each value of a config key")
    compare.add_argument("--series", nargs="+", default=[], metavar="NAME=PATTERN", help="name the runs like ours-*")
    compare.add_argument(
        "--reach",
        type=float,
        metavar="F",
        help="follow a line so far beyond its last setting; default: 0.05; 0: not at all",
    )
    compare.add_argument(
        "--mixed-references", action="store_true", help="also rows compared with different full-compute videos"
    )
    compare.add_argument(
        "--out", nargs="+", default=[], metavar="FILE", help=".md (with pictures), .csv, .tex, .json, .svg"
    )

    listing = add("list", _list, "what there is to choose from")
    listing.add_argument("what", choices=sorted(_LISTS), metavar="policies|models|metrics|prompts")
    listing.add_argument(
        "names",
        nargs="*",
        metavar="NAME|FILE.py",
        help="for policies: show the options of these, or of those in your file; for prompts: show those of a set or file",
    )
    listing.add_argument(
        "--sizes",
        nargs="*",
        metavar="MODEL",
        help="for models: sites, FLOPs and cache bytes at their published size, counted without weights (default: all)",
    )
    listing.add_argument(
        "--roofline",
        choices=("a100", "h100"),
        help="with --sizes: what deciding and doing reuse costs on this GPU beside the blocks, computed and not measured",
    )
    return parser


_RUN_HELP = """\
The config's sections: name, model, policy, sampling, prompts, seeds, metrics, reference, tracking, engine, launch, output,
plugins. Every key, its unit and default is documented in fsframework/config/schema.py; a policy's options are in
`fsf list policies NAME`. The run directory is <output.runs_dir>/<name>-<hash of everything that changes the results>.
"""


_ABLATE_HELP = """\
The file names a base run and what varies; the cells are the product:

  base: run.yaml                       a run's file, beside this one; or the run itself as a mapping
  grid: {policy.gamma: [0.25, 0.5]}    any keys of `fsf run`, those of a policy inside another included; all combinations
  zip:  {policy.warmup: [2, 4], ...}   keys that vary together; a list for several such groups
  cells:                               settings by name; each may have a grid, a zip and resources of its own
    - {name: full, policy: full}
    - {name: static, policy: static, grid: {policy.interval: [2, 3]}}
  executor: {name: local, jobs: 1}     or {name: ray, num_gpus: 1}

Every cell is checked before any runs, and becomes an ordinary run directory. The table, the report, a status per cell and
the log of a cell that failed are in <output.runs_dir>/_ablations/<name>. Ends with 0 if every cell is finished, with 1 if
not. The same command goes on, keeps finished cells and tries failed ones again.
"""


_CALIBRATE_HELP = """\
Some policies decide by numbers that belong to a model: TeaCache by a polynomial, SmoothCache by a table of errors. This
command generates what such a policy's calibration asks for, keeps a record of each video, fits, and writes an artifact: one
JSON file with the numbers, the run they hold for, and where they come from. A picture and the records go beside it.

The keys are those of `fsf run`:
  prompts.set, prompts.texts, prompts.limit    what to generate; for a real model give captions like those you will use
  seeds.base, seeds.per_prompt                 clip i starts from noise of seed base + i
  sampling.num_steps, .guidance_scale, ...     sample as you will later: an artifact is for one setting
  policy.OPTION                                an option of the policy that the calibration reads
  launch.num_processes, launch.num_threads     several processes share the work; the result is the same
  output.artifact=FILE.json                    default: artifacts/<policy>-<model>-<steps>steps-<hash>.json
metrics, reference and tracking mean nothing here. With a YAML file whose policy names an `artifact`, that is written.

examples:
  fsf calibrate teacache tiny-latte prompts.limit=16
  fsf calibrate smoothcache tiny-latte sampling.num_steps=20 prompts.limit=4 output.artifact=smooth20.json
  fsf calibrate lemica opensora-1.2 prompts.set=captions.txt prompts.limit=8 launch.num_processes=4
  fsf run CONFIG.yaml "policy={name: smoothcache, artifact: smooth20.json}" sampling.num_steps=20

A calibration that was stopped goes on with the same command; one with more prompts takes over the records there are.
"""


_COMPARE_HELP = """\
Runs of one method at several settings make a line of quality against compute; two methods are compared where both lines
have the same compute (--at), or the same quality (--quality; with --baseline also that of each of its settings).

  - A line holds the runs that differ only in numbers among one policy's options. Any other difference makes another line:
    a word or a switch (storage=residual), a policy inside, the engine's options, a `cells` entry of the grid. A policy swept
    in two options is one line; `--split policy.recompute_every` makes one for each of its values.
  - Each video is read off between its own two neighbouring settings; one that ends more than --reach away is left out, and
    n says so. Nothing is read further.
  - Intervals are 95 % bootstrap over prompts, all seeds of a prompt together, in pairs where methods are compared.
  - What differs between rows besides the method (threads, machine, revision, load, ...) is listed. Rows of other models,
    sampling, prompts or seeds are refused: their full-compute videos are not the same. --by gives each its own tables.

examples:
  fsf compare runs/static-* runs/foresight-* --baseline static --out comparison.md comparison.csv
  fsf compare runs/paper/_ablations/matched_quality --baseline pab --quality psnr=30 psnr=35
  fsf compare runs/paper/_ablations/resolution --by resolution --metric psnr ssim
  fsf compare runs/_ablations/gamma --by prompt --at 0.5
  fsf compare runs/a-* runs/b-* --series "ours=a-*" "theirs=b-*"
"""


_TRAIN_HELP = """\
With a key `train` in the file a policy is learned for a frozen model, and an artifact is written that the ordinary policy of
that name loads:

  train: {name: l2c, interval: 2, penalty: 0.001}    the trainer and its options (l2c, harmonica, ...)
  model: tiny-latte                                  frozen; what it learns does not touch it
  sampling: {num_steps: 30}                          as the policy will be used: gates are for one sampler and its steps
  prompts: digits-train                              captions to learn from, seeds.per_prompt clips of each
  validation: {every: 10, patience: 3}               early stopping on clips that are not learned from
  num_iterations, learning_rate, batch_clips, seed   the optimizer; precision: bf16-mixed; num_processes share a batch
  output_dir: runs/train/NAME                        checkpoint, metrics.jsonl, W&B's files
  artifact: FILE.json                                default: artifact.json in output_dir; its picture goes beside it

Every key, its unit and default is documented in fsframework/train/learned_config.py. A training that was stopped, at any
moment, goes on with the same command and ends with the same numbers. Then evaluate it like any policy:

  fsf run CONFIG.yaml "policy={name: l2c, artifact: FILE.json, budget: 0.5}" sampling.num_steps=30

Without the key the file is for a tiny model, such as experiments/tiny_models/latte.yaml.
"""


_BENCH_HELP = """\
Without a MODEL three sections are measured: `engine`, what a visit of a block and a forward cost; `model`, policies and peers
on a trained tiny model; `wide`, the same on a random transformer 1024 wide, where saved compute must become saved time. With a
MODEL only that. All methods take turns in each round, in one process. Writes <out>/bench.json, bench.md and a picture per
section; Ctrl-C leaves what was measured until then. Every key is documented in fsframework/run/bench_config.py:

  rounds=5 sections=[wide] policies=[full,{name: static, interval: 3}] peers=false num_threads=1 out=runs/bench
  num_steps, height, width, num_frames, prompts, seed, device, dtype      how videos of MODEL are sampled
  wide_hidden, wide_blocks, wide_steps, wide_frames                       size of the random transformer

examples:
  fsf bench
  fsf bench cogvideox-2b device=cuda rounds=9
  fsf bench sections=[engine] rounds=15
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")


def _run(arguments: argparse.Namespace) -> None:
    import json

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


def _ablate(arguments: argparse.Namespace) -> int:
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


def _calibrate(arguments: argparse.Namespace) -> None:
    from fsframework.config.load import load_config

    what, rest = arguments.what, arguments.rest
    if what.endswith((".yaml", ".yml")):
        config = load_config(what, rest)
    elif not rest or "=" in rest[0]:
        raise ValueError(f"which model? fsf calibrate {what} MODEL; see `fsf list models`")
    else:
        import json

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


def _bench(arguments: argparse.Namespace) -> None:
    from fsframework.run.bench_config import load_bench

    names = [word for word in arguments.rest if "=" not in word]
    if len(names) > 1:
        raise ValueError(f"fsf bench measures one model; found {', '.join(names)}")
    config = load_bench(names[0] if names else None, [word for word in arguments.rest if "=" in word])
    from fsframework.run.bench import bench

    bench(config)


def _demo(arguments: argparse.Namespace) -> None:
    from fsframework.run.demo import demo

    demo(arguments.overrides, fresh=arguments.fresh)


def _train(arguments: argparse.Namespace) -> None:
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
    from fsframework.run.artifacts import environment, model_fingerprint, write_text
    from fsframework.run.calibrate_picture import picture
    from fsframework.run.progress import quiet_libraries
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


def _report(arguments: argparse.Namespace) -> None:
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


def _compare(arguments: argparse.Namespace) -> None:
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


def _list(arguments: argparse.Namespace) -> None:
    if arguments.sizes is not None:
        if arguments.what != "models":
            raise ValueError(f"--sizes is for `fsf list models`, not for {arguments.what}")
        _list_sizes(arguments.sizes, arguments.roofline)
    elif arguments.roofline is not None:
        raise ValueError("--roofline goes with --sizes: `fsf list models --roofline h100 --sizes latte-1`")
    else:
        _LISTS[arguments.what](arguments.names)


def _list_sizes(names: list[str], card: str | None) -> None:
    from fsframework.run import roofline
    from fsframework.run.sizes import NOTE, sizes, table_rows

    found = []
    for size in sizes(names):
        print(f"{size.name}: counted", file=sys.stderr)
        found.append(size)
    if card is not None:
        print(f"{roofline.CARDS[card].name}\n")
        _print_columns(roofline.table_rows(found, roofline.CARDS[card]))
        print(f"\n{roofline.NOTE}")
        return
    for table in table_rows(found):
        _print_columns(table)
        print()
    print(NOTE)


def _list_policies(words: list[str]) -> None:
    from fsframework.run.catalog import by_group, list_policies, one_line, policies_named

    if not words:
        policies = list_policies()
        width = max(len(policy.name) for policy in policies)
        whole = not sys.stdout.isatty()  # for a search or another program
        for heading, members in by_group(policies).items():
            print(heading)
            for policy in members:
                mark = "*" if policy.is_calibrated else " "
                summary = policy.summary if whole else one_line(policy.summary, 110 - width)
                print(f"  {policy.name:{width}} {mark} {summary}")
            print()
        print("* reads numbers that can be measured for a model: fsf calibrate NAME MODEL")
        print("`fsf list policies NAME ...` shows options, defaults and what they do; FILE.py those of your own")
        return
    for policy in policies_named(words):
        print(f"{policy.name}: {policy.summary}")
        if policy.is_calibrated:
            print(f"    can be measured for a model: fsf calibrate {policy.name} MODEL")
        for option in policy.options:
            print(f"    {option.name}: {option.type} = {option.default}")
            print(textwrap.fill(option.doc, 116, initial_indent=" " * 8, subsequent_indent=" " * 8))
        print()


def _list_models(words: list[str]) -> None:
    from fsframework.run.catalog import list_models

    rows = [("name", "family", "source")]
    for model in list_models():
        source = model.source if "/" in model.source else ("bundled" if model.is_bundled else "bundled, but not there")
        rows.append((model.name, model.family, source))
    _print_columns(rows)
    print("\nor a diffusers pipeline folder, or owner/name on the Hugging Face hub; `--sizes` counts them at full size")


def _list_metrics(words: list[str]) -> None:
    from fsframework.run.catalog import list_metrics

    rows = [("name", "unit", "better", "reference", "what")]
    for metric in list_metrics():
        compared = "needed" if metric.needs_reference else "no"
        rows.append((metric.name, metric.unit or "-", metric.better, compared, metric.description))
    _print_columns(rows)
    print("\nalways measured: seconds (CPU and wall), FLOPs, reuse fraction, cache bytes, host reads")


def _list_prompts(words: list[str]) -> None:
    from fsframework.data.prompts import SETS, load_prompts, vbench_file

    if not words:
        missing = "" if vbench_file() else "; not installed here: pip install --no-deps vbench"
        rows = [(name, summary + (missing if name == "vbench" else "")) for name, (summary, _) in SETS.items()]
        _print_columns([("name", "what"), *rows])
        print("\nor a .txt (a prompt per line), .csv (column `prompt`), .json or .jsonl file, or prompts=[a, b]")
        print("`fsf list prompts NAME|FILE` shows them, with the seeds and facts that a file gives them")
    for name in words:
        for prompt in load_prompts(name):
            seeds = f"  seeds {', '.join(map(str, prompt.seeds))}" if prompt.seeds else ""
            facts = f"  {json.dumps(dict(prompt.facts), ensure_ascii=False)}" if prompt.facts else ""
            print(f"{prompt.text}{seeds}{facts}")


_LISTS = {"policies": _list_policies, "models": _list_models, "metrics": _list_metrics, "prompts": _list_prompts}


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
