"""From the records of single videos to `metrics.json`: every number as a mean with its interval and n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsframework.metrics import Metric, aggregate, bootstrap, ratio
from fsframework.run.costs import COST_UNITS
from fsframework.run.features import Features

Record = Mapping[str, Any]


def summarize(
    records: Sequence[Record],
    metrics: Sequence[Metric],
    device_type: str,
    features: Mapping[str, Sequence[Features]] | None = None,
) -> dict[str, Any]:
    """The numeric entries of `metrics.json`, and how they were obtained; `features` are for the metrics of sets, by name.

    `speedup` is total reference seconds over total method seconds, of those videos only whose reference was timed in the
    same run, right beside the method: process CPU seconds on a CPU (other work does not count), wall seconds elsewhere.
    """
    clock = "cpu_seconds" if device_type == "cpu" else "wall_seconds"
    timed = [r for r in records if r["reference_wall_seconds"] is not None]
    entries: dict[str, Any] = {
        "speedup": _speedup(timed, clock),
        "wall_speedup": _speedup(timed, "wall_seconds"),
        "flops_speedup": ratio(_column(records, "flops_full"), _column(records, "flops_executed")).entry("x", "higher"),
    }
    for name, unit, better in (
        ("flops_saved", "", "higher"),
        ("reuse_fraction", "", "higher"),
        ("cache_bytes_peak", "bytes", "lower"),
        ("host_reads_per_step", "reads/step", "lower"),
    ):
        entries[name] = bootstrap(_column(records, name)).entry(unit, better)
    for name in (*COST_UNITS, *(f"reference_{name}" for name in COST_UNITS)):
        summary = bootstrap(_column(records, name))
        if summary.n or name.endswith(("cpu_seconds", "wall_seconds")):  # those two clocks are everywhere
            entries[name] = summary.entry(COST_UNITS[name.removeprefix("reference_")], "lower")
    known = [{key: value for key, value in r["metrics"].items() if value is not None} for r in records]
    entries.update(aggregate(metrics, known))
    notes = []
    for metric in metrics:
        values, remarks = metric.of_set((features or {}).get(metric.name, ()))
        better = "higher" if metric.higher_is_better else "lower"
        entries.update({key: value.entry(metric.unit, better) for key, value in values.items()})
        notes += remarks
    identical = sum(bool(r.get("identical")) for r in records)
    if identical:
        notes.append(
            f"{identical} of {len(records)} videos are bit-identical to their reference, with a PSNR of infinity (1e999 in "
            f"JSON). psnr pools squared errors over videos, so identical ones count as error 0."
        )
    if len(timed) < len(records):
        notes.append(
            f"speedups are of the {len(timed)} of {len(records)} videos whose reference was timed beside the method "
            f"(reference.timing_videos); seconds of cached references are never used."
        )
    return {
        **entries,
        "timing": {
            "clock_of_speedup": "process CPU seconds" if clock == "cpu_seconds" else "wall seconds",
            "how": "one pipeline call (text encoding, denoising, decoding) of full compute and of the method, one right "
            "after the other in one process, taking turns at going first; after a warm-up call",
            "num_pairs": len(timed),
        },
        "notes": notes,
    }


def _speedup(timed: Sequence[Record], clock: str) -> dict[str, Any]:
    return ratio(_column(timed, f"reference_{clock}"), _column(timed, clock)).entry("x", "higher")


def _column(records: Sequence[Record], name: str) -> list[float]:
    # .get: a record of an earlier release, in a run that was resumed, lacks costs that are measured now.
    return [math.nan if r.get(name) is None else float(r[name]) for r in records]


def table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A short aligned table of runs: name and content of `metrics.json` each."""
    columns: list[tuple[str, str, str]] = [
        ("speedup CPU", "speedup", "x"),
        ("speedup wall", "wall_speedup", "x"),
        ("FLOPs saved", "flops_saved", "%"),
        ("reused", "reuse_fraction", "%"),
        ("PSNR dB", "psnr", ".1f"),
        ("SSIM", "ssim", ".3f"),
        ("adherence", "adherence", "%"),
        ("cache", "cache_bytes_peak", "B"),
        ("reads/step", "host_reads_per_step", ".2f"),
    ]
    if any(_clock(metrics) == "wall" for _, metrics in rows):
        columns = columns[1:]
    cells = [["policy", *(title for title, _, _ in columns)]]
    for name, metrics in rows:
        cells.append([name, *(_cell(metrics.get(key), style) for _, key, style in columns)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _clock(metrics: Mapping[str, Any]) -> str:
    return "wall" if str(metrics.get("timing", {}).get("clock_of_speedup", "")).startswith("wall") else "cpu"


def _cell(entry: Mapping[str, Any] | None, style: str) -> str:
    if entry is None or entry.get("mean") is None:
        return "-"
    value = float(entry["mean"])
    if math.isinf(value):
        return "identical"
    if style == "x":
        return f"{value:.2f}x"
    if style == "%":
        return f"{100 * value:.0f} %"
    if style == "B":
        return next(
            f"{value / size:.{0 if size == 1 else 1}f} {unit}"
            for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
            if value >= size or size == 1
        )
    return f"{value:{style}}"
