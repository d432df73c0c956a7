"""The tables of a comparison that are read off at settings and at equal compute; at equal quality: `compare_quality`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fsframework.metrics.statistics import cluster_means, spread_within_and_between
from fsframework.run.compare_cells import Cell, Row, Table, cell
from fsframework.run.compare_sweep import REACH, Clip, Reading, Scale, Sweep, read_off, scale_of


def style_of(scale: Scale) -> str:
    """How many digits a metric's values are shown with."""
    return ".1f" if scale.unit == "dB" else ".3f"


def mean_cell(values: np.ndarray, prompts: Sequence[str], scale: Scale, text: str = "") -> Cell:
    """Mean quality of videos [n], with the interval over prompts."""
    means = cluster_means(scale.to_mean(values)[:, None], prompts)
    return cell(means.interval(lambda m: scale.from_mean(m[..., 0])), style_of(scale), text)


def speedup_cell(time: np.ndarray, reference_seconds: np.ndarray, prompts: Sequence[str]) -> Cell:
    """Total seconds of full compute / total seconds of the method, over the videos that were timed."""
    means = cluster_means(np.stack([reference_seconds, time * reference_seconds], axis=1), prompts)
    return cell(means.interval(lambda m: m[..., 0] / m[..., 1]), ".2fx")


def settings_table(sweeps: Sequence[Sweep], metrics: Sequence[str]) -> Table:
    """Every run as it is."""
    scales = [scale_of(name) for name in metrics]
    rows = []
    for sweep in sweeps:
        for k, setting in enumerate(sweep.settings):
            share = cluster_means(sweep.fraction[:, [k]], sweep.prompts)
            cells = [
                cell(share.interval(), ".3f"),
                cell(share.interval(lambda m: 1 / m[..., 0]), ".2fx"),
                speedup_cell(sweep.time[:, k], sweep.reference_seconds, sweep.prompts),
                *(mean_cell(_column(sweep, s.name, k), sweep.prompts, s) for s in scales),
            ]
            rows.append(Row(f"{sweep.name}: {setting}" if setting else sweep.name, cells))
    return Table(
        "settings",
        "Every setting",
        "Mean (95 % interval over prompts). Rows at different compute are not to be compared with each other.",
        "method: setting",
        ["FLOPs / full", "FLOPs speedup", "speedup", *(s.title for s in scales)],
        rows,
    )


def compute_table(
    sweeps: Sequence[Sweep], at: float, metrics: Sequence[str], baseline: Sweep | None, reach: float = REACH
) -> Table:
    """All methods at one share of full compute, the best of the first metric first."""
    scales = [scale_of(name) for name in metrics]
    rows, notes = [], []
    for sweep in sweeps:
        reading = read_off(sweep, [at], reach)
        cells = [mean_cell(_read(reading, s.name, len(sweep.clips)), sweep.prompts, s) for s in scales]
        cells.append(speedup_cell(reading.time[:, 0], sweep.reference_seconds, sweep.prompts))
        if baseline is not None:
            cells += _against(sweep, baseline, at, scales[0], reach)
        rows.append(Row(sweep.name, cells))
        notes += _reach_notes(sweep, reading, at)
    sign = 1 if scales[0].higher_is_better else -1
    rows.sort(key=lambda row: -sign * row.cells[0].value if row.cells[0].num_videos else math.inf)
    against = [] if baseline is None else [f"{scales[0].title} minus {baseline.name}", f"speedup / {baseline.name}"]
    return Table(
        "compute",
        f"At {at:g} of full compute",
        "Mean (95 % interval over prompts), each video read off between its own two neighbouring settings."
        + ("" if baseline is None else f" Differences to {baseline.name} are paired: over the videos that both reach."),
        "method",
        [*(s.title for s in scales), "speedup", *against],
        rows,
        notes,
        [*(1 if s.higher_is_better else -1 for s in scales[:1]), *(0 for _ in scales[1:]), 0, *(0 for _ in against)],
    )


def _against(sweep: Sweep, baseline: Sweep, at: float, scale: Scale, reach: float) -> list[Cell]:
    """Quality minus the baseline's, and speedup over the baseline's, in pairs."""
    if sweep is baseline:
        return [Cell(text=""), Cell(text="")]
    clips = common_clips(sweep, baseline)
    one, other = sweep.of(clips), baseline.of(clips)
    a, b = (read_off(s, [at], reach, scale.name) for s in (one, other))
    quality = np.stack([scale.to_mean(_read(r, scale.name, len(clips))) for r in (a, b)], axis=1)
    difference = cluster_means(quality, one.prompts).interval(
        lambda m: scale.from_mean(m[..., 0]) - scale.from_mean(m[..., 1])
    )
    seconds = [
        s for r, of in ((a, one), (b, other)) for s in (of.reference_seconds, r.time[:, 0] * of.reference_seconds)
    ]
    ratio = cluster_means(np.stack(seconds, axis=1), one.prompts).interval(
        lambda m: (m[..., 0] / m[..., 1]) / (m[..., 2] / m[..., 3])
    )
    return [cell(difference, f"+{style_of(scale)}"), cell(ratio, ".2fx")]


def common_clips(sweep: Sweep, other: Sweep) -> list[Clip]:
    """The videos of both."""
    there = set(other.clips)
    return [clip for clip in sweep.clips if clip in there]


