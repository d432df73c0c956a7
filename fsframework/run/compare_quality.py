"""The tables of a comparison at equal quality: how much compute each method takes to come up to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fsframework.metrics.statistics import ClusterMeans
from fsframework.run.compare_cells import Cell, Row, Table
from fsframework.run.compare_sweep import (
    REACH,
    Curve,
    Sweep,
    crossing,
    curve,
    scale_of,
    timed_columns,
)
from fsframework.run.compare_tables import common_clips, mean_cell, settings_table, style_of

Level = Callable[[np.ndarray], np.ndarray]
"""The quality to reach, of means [..., k] of a curve: [...]."""
_HOW = (
    "Value (95 % interval over prompts): the least share of full compute at which all videos of the method together have the "
    "quality, and the speedup there. An end marked < or > lies beyond the settings that were tried."
)


def quality_table(
    sweeps: Sequence[Sweep], metric: str, level: float, baseline: Sweep | None = None, reach: float = REACH
) -> Table:
    """All methods at one quality, such as a PSNR of 35 dB."""
    scale = scale_of(metric)
    rows, notes = [], []
    for sweep in sweeps:
        own = curve(_measured(sweep, metric), metric, reach)
        fixed: Level = lambda means: np.full(means.shape[:-1], level)
        cells, remarks = (_no_line(sweep), []) if own is None else _cells(sweep, own, fixed)
        if baseline is not None:
            cells += [Cell(text="")] * 2 if sweep is baseline else _over(sweep, baseline, metric, fixed, reach)
        rows.append(Row(sweep.name, cells))
        notes += remarks
    return _table(f"At {metric} {level:g}{f' {scale.unit}' if scale.unit else ''}", "", rows, notes, baseline)


def baseline_table(sweeps: Sequence[Sweep], metric: str, baseline: Sweep, setting: int, reach: float = REACH) -> Table:
    """All methods at the quality that one setting of the baseline has.

    The quality is as uncertain as any mean; each resample of the prompts asks for the quality that the baseline has in it.
    """
    scale = scale_of(metric)
    base = _measured(baseline, metric)
    name = f"{baseline.name}: {base.settings[setting]}" if base.settings[setting] else baseline.name
    rows, notes = [], []
    for sweep in sweeps:
        if sweep is baseline:
            rows.append(Row(name, [*_of_setting(base, setting), Cell(text=""), Cell(text="")]))
            continue
        clips = common_clips(_measured(sweep, metric), base)
        one, other = _measured(sweep, metric).of(clips), base.of(clips)
        seconds, full, _ = timed_columns(other.time[:, [setting]], other.reference_seconds)
        columns = [scale.to_mean(scale.bounded(other.quality[metric][:, [setting]])), other.fraction[:, [setting]]]
        own = curve(one, metric, reach, np.concatenate([*columns, seconds, full], axis=1))
        if own is None:
            rows.append(Row(sweep.name, [*_no_line(sweep), *[Cell(text="-")] * 2]))
            continue
        cells, remarks = _cells(sweep, own, _level_of(own))
        rows.append(Row(sweep.name, [*cells, *_ratios(own.means, own, _level_of(own), *_cost_of(own))]))
        notes += remarks
    value = mean_cell(base.quality[metric][:, setting], base.prompts, scale)
    title = f"At the {metric} of {name}: {value.number} {scale.unit}".rstrip()
    about = f"{name} has {scale.title} {value.number} ({value.spread}), n={value.num_videos} ({value.num_prompts} prompts). "
    return _table(title, about, rows, notes, baseline)


def _level_of(own: Curve) -> Level:
    """The quality of the baseline's setting, the first of the curve's further columns."""
    return lambda means: own.scale.from_mean(own.others(means)[..., 0])


def _cost_of(own: Curve) -> tuple[Level, Level]:
    """Share and speedup of the baseline's setting, from the further columns: quality, share, seconds, full compute's."""
    share: Level = lambda means: own.others(means)[..., 1]
    return share, lambda means: _ratio(own.others(means)[..., 3], own.others(means)[..., 2])


def _table(title: str, about: str, rows: list[Row], notes: list[str], baseline: Sweep | None) -> Table:
    rows.sort(key=lambda row: row.cells[0].value if row.cells[0].num_videos else math.inf)
    columns = ["FLOPs / full", "FLOPs speedup", "speedup"]
    marks = [-1, 0, 0]
    if baseline is not None:
        columns += [f"FLOPs speedup / {baseline.name}", f"speedup / {baseline.name}"]
        marks += [0, 0]
        about += f"The last two columns are paired with {baseline.name}, over the videos of both. "
    return Table("quality", title, about + _HOW, "method", columns, rows, notes, marks)


def _measured(sweep: Sweep, metric: str) -> Sweep:
    """The videos that have the metric at every setting."""
    if metric not in sweep.quality:
        raise ValueError(
            f"{sweep.name} was not measured with {metric}; its metrics are {', '.join(sweep.quality) or 'none'}"
        )
    known = ~np.isnan(sweep.quality[metric]).any(axis=1)
    return sweep if known.all() else sweep.of([clip for clip, there in zip(sweep.clips, known) if there])


def _no_line(sweep: Sweep) -> list[Cell]:
    why = "one setting" if len(sweep.settings) < 2 else "its videos share no range of compute"
    return [Cell(text=f"- ({why})"), Cell(text="-"), Cell(text="-")]


def _cells(sweep: Sweep, own: Curve, level: Level) -> tuple[list[Cell], list[str]]:
    """Share, FLOPs speedup and speedup at which a curve reaches a level; and what a reader must know."""
    quality = own.quality(own.means.centre)
    wanted = float(level(own.means.centre))
    sign = 1.0 if own.scale.higher_is_better else -1.0
    style = style_of(own.scale)
    share = _reached(own, level, own.means.centre)
    if share == math.inf:
        best = int(np.argmax(sign * quality))
        text = f"not reached; at best {quality[best]:{style}}, at {own.at[best]:.3f}"
        return [Cell(text=text), Cell(text="-"), Cell(text="-")], []
    notes = []
    again = own.at[(own.at > share) & (sign * (quality - wanted) < -1e-9)]
    if len(again):
        worse = "falls below" if sign > 0 else "rises above"
        notes.append(f"{sweep.name} {worse} it again between {again[0]:.3f} and {again[-1]:.3f} of full compute.")
    notes += _beyond(sweep, max(float(share), float(own.at[0])))
    fractions = lambda means: _reached(own, level, means)
    ends = (float(own.at[0]), float(own.at[-1]))
    speedups = own.speedup(own.means.centre)
    return [
        _censored(own.means, fractions, ends, ".3f"),
        _censored(own.means, lambda means: _inverse(fractions(means)), (1 / ends[1], 1 / ends[0]), ".2fx"),
        _censored(
            own.means,
            lambda means: _speedup_at(own, means, fractions(means)),
            (float(speedups[-1]), float(speedups[0])),
            ".2fx",
            own.num_timed,
        ),
    ], notes


def _beyond(sweep: Sweep, share: float) -> list[str]:
    """What was read beyond a video's last setting."""
    low, high = sweep.fraction.min(axis=1), sweep.fraction.max(axis=1)
    outside = np.maximum(low - share, share - high)[high - low > 1e-6]
    count = int((outside > 1e-9).sum())
    if not count:
        return []
    return [
        f"{sweep.name}: {count} of {len(outside)} videos were read up to {outside.max():.3f} beyond their last setting."
    ]


