"""An ablation's rows as CSV, Markdown and text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsframework.config.grid import plain, to_json
from fsframework.config.published import Published

Row = Mapping[str, Any]
_PARTS = ("mean", "low", "high", "n")
_SHOWN = {
    "speedup": ("speedup", "x"),
    "flops_saved": ("FLOPs saved", "%"),
    "reuse_fraction": ("reused", "%"),
    "cache_bytes_peak": ("cache MB", "MB"),
}
"""Costs of the Markdown table: title and style; the quality metrics follow."""
_COSTS = ("seconds", "bytes", "joules", "speedup", "flops", "host_reads", "reuse_fraction")


def csv_text(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """A line per cell: its label, a column per varied key, its state, and mean, low, high and n of every metric."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [name if part == "mean" else f"{name}.{part}" for name in metrics for part in _PARTS]
    writer.writerow(["cell", *keys, "state", "num_videos", *columns, "directory"])
    for row in rows:
        changes = [to_json(row["changes"][key]) if key in row["changes"] else "" for key in keys]
        numbers = [_number(row["metrics"].get(name), part) for name in metrics for part in _PARTS]
        writer.writerow([row["cell"], *changes, row["state"], row["num_videos"], *numbers, row["directory"]])
    return out.getvalue()


def markdown(name: str, rows: Sequence[Row], keys: Sequence[str], published: Sequence[Published] = ()) -> str:
    """A page with the table: mean and 95 % interval over videos, n where it is not that of all; below it published ones."""
    quality = [n for n in dict.fromkeys(n for row in rows for n in row["metrics"]) if not any(c in n for c in _COSTS)]
    first = next((row for row in rows if row["metrics"]), None)
    units = {} if first is None else {n: str(m.get("unit", "")) for row in rows for n, m in row["metrics"].items()}
    titles = [f"{n} {units[n]}".strip() for n in quality]
    shown = [key for key in keys if key != "policy" or any(row["group"] is None for row in rows)]
    has_groups = any(row["group"] is not None for row in rows)
    head = [*(["cell"] if has_groups else []), *shown, "state", "n", *(title for title, _ in _SHOWN.values()), *titles]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [*([str(row["group"])] if has_groups else [])]
        cells += [plain(row["changes"][key]) if key in row["changes"] else "" for key in shown]
        state = row["state"] if row["same_as"] is None else f"same as {rows[row['same_as']]['cell']}"
        cells += [state, str(row["num_videos"])]
        cells += [_interval(row["metrics"].get(key), style, row["num_videos"]) for key, (_, style) in _SHOWN.items()]
        cells += [_interval(row["metrics"].get(key), "", row["num_videos"]) for key in quality]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    text = f"# {name}\n\nMean [95 % interval over videos] of every cell; n videos unless another n is given.\n\n"
    text += "\n".join(lines) + "\n"
    text += "".join(map(_published, published))
    failed = [row for row in rows if row["error"]]
    if failed:
        text += "\n## Failed\n\n" + "".join(f"- {row['cell']}: {row['error']} ({row['log']})\n" for row in failed)
    return text


def _published(table: Published) -> str:
    """A published table as it was given, with its source."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row.values))
    titles = [f"{key} {table.units.get(key, '')}".strip() for key in keys]
    lines = ["| " + " | ".join(["setting", "model", *titles]) + " |", "|" + " --- |" * (len(keys) + 2)]
    for row in table.rows:
        values = [f"{row.values[key]:g}" if key in row.values else "-" for key in keys]
        lines.append("| " + " | ".join([row.setting, row.model or "not said", *values]) + " |")
    words = " ".join(table.words())
    return f"\n## Published, by others on other hardware: {table.name}\n\n{words}\n\n" + "\n".join(lines) + "\n"


def _number(entry: Mapping[str, Any] | None, part: str) -> str:
    value = None if entry is None else entry.get(part)
    return "" if value is None else f"{value:.10g}"


def _interval(entry: Mapping[str, Any] | None, style: str, num_videos: int) -> str:
    if entry is None or entry.get("mean") is None:
        return "-"
    mean, low, high = (_styled(entry.get(part), style) for part in ("mean", "low", "high"))
    text = mean if entry.get("low") is None or mean == low == high else f"{mean} [{low}, {high}]"
    return text if entry.get("n") in (num_videos, None) else f"{text} (n = {entry['n']})"


def _styled(value: Any, style: str) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "identical"
    if style == "%":
        return f"{100 * value:.1f} %"
    if style == "MB":
        return f"{value / 1e6:.3g}"
    return f"{value:.3g}x" if style == "x" else f"{value:.4g}"
