"""The report's last section: what differs between the rows, and the command and config that repeat each."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fsframework.run.report_data import Json, RunData, plain
from fsframework.run.report_runs import run_name

NOT_CONFIG = ("name", "output", "tracking")
"""Config sections that do not change what is measured."""
NOT_ENVIRONMENT = ("command", "time", "resumed", "load_average")


def reproduce_section(runs: Sequence[RunData]) -> str:
    """What differs between the rows, each row's command and config, and what they were made with."""
    parts = ['<section id="reproduce"><h2>Differences and how to reproduce</h2>']
    if len(runs) > 1:
        table = config_differences(runs, NOT_CONFIG)
        table |= differences([run.environment for run in runs], NOT_ENVIRONMENT)
        parts.append("<h4>What differs between the rows</h4>")
        parts.append(_grid(runs, table) if table else '<p class="small">Nothing that is recorded.</p>')
    parts.append("<h4>Command and config of each row</h4>")
    for i, run in enumerate(runs):
        command = run.environment.get("command")
        made = shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")
        first = _copied(made) if made else '<p class="small missing">The command was not recorded.</p>'
        again = shlex.join(["fsf", "run", str(run.folder / "config.yaml")])
        config = _copied(run.config_text) if run.config_text else '<p class="missing">No config.yaml.</p>'
        parts.append(
            f'<div class="card plain" data-row="{i}">{run_name(run, i)}<p class="small">Made by</p>{first}'
            f'<p class="small">From its resolved config, below</p>{_copied(again)}'
            f"<details><summary>config.yaml</summary>{config}</details></div>"
        )
    common = [flatten({k: v for k, v in run.environment.items() if k not in NOT_ENVIRONMENT}) for run in runs]
    shared = {k: v for k, v in common[0].items() if all(tree.get(k) == v for tree in common)} if common else {}
    if shared:
        rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in shared.items())
        parts.append(
            '<div class="card plain"><details><summary>Environment, the same for all rows</summary>'
            f'<table class="facts-table"><tbody>{rows}</tbody></table></details></div>'
        )
    return "".join([*parts, "</section>"])


def config_differences(runs: Sequence[RunData], ignore: Sequence[str]) -> dict[str, list[str]]:
    """`differences` of the configs, without the options that every run which knows them has at their default."""
    chosen = {f"policy.{key}" for run in runs for key in flatten(run.options)} | {"policy.name", "policy"}
    table = differences([run.config for run in runs], ignore)
    return {key: values for key, values in table.items() if not key.startswith("policy.") or key in chosen}


def differences(trees: Sequence[Json], ignore: Sequence[str] = ()) -> dict[str, list[str]]:
    """Dotted keys whose values are not the same in all trees, each with the value per tree (`not set` where absent)."""
    flat = [flatten(tree) for tree in trees]
    keys = dict.fromkeys(key for tree in flat for key in tree)
    table = {key: [tree.get(key, "not set") for tree in flat] for key in keys if key.split(".")[0] not in ignore}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A tree as dotted keys with values in plain text."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = plain(value)
    return out


def _copied(text: str) -> str:
    """Text in fixed width with a button that copies it."""
    return f'<div class="copied"><button type="button" class="link" data-copy-text>Copy</button><pre>{escape(text)}</pre></div>'


def _grid(runs: Sequence[RunData], table: dict[str, list[str]]) -> str:
    heads = "".join(
        f'<th scope="col" class="text" data-row="{i}">{run.mark} {escape(run.title)}</th>' for i, run in enumerate(runs)
    )
    rows = ""
    for key, values in table.items():
        cells = "".join(f'<td data-row="{i}">{escape(value)}</td>' for i, value in enumerate(values))
        rows += f'<tr><th scope="row">{escape(key)}</th>{cells}</tr>'
    return (
        '<div class="scroll"><table class="facts-table"><thead><tr><th scope="col">Key</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
