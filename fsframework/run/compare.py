"""`compare`: run directories in, tables at equal compute and at equal quality out.

Runs of one method at several settings are a sweep; what one method does at a share of full compute, or what it takes for a
quality, is read off between its own settings (`compare_sweep`). Every mean has its interval, a paired bootstrap over
prompts, and its n; what differs between rows besides the method is said in sentences, and rows that are compared with
different full-compute videos are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsframework.core.registry import nearest
from fsframework.data.video import atomic_path
from fsframework.metrics import METRICS
from fsframework.run import compare_differences as differences
from fsframework.run.compare_cells import Table
from fsframework.run.compare_data import Run, Series, find_runs, group
from fsframework.run.compare_plot import sweep_plot
from fsframework.run.compare_quality import baseline_table, quality_table
from fsframework.run.compare_sweep import REACH, Sweep
from fsframework.run.compare_tables import compute_table, prompts_table, settings_table, spread_at, spread_of_settings
from fsframework.run.compare_text import SUFFIXES, markdown, render

FRACTIONS = (0.75, 0.5, 0.33)
"""Shares of full compute at which methods are compared unless others are asked for."""


@dataclass(frozen=True)
class Options:
    """What to compare, and how."""

    at: Sequence[float] | None = None
    """Shares of full compute, in (0, 1]; None: those of `FRACTIONS` that a sweep reaches."""
    quality: Sequence[tuple[str, float]] = ()
    """Metric and level to compare the compute at, such as ("psnr", 35)."""
    baseline: str | None = None
    """The sweep that differences are taken to; also asks for tables at the quality of each of its settings."""
    by: Sequence[str] = ()
    """What splits the comparison: words of `compare_differences.BY`, `prompt`, or config keys."""
    metrics: Sequence[str] = ()
    """Names of values, the one to compare by first; empty: all that every run has, psnr first."""
    split: Sequence[str] = ()
    """Config keys whose values make sweeps of their own."""
    series: Mapping[str, str] = field(default_factory=dict)
    """Name of a sweep -> pattern of its run directories' names."""
    reach: float = REACH
    """How far beyond a video's last setting its line is followed, as a share of full compute, >= 0."""
    mixed_references: bool = False
    """Put rows side by side that are compared with different full-compute videos."""


@dataclass(frozen=True)
class Block:
    """Rows that stand side by side."""

    name: str
    """`resolution 32 x 32`; empty where nothing is split."""
    about: str
    statements: list[str]
    """What differs between its rows."""
    tables: list[Table]
    sweeps: list[Sweep]
    metric: str
    """The one compared by."""

    def plot(self) -> str:
        """An SVG of its sweeps."""
        return sweep_plot(self.sweeps, self.metric, self.name or self.about.partition(";")[0])


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    title: str
    notes: list[str]
    blocks: list[Block]

    def text(self) -> str:
        """As Markdown."""
        return markdown(self)

    def write(self, out: Path) -> list[Path]:
        """Write a file, its format by its ending; Markdown gets its pictures beside it. Returns what was written.

        Raises:
            ValueError: an ending that is not known, or a place that can not be written to.
        """
        if out.suffix not in SUFFIXES:
            raise ValueError(f"--out {out}: the ending says what to write; use {', '.join(SUFFIXES)}")
        pictures: list[Path] = []
        if out.suffix in (".md", ".svg"):
            names = [out.stem if len(self.blocks) == 1 else f"{out.stem}-{_slug(b.name)}" for b in self.blocks]
            pictures = [out.with_name(f"{name}.svg") for name in names]
        files = {picture: block.plot() for picture, block in zip(pictures, self.blocks)}
        if out.suffix != ".svg":
            files[out] = render(self, out.suffix, [picture.name for picture in pictures])
        for path, content in files.items():
            try:
                with atomic_path(path) as temporary:
                    temporary.write_text(content, encoding="utf-8")
            except OSError as error:
                raise ValueError(f"can not write {path}: {error.strerror or error}") from None
        return list(files)


def compare(paths: Sequence[Path], options: Options = Options()) -> Comparison:
    """Compare finished runs.

    A pure function of the directories: the same files and options give the same numbers.

    Args:
        paths: run directories, grid folders (`runs/_ablations/NAME`), grid files whose cells are finished.
        options: see `Options`.

    Raises:
        ValueError: a run that is not finished, rows that do not belong side by side, a name that is not there.
    """
    _check(options)
    runs, notes = find_runs(paths)
    split = differences.blocks(runs, options.by)
    notes += differences.between_blocks(split, options.by)
    found = [_block(name, members, options) for name, members in split.items()]
    names = dict.fromkeys(sweep.name for block in found for sweep in block.sweeps)
    return Comparison(
        f"Comparison of {', '.join(names)}" if len(names) <= 6 else f"Comparison of {len(names)} methods", notes, found
    )


def matched_tables(
    run_dirs: Sequence[Path], at: Sequence[float] | None = None, baseline: str | None = None
) -> tuple[list[Table], list[str]]:
    """The tables of run directories at equal compute and equal quality, and the sentences on what differs, for a report.

    The tables are those of `compare` but for the settings and their spread, which a report has anyway; none where no method
    was run at two settings. `Table` is plain data (`compare_cells`): title, about, columns, rows of cells with `number`,
    `spread`, `num_videos`, `num_prompts` and `text`, and notes; `compare_text.table_markdown` shows how to lay one out.

    Args:
        run_dirs: finished runs, in any order.
        at: shares of full compute; None: those of `FRACTIONS` that a sweep reaches.
        baseline: a sweep's name, such as `static`; None, or one that is not among the runs: no differences.

    Raises:
        ValueError: a run is not finished, or they are not compared with the same full-compute videos; the message says which
            and is fit to be shown.
    """
    runs, _ = find_runs(run_dirs)
    known = {one.sweep.name for one in group(runs)}
    block = _block("", runs, Options(at=at, baseline=baseline if baseline in known else None))
    return [table for table in block.tables if table.key in ("compute", "quality")], block.statements