def _reach_notes(sweep: Sweep, reading: Reading, at: float) -> list[str]:
    """What was left out and what was read beyond the last setting."""
    outside = reading.beyond[:, 0]
    reached = int((~np.isnan(outside)).sum())
    notes = []
    if reached < len(outside):
        low, high = sweep.covers
        if len(sweep.settings) < 2:
            why = f"it has one setting, at {low:.3f} on average"
        else:
            why = f"its settings lie at {low:.3f} to {high:.3f} on average"
        notes.append(f"{sweep.name}: {reached} of {len(outside)} videos reach {at:g}; {why}.")
    beyond = int((outside > 1e-9).sum())
    if beyond:
        notes.append(
            f"{sweep.name}: {beyond} of {reached} videos were read up to {np.nanmax(outside):.3f} beyond their last setting."
        )
    return notes


def spread_table(rows: Sequence[tuple[str, np.ndarray, Sequence[str]]], metric: str, title: str) -> Table:
    """How much a metric differs between prompts and between seeds.

    Args:
        rows: label, values of the videos [n], and their prompts.
        metric: a value's name.
        title: of the table.
    """
    scale = scale_of(metric)
    style = style_of(scale)
    out = []
    for label, values, prompts in rows:
        known = scale.bounded(values)
        by_prompt = {}
        for prompt in dict.fromkeys(prompts):
            own = np.array([v for v, p in zip(known, prompts) if p == prompt and not math.isnan(v)])
            if len(own):
                by_prompt[prompt] = float(scale.from_mean(scale.to_mean(own).mean()))
        if not by_prompt:
            out.append(Row(label, [Cell(text="-")] * 6))
            continue
        ranked = sorted(by_prompt, key=by_prompt.__getitem__, reverse=not scale.higher_is_better)
        between, within = spread_within_and_between(known.tolist(), prompts)
        n = int((~np.isnan(known)).sum())
        out.append(
            Row(
                label,
                [
                    Cell(by_prompt[ranked[0]], style=style, text=ranked[0]),
                    Cell(float(np.median(list(by_prompt.values()))), style=style),
                    Cell(by_prompt[ranked[-1]], style=style, text=ranked[-1]),
                    Cell(between, style=style),
                    Cell(within, style=style, text="" if not math.isnan(within) else "one seed"),
                    Cell(text=f"{n} ({len(by_prompt)})"),
                ],
            )
        )
    return Table(
        "spread",
        title,
        f"{scale.title} of each prompt (its seeds together): the worst, the median and the best; standard deviation between "
        f"prompts, which holds what seeds add to a prompt's mean, and between the seeds of a prompt.",
        "method",
        ["worst prompt", "median", "best prompt", "sd of prompts", "sd of seeds", "videos (prompts)"],
        out,
    )


def spread_of_settings(sweeps: Sequence[Sweep], metric: str) -> Table:
    """The spread of every run."""
    rows = [
        (f"{s.name}: {setting}" if setting else s.name, _column(s, metric, k), s.prompts)
        for s in sweeps
        for k, setting in enumerate(s.settings)
    ]
    return spread_table(rows, metric, f"Spread of {metric} over prompts, every setting")


def spread_at(sweeps: Sequence[Sweep], at: float, metric: str, reach: float = REACH) -> Table:
    """The spread at one share of full compute."""
    rows = [(s.name, _read(read_off(s, [at], reach, metric), metric, len(s.clips)), s.prompts) for s in sweeps]
    rows = [row for row in rows if not np.isnan(row[1]).all()]
    return spread_table(rows, metric, f"Spread of {metric} over prompts, at {at:g} of full compute")


def prompts_table(sweeps: Sequence[Sweep], metric: str, at: float | None, reach: float = REACH) -> Table:
    """A row per prompt, worst first: at a share of full compute, or (None) at every setting; intervals over its seeds."""
    scale = scale_of(metric)
    columns: list[tuple[str, Sweep, np.ndarray]] = []
    for s in sweeps:
        if at is not None:
            columns.append((s.name, s, _read(read_off(s, [at], reach, metric), metric, len(s.clips))))
        else:
            names = [f"{s.name}: {setting}" if setting else s.name for setting in s.settings]
            columns += [(name, s, _column(s, metric, k)) for k, name in enumerate(names)]
    columns = [column for column in columns if not np.isnan(column[2]).all()]
    rows = []
    for prompt in dict.fromkeys(prompt for s in sweeps for prompt in s.prompts):
        cells = []
        for _, s, values in columns:
            own = [i for i, p in enumerate(s.prompts) if p == prompt]
            seeds = [str(s.clips[i][1]) for i in own]
            one = mean_cell(values[own], seeds, scale) if own else Cell(text="-")
            cells.append(
                Cell(one.value, one.low, one.high, one.num_videos, min(1, one.num_prompts), one.style, one.text)
            )
        rows.append(Row(prompt, cells))
    sign = 1 if scale.higher_is_better else -1
    rows.sort(key=lambda row: sign * row.cells[0].value if row.cells[0].num_videos else math.inf)
    where = "at every setting" if at is None else f"at {at:g} of full compute"
    return Table(
        "prompts",
        f"By prompt, {where}",
        f"{scale.title} (95 % interval over the seeds of the prompt), the first column's worst prompt first.",
        "prompt",
        [name for name, _, _ in columns],
        rows,
    )


def _column(sweep: Sweep, metric: str, k: int) -> np.ndarray:
    """[n] of one setting; NaN where the metric was not measured."""
    values = sweep.quality.get(metric)
    return np.full(len(sweep.clips), math.nan) if values is None else values[:, k]


def _read(reading: Reading, metric: str, num_clips: int) -> np.ndarray:
    """[n] of the first share read."""
    values = reading.quality.get(metric)
    return np.full(num_clips, math.nan) if values is None else values[:, 0]
