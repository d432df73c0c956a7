"""The commands of `fsf` and their arguments."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

import fsframework
from fsframework.cli import commands, words
from fsframework.cli.listing import LISTS, print_choices

USER_ERROR = 2
"""Exit code of a mistake that the user can mend."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `fsf` with all commands; each sets `function`, what carries it out."""

    def add(name: str, function: Any, summary: str, **options: Any) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )
        command.set_defaults(function=function)
        return command

    parser = _Parser(
        prog="fsf",
        description=words.DESCRIPTION,
        epilog=words.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fsframework {fsframework.__version__}")
    parser.set_defaults(command=None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = add("run", commands.run, "generate and measure what a YAML file describes; resumes", epilog=words.RUN)
    run.add_argument("config", metavar="CONFIG.yaml", help="the run; see experiments/quickstart/run.yaml")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="changes, such as policy.gamma=0.25")

    ablate = add(
        "ablate",
        commands.ablate,
        "run a grid of runs and compare them; resumes",
        usage="fsf ablate CONFIG.yaml [key=value ...] [--dry-run] [--jobs N | --executor ray] [--part I/N]",
        epilog=words.ABLATE,
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
        commands.calibrate,
        "measure, for a model, the numbers that a policy needs; resumes",
        usage="fsf calibrate POLICY MODEL [key=value ...]\n       fsf calibrate CONFIG.yaml [key=value ...]",
        epilog=words.CALIBRATE,
    )
    calibrate.add_argument("what", metavar="POLICY|CONFIG.yaml", help="see `fsf list policies`; or a run's YAML file")
    calibrate.add_argument("rest", nargs="*", metavar="MODEL key=value", help="see `fsf list models`; changes")

    bench = add(
        "bench",
        commands.bench,
        "measure our policies beside the bare model and the caches of diffusers and cache-dit",
        usage="fsf bench [MODEL] [key=value ...]",
        epilog=words.BENCH,
    )
    bench.add_argument("rest", nargs="*", metavar="MODEL key=value", help="see `fsf list models`; changes")

    demo = add(
        "demo", commands.demo, "full compute, static reuse and Foresight on the tiny model, with one comparison report"
    )
    demo.add_argument("--fresh", action="store_true", help="do not keep the videos of an earlier demo")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="changes for all three runs")

    train = add(
        "train",
        commands.train,
        "train a policy for a frozen model, or a tiny model; resumes",
        usage="fsf train CONFIG.yaml [key=value ...]",
        epilog=words.TRAIN,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="such as experiments/learned/tiny-latte-l2c.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="changes, such as num_iterations=50")

    report = add("report", commands.report, "write one self-contained page about one or several run directories")
    report.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="a run, or a grid's folder (<runs_dir>/_ablations/<name>)"
    )
    report.add_argument("--out", metavar="FILE.html", help="default: report.html in the run, or beside several runs")

    compare = add(
        "compare",
        commands.compare,
        "tables of finished runs at equal compute and at equal quality",
        usage="fsf compare RUN_DIR|GRID ... [--at F ...] [--quality METRIC=VALUE ...] [--baseline NAME] [--by WHAT] [...]",
        epilog=words.COMPARE,
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
        help="tables for each resolution, num_steps, scheduler, model, prompt or config key",
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

    listing = add("list", print_choices, "what there is to choose from")
    listing.add_argument("what", choices=sorted(LISTS), metavar="policies|models|metrics|prompts")
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