def _check(options: Options) -> None:
    for share in options.at or ():
        if not 0 < share <= 1:
            raise ValueError(
                f"--at {share:g} is a share of full compute: give numbers above 0 and up to 1, such as 0.5"
            )
    if not options.reach >= 0:
        raise ValueError(f"--reach {options.reach:g} must be at least 0; 0 reads nothing beyond a method's settings")


def _block(name: str, runs: Sequence[Run], options: Options) -> Block:
    if not options.mixed_references:
        differences.check_references(runs, name)
    series = group(runs, options.split, options.series)
    metrics = _metrics(series, options)
    sweeps = [one.sweep for one in series]
    baseline = _baseline(sweeps, options.baseline, name)
    lines = [sweep for sweep in sweeps if len(sweep.settings) > 1]
    reached = _reached(lines, options)
    tables = [settings_table(sweeps, metrics)]
    tables += [compute_table(sweeps, at, metrics, baseline, options.reach) for at in reached]
    tables += [quality_table(sweeps, metric, level, baseline, options.reach) for metric, level in options.quality]
    if baseline is not None and lines and any(sweep is not baseline for sweep in lines):
        settings = range(len(baseline.settings))
        tables += [baseline_table(sweeps, metrics[0], baseline, k, options.reach) for k in settings]
    tables += [spread_at(sweeps, at, metrics[0], options.reach) for at in reached]
    tables.append(spread_of_settings(sweeps, metrics[0]))
    if differences.PROMPT in options.by:
        where: list[float | None] = [*reached] or [None]
        tables += [prompts_table(sweeps, metrics[0], at, options.reach) for at in where]
    statements = differences.statements(series, options.mixed_references)
    if not lines:
        statements.append(
            "No method was run at two settings, so nothing can be compared at equal compute or equal quality."
        )
    return Block(name, _about(runs), statements, tables, sweeps, metrics[0])


def _reached(lines: Sequence[Sweep], options: Options) -> list[float]:
    """The shares to compare at: those asked for, or the usual ones that some sweep has settings around."""
    if not lines:
        return []
    if options.at is not None:
        return list(options.at)
    near = lambda sweep, at: sweep.covers[0] - options.reach <= at <= sweep.covers[1] + options.reach
    return [at for at in FRACTIONS if any(near(sweep, at) for sweep in lines)]


def _metrics(series: Sequence[Series], options: Options) -> list[str]:
    """The values to compare by, the first one first.

    Raises:
        ValueError: one that not every run has.
    """
    every = [set(one.sweep.quality) for one in series]
    known = {name: None for _, metric in METRICS.items() for name in metric.value_names()}
    common = [
        name for name in dict.fromkeys(n for names in every for n in names) if all(name in names for names in every)
    ]
    wanted = list(dict.fromkeys([*options.metrics, *(metric for metric, _ in options.quality)]))
    for name in wanted:
        lacking = [one.sweep.name for one, names in zip(series, every) if name not in names]
        if lacking:
            raise ValueError(f"no {name!r} in the runs of {', '.join(lacking)}. {nearest(name, common)}")
    chosen = list(options.metrics) or sorted(
        (n for n in common if n in known), key=lambda n: (n != "psnr", list(known).index(n))
    )
    if not chosen:
        raise ValueError("the runs have no quality metric in common; give one with --metric, or other runs")
    return chosen


def _baseline(sweeps: Sequence[Sweep], name: str | None, block: str) -> Sweep | None:
    if name is None:
        return None
    found = next((sweep for sweep in sweeps if sweep.name == name), None)
    if found is None:
        where = f" with {block}" if block else ""
        raise ValueError(f"--baseline {name}: no such method{where}. {nearest(name, [sweep.name for sweep in sweeps])}")
    return found


def _about(runs: Sequence[Run]) -> str:
    """`4 prompts x 2 = 8 videos each; tiny-opensora, 30 steps, 32 x 32, 17 frames, float32 on cpu`."""
    first = runs[0]
    counts = sorted({len(run.clips) for run in runs})
    prompts = {prompt for run in runs for prompt, _ in run.clips}
    sampling = first.metrics.get("sampling") or {}
    size = " x ".join(str(sampling[key]) for key in ("height", "width") if sampling.get(key))
    facts = [
        str(first.metrics.get("model") or first.value("model.name")),
        *([f"{sampling['num_steps']} steps"] if sampling.get("num_steps") else []),
        *([size] if size else []),
        *([f"{sampling['num_frames']} frames"] if sampling.get("num_frames") else []),
        f"{first.metrics.get('dtype', 'dtype not known')} on {first.device}",
    ]
    videos = f"{' or '.join(map(str, counts))} videos of {len(prompts)} prompts in each of {len(runs)} runs"
    clocks = sorted({"wall seconds" if run.clock == "wall_seconds" else "process CPU seconds" for run in runs})
    how = f"Speedups are of {' and '.join(clocks)}; intervals are 95 % bootstrap over prompts, paired."
    return f"{videos}; {', '.join(facts)}. {how}"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name).split()) or "all"
