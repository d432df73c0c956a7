"""The report's summary table: which columns, how a number with its interval is written, and the same as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from fsframework.metrics import METRICS
from fsframework.run.costs import COST_UNITS
from fsframework.run.report_data import Measure, RunData, plain


@dataclass(frozen=True)
class Column:
    """A measure of metrics.json and how it is shown."""

    key: str
    title: str
    style: str
    """`x` a factor, `percent`, `bytes`, or a format such as `.1f`."""
    about: str = ""
    """What it is, for the header's hover."""


COLUMNS = (
    Column("speedup", "Speedup", "x", "total reference seconds / total method seconds, timed side by side"),
    Column("wall_speedup", "Speedup, wall", "x", "total reference seconds / total method seconds by the wall clock"),
    Column("flops_saved", "FLOPs saved", "percent", "share of full compute's FLOPs that were not executed"),
    Column("reuse_fraction", "Reused", "percent", "share of decisions that were a reuse; not the compute it saved"),
)
"""Costs before the quality metrics."""
AFTER = (
    Column("cache_bytes_peak", "Cache", "bytes", "most bytes of cached values at one time"),
    Column("host_reads_per_step", "Host reads", ".2f", "blocking or posted transfers from device to host, per step"),
)
"""Costs after them."""
QUALITY = (
    Column("psnr", "PSNR", ".1f", "against the reference, squared errors pooled over videos"),
    Column("ssim", "SSIM", ".4f", "structural similarity with the reference"),
    Column("lpips", "LPIPS", ".4f"),
    Column("fvd", "FVD", ".1f"),
    Column("clip_similarity", "CLIP similarity", ".4f"),
    Column("adherence", "Adherence", "percent", "share of videos that show what the prompt says"),
    Column("flicker", "Flicker", ".3f", "frame-to-frame change relative to the reference's; 1 is equal"),
    Column("vmaf", "VMAF", ".1f"),
    Column("haarpsi", "HaarPSI", ".4f"),
    Column("ms_ssim", "MS-SSIM", ".4f"),
    Column("gmsd", "GMSD", ".4f"),
    Column("mdsi", "MDSI", ".4f"),
    Column("vsi", "VSI", ".4f"),
    Column("vbench", "VBench", ".2f", "total score of the benchmark"),
    Column("kvd", "KVD", ".3g"),
    Column("digit", "Digit", "percent", "share of videos with the prompt's digit"),
    Column("motion", "Motion", "percent", "share of videos with the prompt's motion"),
)
"""The metrics that come with the package, most asked for first; without words of its own a metric's description is shown."""
MAX_QUALITY = 6
"""Quality columns of the summary; `Everything that was measured` has the rest."""
UNITS = {"percent": "%", "psnr": "dB", "host_reads_per_step": "per step"}
NO_DIRECTION = ("reuse_fraction",)
"""More is neither better nor worse."""
OTHER = (
    Column("flops_speedup", "FLOPs speedup", "x", "full compute's FLOPs / executed FLOPs"),
    Column("cpu_seconds", "Process CPU time", ".2f", "of one video, all threads"),
    Column("wall_seconds", "Wall time", ".2f", "of one video"),
    Column("device_seconds", "Device time", ".2f", "of one video, between two events on the GPU's stream"),
    Column("memory_bytes_peak", "Peak memory", "bytes", "of one video, weights included"),
    Column("memory_bytes_growth", "Memory growth", "bytes", "peak beyond what was held before the video: no weights"),
    Column("energy_joules", "Energy", ".0f", "of one video, the whole card"),
)
REFERENCE = "reference_"
"""Before a cost's key: the same of the full compute that was run beside it."""
COSTS = ("speedup", "wall_speedup", "flops_speedup", "flops_saved", "reuse_fraction", "cache_bytes_peak",
         "host_reads_per_step", *COST_UNITS, *(f"{REFERENCE}{cost}" for cost in COST_UNITS))  # fmt: skip