def _of_setting(base: Sweep, setting: int) -> list[Cell]:
    """The baseline's own row."""
    only = Sweep(
        base.name, [""], base.clips, base.fraction[:, [setting]], base.time[:, [setting]], base.reference_seconds, {}
    )
    return list(settings_table([only], []).rows[0].cells)


def _over(sweep: Sweep, baseline: Sweep, metric: str, level: Level, reach: float) -> list[Cell]:
    """How many times the baseline's FLOPs speedup and speedup a method has where both reach a quality."""
    one, other = _measured(sweep, metric), _measured(baseline, metric)
    clips = common_clips(one, other)
    # Lines of both, over the same videos: the same clusters in the same order give the same draws.
    clips = [c for c in clips if all(_has_line(s, c) for s in (one, other))]
    a, b = (curve(s.of(clips), metric, reach) if clips else None for s in (one, other))
    if a is None or b is None:
        return [Cell(text="-")] * 2
    joint = ClusterMeans(
        np.concatenate([a.means.centre, b.means.centre]),
        np.concatenate([a.means.resampled, b.means.resampled], axis=1),
        a.means.n,
        a.means.num_clusters,
    )
    size = len(a.means.centre)
    first, second = (lambda means: means[..., :size]), (lambda means: means[..., size:])
    share = lambda means: _reached(b, level, second(means))
    speedup = lambda means: _speedup_at(b, second(means), share(means))
    return _ratios(joint, a, lambda means: level(means), share, speedup, first)


