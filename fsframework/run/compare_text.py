"""A comparison as Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fsframework.run.artifacts import to_json
from fsframework.run.compare_cells import Cell, Row, Table

if TYPE_CHECKING:
    from fsframework.run.compare import Comparison

SUFFIXES = (".md", ".csv", ".tex", ".json", ".svg")


def render(comparison: Comparison, suffix: str, pictures: Sequence[str] = ()) -> str:
    """The whole comparison in the format of a file name's ending; `pictures` are named in the Markdown, one per block."""
    if suffix == ".md":
        return markdown(comparison, pictures)
    if suffix == ".csv":
        return csv_text(comparison)
    return latex(comparison) if suffix == ".tex" else json_text(comparison)


def markdown(comparison: Comparison, pictures: Sequence[str] = ()) -> str:
    """Headings, sentences and tables."""
    several = len(comparison.blocks) > 1
    parts = [f"# {comparison.title}", *_listed(comparison.notes)]
    for i, block in enumerate(comparison.blocks):
        if several:
            parts.append(f"## {block.name}")
        level = "###" if several else "##"
        parts.append(block.about)
        parts += [f"{level} What differs", *_listed(block.statements)]
        for table in block.tables:
            parts += [f"{level} {table.title}", table.about, table_markdown(table), *_listed(table.notes)]
        if i < len(pictures):
            parts.append(f"![{block.name or 'sweeps'}]({pictures[i]})")
    return "\n\n".join(parts) + "\n"


def _listed(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []


def table_markdown(table: Table) -> str:
    """The table alone; n in a column of its own, and in a cell where it is another."""
    has_n = any(row.n[1] for row in table.rows)
    head = [table.first, *table.columns, *(["videos (prompts)"] if has_n else [])]
    lines = ["| " + " | ".join(map(_escaped, head)) + " |", "|" + " --- |" * len(head)]
    best = _best(table)
    for i, row in enumerate(table.rows):
        cells = [_cell(c, row, (i, j) in best) for j, c in enumerate(row.cells)]
        n = [f"{row.n[1]} ({row.n[0]})" if row.n[1] else "-"] if has_n else []
        lines.append("| " + " | ".join(map(_escaped, [row.label, *cells, *n])) + " |")
    return "\n".join(lines)


def _best(table: Table) -> set[tuple[int, int]]:
    """Cells to set bold."""
    found = set()
    for j, sign in enumerate(table.is_best_marked):
        known = [(sign * row.cells[j].value, i) for i, row in enumerate(table.rows) if row.cells[j].num_videos]
        is_bound = any(row.cells[j].text for row in table.rows if row.cells[j].num_videos)  # `at most` may be less
        if sign and len(known) > 1 and not is_bound:
            most = max(value for value, _ in known)
            found |= {(i, j) for value, i in known if value == most}
    return found


def _cell(cell: Cell, row: Row, is_best: bool = False) -> str:
    if math.isnan(cell.value):
        return cell.text
    number = f"**{cell.number}**" if is_best else cell.number
    if not cell.has_interval:
        return f"{number}: {cell.text}" if cell.text else number
    n = "" if (cell.num_prompts, cell.num_videos) == row.n else f", n={cell.num_videos}"
    return f"{cell.text} {number} ({cell.spread}{n})".lstrip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def csv_text(comparison: Comparison) -> str:
    """A line per number, for pandas: block, table, row, column, value, low, high, videos, prompts, text, open ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ["low_is_open", "high_is_open"]
    writer.writerow(
        ["block", "table", "row", "column", "value", "low", "high", "num_videos", "num_prompts", "text", *ends]
    )
    for block in comparison.blocks:
        for table in block.tables:
            for row in table.rows:
                for name, cell in zip(table.columns, row.cells):
                    numbers = ["" if math.isnan(v) else f"{v:.10g}" for v in (cell.value, cell.low, cell.high)]
                    flags = [str(flag).lower() for flag in (cell.is_low_open, cell.is_high_open)]
                    counts = [cell.num_videos, cell.num_prompts] if cell.has_interval else ["", ""]
                    writer.writerow([block.name, table.title, row.label, name, *numbers, *counts, cell.text, *flags])
    return out.getvalue()


def json_text(comparison: Comparison) -> str:
    """Everything, nested as it is."""
    blocks = [
        {
            "name": block.name,
            "about": block.about,
            "differences": block.statements,
            "tables": [
                {
                    "kind": table.key,
                    "title": table.title,
                    "about": table.about,
                    "notes": list(table.notes),
                    "rows": [
                        {"name": row.label, "cells": {c: _entry(x) for c, x in zip(table.columns, row.cells)}}
                        for row in table.rows
                    ],
                }
                for table in block.tables
            ],
        }
        for block in comparison.blocks
    ]
    content = {"title": comparison.title, "notes": comparison.notes, "blocks": blocks}
    return to_json(content, indent=2) + "\n"


def _entry(cell: Cell) -> dict[str, Any]:
    out: dict[str, Any] = {"value": cell.value}
    if cell.has_interval:
        out |= {"low": cell.low, "high": cell.high, "num_videos": cell.num_videos, "num_prompts": cell.num_prompts}
        out |= {"low_is_open": cell.is_low_open, "high_is_open": cell.is_high_open}
    return out | ({"text": cell.text} if cell.text else {})


def latex(comparison: Comparison) -> str:
    """A booktabs table per table; the interval small behind each mean, what differs as comments above."""
    parts = ["% needs \\usepackage{booktabs}; value, then 95 % interval over prompts in small"]
    for block in comparison.blocks:
        parts += [f"% {line}" for line in (block.name, block.about, *block.statements) if line]
        for table in block.tables:
            parts.append(_latex_table(table))
    return "\n".join(parts) + "\n"


def _latex_table(table: Table) -> str:
    has_n = any(row.n[1] for row in table.rows)
    head = [table.first, *table.columns, *(["videos (prompts)"] if has_n else [])]
    lines = [f"\n% {table.title}. {table.about}", *(f"% {note}" for note in table.notes)]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(_tex, head)) + " \\\\", "\\midrule"]
    best = _best(table)
    for i, row in enumerate(table.rows):
        cells = [_tex_cell(c, row, (i, j) in best) for j, c in enumerate(row.cells)]
        n = [f"{row.n[1]} ({row.n[0]})" if row.n[1] else "--"] if has_n else []
        lines.append(" & ".join([_tex(row.label), *cells, *n]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _tex_cell(cell: Cell, row: Row, is_best: bool) -> str:
    if math.isnan(cell.value):
        return _tex(cell.text) if cell.text not in ("-", "") else "--" if cell.text else ""
    number = f"\\textbf{{{_tex(cell.number)}}}" if is_best else _tex(cell.number)
    if not cell.has_interval:
        return f"{number}: {_tex(cell.text)}" if cell.text else number
    n = "" if (cell.num_prompts, cell.num_videos) == row.n else f", n={cell.num_videos}"
    return f"{_tex(cell.text)} {number} {{\\scriptsize ({_tex(cell.spread + n)})}}".lstrip()


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