"""What is not a quality metric."""


def column(key: str, measure: Measure | None = None) -> Column:
    """The column of a key; for an unknown one, its plain name."""
    for known in (*COLUMNS, *QUALITY, *AFTER, *OTHER):
        if known.key == key:
            return known if known.about else replace(known, about=_description(key))
    own = key.removeprefix(REFERENCE)
    if own != key and own in COST_UNITS:
        cost = column(own)
        return replace(cost, key=key, title=f"{cost.title}, full compute", about=f"{cost.about}, by full compute")
    style = "bytes" if measure is not None and measure.unit == "bytes" else ".4g"
    return Column(key, key.replace("_", " "), style, _description(key) or key)


def _description(key: str) -> str:
    """What a registered metric says of itself; empty for what is none."""
    return next((metric.description for _, metric in METRICS.items() if key in metric.value_names()), "")


def columns_of(runs: Sequence[RunData]) -> list[Column]:
    """The summary's columns: costs, PSNR and SSIM, the other quality metrics that any run has as far as there is room.

    On a GPU both speedups are of the wall clock, so one is shown.
    """
    all_wall = all(run.clock == "wall" for run in runs if run.measures)
    costs = [c for c in COLUMNS if not (c.key == "wall_speedup" and all_wall and any(r.measures for r in runs))]
    return [*costs, *quality_columns(runs)[:MAX_QUALITY], *AFTER]


def quality_columns(runs: Sequence[RunData]) -> list[Column]:
    """PSNR, SSIM and every other quality metric of any run: those of the package in its order, then others by name."""
    found = {key for run in runs for key in run.measures if key not in COSTS}
    order = [c.key for c in QUALITY]
    known = [key for key in order if key in found or key in ("psnr", "ssim")]
    return [column(key, _first(runs, key)) for key in (*known, *sorted(found - set(order)))]


def _first(runs: Sequence[RunData], key: str) -> Measure | None:
    return next((run.measures[key] for run in runs if key in run.measures), None)


def title_of(shown: Column, runs: Sequence[RunData]) -> str:
    """The header, with the clock where it is a speedup."""
    clocks = sorted({run.clock for run in runs if run.measures})
    return f"{shown.title}, {' or '.join(clocks)}" if shown.key == "speedup" and clocks else shown.title


def unit_of(shown: Column, measure: Measure | None) -> str:
    """The unit for the header; empty where the cell shows it."""
    return UNITS.get(shown.style) or UNITS.get(shown.key) or ("" if shown.style in ("x", "bytes") else _unit(measure))


def arrow(shown: Column, measure: Measure | None) -> str:
    """▲ where higher is better, ▼ where lower is."""
    if measure is None or shown.key in NO_DIRECTION:
        return ""
    return "▲" if measure.better == "higher" else "▼"


