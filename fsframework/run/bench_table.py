"""A benchmark as text, JSON and pictures. Every number stands with its spread and n."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsframework.metrics.statistics import Interval, bootstrap

if TYPE_CHECKING:
    from fsframework.run.bench import Result, Row, Section

HEADER = (
    "method", "speedup", "FLOPs speedup", "speedup / FLOPs speedup", "error", "seconds", "memory MB", "host reads a step"
)  # fmt: skip
LEGEND = (
    "speedup: seconds of the bare model by those of the method, round by round; seconds are CUDA events on a GPU and process "
    "CPU time elsewhere, from the pipeline's call to its latents (text encoding included, decoding not). Median over rounds, "
    "95 % bootstrap interval, n rounds. FLOPs: matrix products, convolutions and attention, counted in torch's dispatcher. "
    "error: |latents - bare| / |bare| of the same prompt and seed, median. memory: growth during the call (process on a CPU, "
    "torch's allocator on a GPU), median. host reads: reads of tensor values by Python, beyond the bare model's."
)


def speedups(row: Row, bare: Row) -> list[float]:
    """Seconds of the bare model by the row's, per round."""
    return [b / own for b, own in zip(bare.seconds, row.seconds)]


def flops_speedup(row: Row, bare: Row) -> float:
    """FLOPs of the bare model by the row's."""
    return bare.flops / row.flops if row.flops else math.nan


def middle(values: Sequence[float]) -> Interval:
    """The median over rounds with its bootstrap interval."""
    return bootstrap(values, lambda rows: np.median(rows, axis=-1))


def write(result: Result, folder: Path) -> None:
    """Print the tables; write bench.json, bench.md and the pictures into `folder`."""
    from fsframework.run.bench_plot import plot

    text = "\n\n".join([*_conditions(result), *_engine(result), *map(table, result.sections)])
    if result.sections:
        text += f"\n\n{LEGEND}"
    if result.stopped:
        text += "\n\nStopped before the end: this is what was measured until then."
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, section in enumerate(result.sections):
        if any(row.seconds for row in section.rows[1:]):
            name = f"section-{number + 1}.svg"
            (folder / name).write_text(plot(section), encoding="utf-8")
            pictures.append(f"![{section.title}]({name})")
    (folder / "bench.md").write_text("\n\n".join([text, *pictures]) + "\n", encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(as_dict(result), indent=2), encoding="utf-8")
    print(f"{text}\n\n{folder / 'bench.json'}, {folder / 'bench.md'}" + (" and pictures" if pictures else ""))


def as_dict(result: Result) -> dict[str, Any]:
    """Everything that was measured, every round's values included. Not measured is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    content = dataclasses.asdict(result)
    for section, found in zip(result.sections, content["sections"]):
        for row, entry in zip(section.rows, found["rows"]):
            entry["speedup"] = dataclasses.asdict(middle(speedups(row, section.bare)))
            entry["flops_speedup"] = flops_speedup(row, section.bare)
    return dict(plain(content))


def table(section: Section) -> str:
    """One section as a Markdown table."""
    lines = [
        f"**{section.title}** ({', '.join(f'{k} {v}' for k, v in section.sampling.items())})",
        "",
        f"| {' | '.join(HEADER)} |",
        "|" + "---|" * len(HEADER),
        *(f"| {' | '.join(_cells(row, section.bare))} |" for row in section.rows),
    ]
    explained = [*section.notes, *(f"{row.name}: {row.note}." for row in section.rows if row.note)]
    return "\n".join([*lines, *([""] if explained else []), *(f"- {text}" for text in explained)])


def _cells(row: Row, bare: Row) -> list[str]:
    name = row.name if row.kind in ("bare", "diffusers", "cache-dit") else f"ours: {row.name}"
    if row.failed:
        return [name, f"can not run here: {row.failed}", *[""] * (len(HEADER) - 2)]
    if not row.seconds:
        return [name, "not measured", *[""] * (len(HEADER) - 2)]
    ideal = flops_speedup(row, bare)
    found = speedups(row, bare)
    return [
        name,
        shown(middle(found)),
        f"{ideal:.3f}",
        shown(middle([one / ideal for one in found])),
        f"{_median(row.error):.4f}",
        f"{_median(row.seconds):.3f} ({min(row.seconds):.3f} to {max(row.seconds):.3f})",
        f"{_median(row.memory_growth) / 1e6:.1f}" if row.memory_growth else "-",
        f"{row.host_reads:.2f}",
    ]


def shown(value: Interval, digits: int = 3) -> str:
    """1.234 (1.2 to 1.3, n=5)."""
    if math.isnan(value.low):
        return f"{value.mean:.{digits}f} (n={value.n})"
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f}, n={value.n})"


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _conditions(result: Result) -> list[str]:
    had, config = result.conditions, result.config
    versions = ", ".join(f"{name} {version}" for name, version in had["versions"].items() if version)
    git = had.get("git") or {}
    revision = f", revision {git['revision'][:10]}" + (" with changes" if git.get("dirty") else "") if git else ""
    load = had["load_average"]
    where = f"{had['gpu']}, " if had.get("gpu") else ""
    return [
        f"{where}{had['cpu']}, {had['cpu_count']} CPUs, load {load:.1f} at the start, {config.num_threads} thread(s), "
        f"{config.dtype or 'the usual dtype'} on {had['device']}{revision}; {versions}."
        + (f" The machine was busy (load {load:.1f}): trust ratios, not seconds." if load > 1.5 else "")
    ]


def _engine(result: Result) -> list[str]:
    if result.engine is None:
        return []
    lines = ["**Engine** (median over rounds, lowest and highest)", "", "| what | value | unit |", "|---|---|---|"]
    for name, (values, unit) in result.engine.items():
        spread = f"{_median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n={len(values)})"
        lines.append(f"| {name} | {spread} | {unit} |")
    return ["\n".join(lines)]
