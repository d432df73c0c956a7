"""The report's sections as HTML. Every text from a run goes through `escape`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fsframework.run.report_data import Clip, RunData
from fsframework.run.report_pareto import Point, pareto
from fsframework.run.report_runs import run_card, run_name, sign
from fsframework.run.report_table import (
    Column,
    arrow,
    cell,
    column,
    columns_of,
    quality_columns,
    title_of,
    unit_of,
    with_spread,
)
from fsframework.run.report_videos import Embedded, by_psnr, caption

NUM_RANKED = 3
"""Worst and best videos listed per run, each."""


def warnings(runs: Sequence[RunData], first: Sequence[str] = ()) -> str:
    """What is missing or makes rows hard to compare, after `first`; nothing if all is well."""
    notes = list(map(escape, first))
    notes += [f"<b>{run.mark} {escape(run.title)}</b>: {escape(note)}" for run in runs for note in run.notes]
    samples = {frozenset((c.prompt, c.seed) for c in run.clips) for run in runs if run.clips}
    if len(samples) > 1:
        notes.insert(0, "The rows cover different videos, so their means are not directly comparable; n says how many.")
    if len({run.model for run in runs}) > 1:
        notes.insert(0, "The rows are of different models: compare those of one model.")
    notes = list(dict.fromkeys(notes))
    return f'<div class="notes"><ul>{"".join(f"<li>{note}</li>" for note in notes)}</ul></div>' if notes else ""


def summary(runs: Sequence[RunData], notes: Sequence[str] = ()) -> str:
    """The table, a run per row, that can be sorted and filtered; `notes` stand above it."""
    shown = columns_of(runs)
    heads = [_header("Run"), _header("n", "videos")]
    for c in shown:
        measure = next((run.measures[c.key] for run in runs if c.key in run.measures), None)
        unit = unit_of(c, measure)
        heads.append(_header(f"{title_of(c, runs)}\u00a0{arrow(c, measure)}".strip(), unit, c.about))
    most = max(map(_usual_n, runs), default=0)
    rows = []
    for i, run in enumerate(runs):
        n = _usual_n(run)
        badge = f"{n} of {most} videos" if n < most else ""
        cells = f'<td data-value="{n}">{n}</td>' + "".join(cell(run.measures.get(c.key), c, n) for c in shown)
        name = f'<th scope="row" data-value="{run.mark}" class="text">{run_name(run, i, badge)}</th>'
        rows.append(f'<tr data-row="{i}">{name}{cells}</tr>')
    return (
        '<section id="summary"><h2>Summary</h2><p class="lead">Mean over n videos, below it the 95 % interval. '
        "▲ higher is better, ▼ lower. Every speedup and every difference is against the reference: full compute with the "
        f"same prompt and seed. Click a header to sort.</p>{warnings(runs, notes)}{_filter(runs)}"
        f'<div class="scroll"><table id="summary-table"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<div class="tools"><button type="button" data-copy="csv">Copy as CSV</button>'
        '<button type="button" data-copy="latex">Copy as LaTeX</button></div>'
        f'<p class="small">{escape(_how(runs))}</p>{_all_metrics(runs)}</section>'
    )


def pareto_section(runs: Sequence[RunData]) -> str:
    """Quality against compute; every choice of axes is drawn beforehand, one is shown."""
    keys = list(dict.fromkeys(key for run in runs for key in run.measures))
    xs = [column(k) for k in ("flops_speedup", "speedup", "wall_speedup", "reuse_fraction") if k in keys]
    ys = [c for c in quality_columns(runs) if c.key in keys]
    if not xs or not ys:
        body = '<p class="missing">No run has both a cost and a quality measured.</p>'
        return f'<section id="pareto"><h2>Quality against compute</h2>{body}</section>'

    def name(c: Column) -> str:
        measure = next((run.measures[c.key] for run in runs if c.key in run.measures), None)
        unit = "×" if c.style == "x" else unit_of(c, measure)
        return f"{title_of(c, runs)}{f' ({unit})' if unit else ''}"

    plots = []
    for x in xs:
        for y in ys:
            points = _points(runs, x, y)
            higher = next(run.measures[y.key].better == "higher" for run in runs if y.key in run.measures)
            pictures = pareto(points, name(x), name(y), higher, 820, 390, "wide")
            pictures += pareto(points, name(x), name(y), higher, 350, 320, "narrow")
            hidden = "" if (x, y) == (xs[0], ys[0]) else " hidden"
            plots.append(f'<div class="pareto-plot" data-x="{x.key}" data-y="{y.key}"{hidden}>{pictures}</div>')
    choose = "".join(
        f'<label>{label} <select id="pareto-{axis}">'
        + "".join(f'<option value="{c.key}">{escape(name(c))}</option>' for c in options)
        + "</select></label>"
        for label, axis, options in (("Quality", "y", ys), ("against", "x", xs))
    )
    legend = "".join(
        f'<li data-row="{i}">{sign(i)}<span>{run.mark} {escape(run.label)}</span></li>' for i, run in enumerate(runs)
    )
    several = len({run.model for run in runs}) > 1
    line = (
        "A line joins the runs of a model that no other run of it"
        if several
        else "The line joins the runs that no other run"
    )
    return (
        '<section id="pareto"><h2>Quality against compute</h2><p class="lead">One marker per run, bars are 95 % intervals. '
        f"{line} beats in both; hover or tap for the config. Runs that the filter hides stay as shadows.</p>"
        f'<div class="card"><div class="tools">{choose}</div>{"".join(plots)}<ul class="legend">{legend}</ul></div></section>'
    )


def reuse_section(runs: Sequence[RunData]) -> str:
    """The card of every run; with many runs only the first few are open."""
    cards = "".join(run_card(run, i, is_open=i < 6) for i, run in enumerate(runs))
    return (
        '<section id="reuse"><h2>Where and when each run reuses</h2><p class="lead">s0 t0 s1 t1 … are the blocks by kind '
        "(spatial, temporal, joint) and number, in the order in which the model runs them.</p>" + cards + "</section>"
    )


def video_section(runs: Sequence[RunData], videos: Embedded) -> str:
    """The synchronized players; empty but for a sentence without videos."""
    title = '<section id="videos"><h2>Videos side by side</h2>'
    if not videos.clips:
        return title + '<p class="missing">No run has readable videos.</p></section>'
    options = "".join(
        f'<option value="{i}">{escape(clip["prompt"])} · seed {clip["seed"]}</option>'
        for i, clip in enumerate(videos.clips)
    )
    # From about 38 dB on, four times the difference is too dark to see.
    fine = all(run.mean("psnr") > 38 for run in runs if "psnr" in run.measures)
    gains = "".join(
        f'<option value="{gain}"{" selected" * (gain == (16 if fine else 4))}>{f"{gain}×" if gain else "off"}</option>'
        for gain in (0, 1, 4, 16, 64)
    )
    left_out = f" {videos.num_left_out} further videos were left out to keep the file small." * bool(
        videos.num_left_out
    )
    shrunk = " Large videos are shown at a smaller size." * videos.shrunk
    return (
        f'{title}<p class="lead">Same prompt and seed in every player, in step. The difference view shows '
        "|run − reference| times a gain, computed here from the compressed videos, so a faint grain in it is the codec's."
        f"{left_out}{shrunk}</p>"
        f'<div class="card"><div class="tools"><label for="clip">Prompt</label><select id="clip">{options}</select></div>'
        '<div class="tools"><button type="button" id="play">Play</button>'
        '<button type="button" id="back" aria-label="one frame back">‹</button>'
        '<button type="button" id="forward" aria-label="one frame forward">›</button>'
        f'<input type="range" id="scrub" min="0" max="{videos.num_frames - 1}" value="0" aria-label="frame">'
        '<output id="frame"></output>'
        '<label><input type="checkbox" id="loop" checked>loop</label>'
        '<label>speed <select id="speed"><option value="1">1×</option><option value="0.5">½×</option>'
        '<option value="0.25">¼×</option></select></label>'
        f'<label>difference <select id="difference">{gains}</select></label></div>'
        '<div id="stage"></div></div></section>'
    )


def ranking_section(runs: Sequence[RunData], videos: Embedded) -> str:
    """The videos furthest from and closest to their reference, per run."""
    cards = []
    for i, run in enumerate(runs):
        ranked = by_psnr(run.clips)
        if not ranked:
            body = '<p class="missing">No PSNR was measured per video.</p>'
        elif all(math.isinf(clip.metrics["psnr"]) for clip in ranked):
            body = f'<p class="small">All {len(ranked)} videos are identical to their reference.</p>'
        else:
            count = min(NUM_RANKED, (len(ranked) + 1) // 2)
            best = [clip for clip in ranked[::-1] if clip not in ranked[:count]][:count]
            tables = [("Furthest from the reference", ranked[:count]), ("Closest to the reference", best)]
            body = f'<div class="two">{"".join(_ranking(t, c, videos) for t, c in tables if c)}</div>'
        cards.append(f'<div class="card" data-row="{i}">{run_name(run, i)}{body}</div>')
    return (
        '<section id="prompts"><h2>Worst and best prompts</h2><p class="lead">By PSNR of the single video.</p>'
        + "".join(cards)
        + "</section>"
    )


def _filter(runs: Sequence[RunData]) -> str:
    """The field that leaves only some rows, here and in the sections below; nothing for a single run."""
    if len(runs) < 2:
        return ""
    return (
        '<div class="tools"><label class="grow">Filter <input type="search" id="filter" autocomplete="off" spellcheck="false" '
        'placeholder="words of policy, option or model"></label><output id="filter-count" aria-live="polite"></output></div>'
    )


def _header(label: str, unit: str = "", about: str = "") -> str:
    below = f'<span class="unit">{escape(unit)}</span>' if unit else ""
    title = f' title="{escape(about)}"' if about else ""
    return f'<th scope="col"{title}><button type="button">{escape(label)}</button>{below}</th>'


def _usual_n(run: RunData) -> int:
    """The number of videos of a run: those recorded, else the most that any of its measures covers."""
    return len(run.clips) or max((m.interval.n for m in run.measures.values()), default=0)


def _points(runs: Sequence[RunData], x: Column, y: Column) -> list[Point]:
    points = []
    for i, run in enumerate(runs):
        if x.key not in run.measures or y.key not in run.measures:
            continue
        values = []
        for c in (x, y):
            interval, scale = run.measures[c.key].interval, 100.0 if c.style == "percent" else 1.0
            values.append((scale * interval.mean, scale * interval.low, scale * interval.high))
        lines = [f"{run.mark} {run.label}"]
        lines += [f"{title_of(c, runs)}: {with_spread(run.measures[c.key], c)}" for c in (x, y)]
        lines.append(f"n = {run.measures[y.key].interval.n}")
        points.append(Point(i, run.mark, "\n".join(lines), values[0], values[1], run.model))
    return points


def _ranking(title: str, clips: Sequence[Clip], videos: Embedded) -> str:
    rows = []
    for clip in clips:
        position = videos.position((clip.prompt, clip.seed))
        button = "" if position is None else f'<button type="button" class="link" data-clip="{position}">show</button>'
        rows.append(
            f'<tr><td class="text">{escape(clip.prompt)} <small>seed {clip.seed}</small><br>'
            f"<small>{escape(caption(clip))}</small></td><td>{button}</td></tr>"
        )
    return f"<div><h4>{title}</h4><table><tbody>{''.join(rows)}</tbody></table></div>"


def _all_metrics(runs: Sequence[RunData]) -> str:
    keys = list(dict.fromkeys(k for run in runs for k in run.measures))
    if not keys:
        return ""
    heads = "".join(f'<th scope="col" data-row="{i}">{run.mark} {escape(run.title)}</th>' for i, run in enumerate(runs))
    rows = []
    for key in keys:
        measure = next(run.measures[key] for run in runs if key in run.measures)
        c = column(key, measure)
        unit = unit_of(c, measure)
        label = f"{title_of(c, runs)}\u00a0{arrow(c, measure)}".strip()
        below = f'<span class="unit">{escape(unit)}</span>' if unit else ""
        cells = "".join(cell(run.measures.get(key), c, 0, i) for i, run in enumerate(runs))
        rows.append(f'<tr><th scope="row">{escape(label)}{below}</th>{cells}</tr>')
    return (
        '<details class="plain"><summary>Everything that was measured</summary><div class="scroll"><table><thead><tr>'
        f'<th scope="col">Measure</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )


def _how(runs: Sequence[RunData]) -> str:
    hows = list(dict.fromkeys(run.timing["how"] for run in runs if "how" in run.timing))
    timed = f" Seconds: {'; '.join(hows)}." if hows else ""
    said: dict[str, list[str]] = {}
    for run in runs:
        for remark in run.remarks:
            said.setdefault(remark, []).append(run.mark)
    remarks = "".join(f" {', '.join(marks)}: {remark}" for remark, marks in said.items())
    return (
        "Intervals: percentile bootstrap over videos; Wilson's for shares of videos. PSNR pools squared errors over videos "
        "(a mean of decibels would be pulled up by near-identical videos). Reused counts decisions; FLOPs saved counts "
        f"compute that was really not executed.{timed}{remarks}"
    )