def _has_line(sweep: Sweep, clip: tuple[str, int]) -> bool:
    row = sweep.fraction[sweep.rows([clip])[0]]
    return bool(row.max() - row.min() > 1e-6)


def _ratios(
    means: ClusterMeans,
    own: Curve,
    level: Level,
    share: Level,
    speedup: Level,
    part: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> list[Cell]:
    """FLOPs speedup and speedup of a curve at a level over those of something else in the same resample."""
    fractions = lambda m: _reached(own, level, part(m))
    by_flops = lambda m: _ratio(share(m), fractions(m))
    by_time = lambda m: _ratio(_speedup_at(own, part(m), fractions(m)), speedup(m))
    out = []
    for of in (by_flops, by_time):
        if math.isinf(float(fractions(means.centre))) or not math.isfinite(float(of(means.centre))):
            out.append(Cell(text="-"))
            continue
        drawn = of(means.resampled)
        finite = drawn[np.isfinite(drawn)]
        ends = (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)
        out.append(_censored(means, of, ends, ".2fx"))
    return out


def _reached(own: Curve, level: Level, means: np.ndarray) -> np.ndarray:
    return crossing(own.at, own.quality(means), level(means), own.scale.higher_is_better)


def _inverse(fraction: np.ndarray) -> np.ndarray:
    """FLOPs speedups; what needs more compute than was tried (inf) is slower than any (-inf), and the reverse."""
    with np.errstate(divide="ignore"):
        return np.where(np.isinf(fraction), -fraction, 1 / fraction)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A ratio of positive numbers where +inf and -inf stand for beyond either end; NaN where both are beyond the same."""
    above, below = np.asarray(above), np.asarray(below)
    with np.errstate(invalid="ignore", divide="ignore"):
        plain = above / below
    out = np.where(np.isinf(below), -below, plain)
    out = np.where(np.isinf(above), above, out)
    return np.where(np.isinf(above) & (above == below), math.nan, out)


def _speedup_at(own: Curve, means: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Speedup [...] at a share [...], along the line of seconds."""
    inside = np.clip(fraction, own.at[0], own.at[-1])
    k = np.clip(np.searchsorted(own.at, inside, side="right"), 1, len(own.at) - 1)
    inverse = 1 / own.speedup(means)
    low, high = (np.take_along_axis(inverse, i[..., None], -1)[..., 0] for i in (k - 1, k))
    share = (inside - own.at[k - 1]) / (own.at[k] - own.at[k - 1])
    speedup = 1 / (low + share * (high - low))
    return np.where(np.isinf(fraction) & ~np.isnan(speedup), -fraction, speedup)


def _censored(
    means: ClusterMeans, of: Level, ends: tuple[float, float], style: str, num_videos: int | None = None
) -> Cell:
    """A cell whose mean or interval may lie beyond the settings tried: it is cut at `ends`, and marked."""
    interval = means.interval(of)
    n = interval.n if num_videos is None else num_videos
    if not n or math.isnan(interval.mean):
        return Cell(text="-")
    cut = lambda value: ends[0] if value == -math.inf else ends[1] if value == math.inf else value
    text = "" if math.isfinite(interval.mean) else ("at most" if interval.mean < 0 else "at least")
    return Cell(
        cut(interval.mean),
        cut(interval.low),
        cut(interval.high),
        n,
        interval.num_clusters,
        style,
        text,
        is_low_open=interval.low == -math.inf,
        is_high_open=interval.high == math.inf,
    )