def number(value: float, style: str) -> str:
    """A value in a column's style: 1.77×, 44.1, 33 kB, ∞."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if style == "x":
        return f"{value:.2f}×"
    if style == "percent":
        return f"{100 * value:.1f}"
    if style == "bytes":
        for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= size:
                return f"{value / size:.3g} {unit}"
        return f"{value:.0f} B"
    return f"{value:{style}}"


def spread(measure: Measure, style: str) -> str:
    """`1.76–1.78`, or a word on why there is no interval."""
    interval = measure.interval
    if math.isinf(interval.mean) and math.isinf(interval.low):
        return "identical"
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "no interval"
    if interval.low == interval.high:
        return "all equal"
    low, high = number(interval.low, style), number(interval.high, style)
    if style == "x" or low.split(" ")[1:] == high.split(" ")[1:]:
        low = low.removesuffix("×").split(" ")[0]  # 32.1–32.8 kB
    return f"{low}–{high.removesuffix('×')}"


def with_spread(measure: Measure, shown: Column) -> str:
    """For running text: `37.8 dB (37.3–38.6)`."""
    unit = unit_of(shown, measure)
    inside = spread(measure, shown.style)
    return f"{number(measure.interval.mean, shown.style)}{' ' + unit if unit else ''} ({inside})"


def cell(measure: Measure | None, shown: Column, usual_n: int, row: int | None = None) -> str:
    """A table cell: the mean, below it the 95 % interval, and n where it is not the row's `usual_n` (0: always).

    A dash where nothing was measured. In a table with a column per run, `row` is the run.
    """
    place = "" if row is None else f' data-row="{row}"'
    if measure is None or not measure.interval.n or math.isnan(measure.interval.mean):
        return f'<td data-value=""{place} class="missing" title="not measured">–</td>'
    value = measure.interval.mean
    sort = {math.inf: "1e999", -math.inf: "-1e999"}.get(value, repr(value))
    kind = "badge" if usual_n else "spread"
    n = "" if measure.interval.n == usual_n else f'<i class="{kind}">n {measure.interval.n}</i>'
    return (
        f'<td data-value="{sort}"{place}><span class="mean">{number(value, shown.style)}</span>'
        f'<span class="spread">{escape(spread(measure, shown.style))}</span>{n}</td>'
    )


def csv_lines(runs: Sequence[RunData]) -> list[str]:
    """A header and a line per run, unrounded: four columns (mean, low, high, n) per measure of any run."""
    keys = list(dict.fromkeys(key for run in runs for key in run.measures))
    in_grid = any(run.cell for run in runs)
    rows: list[list[str]] = [["run", *(["cell"] if in_grid else []), "policy", "options", "model"]]
    rows[0] += [f"{key}_{part}" for key in keys for part in ("mean", "low", "high", "n")]
    for run in runs:
        options = " ".join(f"{k}={plain(v)}" for k, v in run.options.items())
        row = [run.folder.name, *([run.cell] if in_grid else []), run.policy, options, run.model]
        for key in keys:
            measure = run.measures.get(key)
            values = (measure.interval.mean, measure.interval.low, measure.interval.high) if measure else ()
            row += [repr(v) for v in values] + [str(measure.interval.n)] if measure else [""] * 4
        rows.append(row)
    lines = []
    for row in rows:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(row)
        lines.append(buffer.getvalue())
    return lines


def latex_lines(runs: Sequence[RunData]) -> tuple[str, list[str], str]:
    """A booktabs table as head, one line per run, and tail; the 95 % interval stands small behind each mean."""
    shown = [c for c in columns_of(runs) if any(c.key in run.measures for run in runs)]
    titles = []
    for c in shown:
        unit = unit_of(c, next((run.measures[c.key] for run in runs if c.key in run.measures), None))
        titles.append(_latex(title_of(c, runs)) + (f" [{_latex(unit)}]" if unit else ""))
    head = (
        "% needs \\usepackage{booktabs}; mean, then 95 % interval in small; n: videos\n"
        f"\\begin{{tabular}}{{l{'r' * (len(shown) + 1)}}}\n\\toprule\n"
        f"policy & n & {' & '.join(titles)} \\\\\n\\midrule\n"
    )
    lines = []
    for run in runs:
        cells = [_latex(run.label), str(len(run.clips) or "--")]
        for c in shown:
            measure = run.measures.get(c.key)
            if measure is None or not measure.interval.n:
                cells.append("--")
                continue
            value = _latex(number(measure.interval.mean, c.style))
            cells.append(f"{value} {{\\scriptsize {_latex(spread(measure, c.style))}}}")
        lines.append(" & ".join(cells) + " \\\\\n")
    return head, lines, "\\bottomrule\n\\end{tabular}\n"


def _unit(measure: Measure | None) -> str:
    return measure.unit if measure is not None else ""


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"–": "--", "×": r"$\times$", "∞": r"$\infty$", "▲": "", "▼": "", "γ": r"$\gamma$"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
