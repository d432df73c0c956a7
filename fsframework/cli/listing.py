"""`fsf list`: policies, models, metrics and prompts to choose from."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence


def print_choices(arguments: argparse.Namespace) -> None:
    """Print what there is of one sort."""
    if arguments.sizes is not None:
        if arguments.what != "models":
            raise ValueError(f"--sizes is for `fsf list models`, not for {arguments.what}")
        _list_sizes(arguments.sizes, arguments.roofline)
    elif arguments.roofline is not None:
        raise ValueError("--roofline goes with --sizes: `fsf list models --roofline h100 --sizes latte-1`")
    else:
        LISTS[arguments.what](arguments.names)


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


LISTS = {"policies": _list_policies, "models": _list_models, "metrics": _list_metrics, "prompts": _list_prompts}


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
