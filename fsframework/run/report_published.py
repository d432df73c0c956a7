"""Published numbers beside a report's rows. They are of other models on other hardware, and the page says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import combinations

from fsframework.config.published import Published, PublishedRow
from fsframework.run.report_data import RunData
from fsframework.run.report_runs import run_name
from fsframework.run.report_table import column, number, spread, unit_of

FULL_SIZE = "published, full-size checkpoints on other hardware"
ELSEWHERE = "published, on other hardware"


@dataclass(frozen=True)
class Pair:
    """A published row and the run it stands beside: None if no row of the report is of that setting and model."""

    row: PublishedRow
    run: int | None


def pairs(table: Published, runs: Sequence[RunData]) -> list[Pair]:
    """Every published row with each run of its setting and of its model, or of a model of the same family.

    The setting is a cell's label, or its name in the grid, which several cells may share. A row without a model goes with
    any.
    """
    out: list[Pair] = []
    for row in table.rows:
        found = [
            i
            for i, run in enumerate(runs)
            if row.setting in (run.cell, run.group) and _same_model(row.model, run.model)
        ]
        out += [Pair(row, i) for i in found] or [Pair(row, None)]
    return out


def published_section(tables: Sequence[Published], runs: Sequence[RunData]) -> str:
    """A block per published table; nothing without one."""
    if not tables:
        return ""
    blocks = "".join(_block(table, runs) for table in tables)
    return (
        '<section id="published"><h2>Published numbers</h2><p class="lead">For orientation: these were measured by others, '
        "with other models, prompts and machines. Compare the order of the settings, not the values.</p>"
        f"{blocks}</section>"
    )


def mark(found: Sequence[Pair], runs: Sequence[RunData]) -> str:
    """What the published columns are plainly called."""
    here = {run.model for run in runs}
    others = any(pair.row.model is not None and pair.row.model not in here for pair in found)
    return FULL_SIZE if others else ELSEWHERE


def order_words(table: Published, found: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Per metric that both have, how many pairs of settings of one model lie here as published.

    A pair is decided here where the 95 % intervals of the two do not overlap.
    """
    sentences = []
    for key in _keys(table):
        same = reversed_ = undecided = 0
        both = [p for p in found if p.run is not None and key in p.row.values and key in runs[p.run].measures]
        for a, b in combinations(both, 2):
            assert a.run is not None
            assert b.run is not None
            published = a.row.values[key] - b.row.values[key]
            if a.row.model != b.row.model or runs[a.run].model != runs[b.run].model or a.run == b.run or published == 0:
                continue
            here = _order(runs[a.run], runs[b.run], key)
            same += here * published > 0
            reversed_ += here * published < 0
            undecided += here == 0
        if total := same + reversed_ + undecided:
            sentences.append(
                f"{column(key).title}: of {total} pair{'s' * (total > 1)} of settings {same} in the published order, {reversed_} "
                f"reversed, {undecided} undecided here (the 95 % intervals overlap)."
            )
    return sentences


def _order(a: RunData, b: RunData, key: str) -> int:
    """1 if a lies above b, -1 below, 0 if their intervals overlap or one has none."""
    first, second = a.measures[key].interval, b.measures[key].interval
    ends = [first.mean if math.isinf(first.mean) else first.low, first.mean if math.isinf(first.mean) else first.high]
    others = [
        second.mean if math.isinf(second.mean) else second.low,
        second.mean if math.isinf(second.mean) else second.high,
    ]
    return int(ends[0] > others[1]) - int(ends[1] < others[0])


def _block(table: Published, runs: Sequence[RunData]) -> str:
    found, keys = pairs(table, runs), _keys(table)
    here = [key for key in keys if any(p.run is not None and key in runs[p.run].measures for p in found)]
    heads = '<th scope="col" rowspan="2">Run</th><th scope="col" rowspan="2" class="text">Published setting</th>'
    below = ""
    for key in keys:
        unit = unit_of(column(key), None) or table.units.get(key, "")
        span = ' colspan="2" class="group"' if key in here else ' class="group"'
        behind = f" <i>{escape(unit)}</i>" if unit else ""
        heads += f'<th scope="colgroup"{span}>{escape(column(key).title)}{behind}</th>'
        below += '<th scope="col" class="group">here</th>' if key in here else ""
        below += f'<th scope="col" class="published{"" if key in here else " group"}">published</th>'
    rows = []
    for pair in found:
        name = '<span class="missing">no row here</span>' if pair.run is None else run_name(runs[pair.run], pair.run)
        model = escape(pair.row.model or "model not said")
        cells = f'<th scope="row">{name}</th><td class="text">{escape(pair.row.setting)}<span class="spread">{model}</span></td>'
        for key in keys:
            cells += f'<td class="group">{_here(pair, runs, key)}</td>' if key in here else ""
            cells += f'<td class="published{"" if key in here else " group"}">{_there(pair, key)}</td>'
        place = "" if pair.run is None else f' data-row="{pair.run}"'
        rows.append(f"<tr{place}>{cells}</tr>")
    words = [*order_words(table, found, runs), *table.words()]
    return (
        f'<h3>{escape(table.name.replace("_", " "))} <span class="badge">{mark(found, runs)}</span></h3>'
        f'<div class="scroll"><table class="published-table"><thead><tr>{heads}</tr><tr>{below}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="small">{escape(" ".join(words))}</p>'
    )


def _keys(table: Published) -> list[str]:
    keys = dict.fromkeys(key for row in table.rows for key in row.values)
    return sorted(keys, key=lambda key: not key.endswith("speedup"))


def _here(pair: Pair, runs: Sequence[RunData], key: str) -> str:
    measure = None if pair.run is None else runs[pair.run].measures.get(key)
    if measure is None or math.isnan(measure.interval.mean):
        return '<span class="missing">–</span>'
    style = column(key, measure).style
    return (
        f'<span class="mean">{number(measure.interval.mean, style)}</span>'
        f'<span class="spread">{escape(spread(measure, style))}</span>'
    )


def _there(pair: Pair, key: str) -> str:
    if key not in pair.row.values:
        return '<span class="missing">–</span>'
    value = pair.row.values[key]
    # As many digits as were published: rounding anew would claim or lose some.
    return {"x": f"{value:g}×", "percent": f"{100 * value:g}"}.get(column(key).style, f"{value:g}")


def _same_model(published: str | None, here: str) -> bool:
    if published is None or published == here:
        return True
    family = _families().get(here)
    return family is not None and family == _families().get(published)


@lru_cache(maxsize=1)
def _families() -> dict[str, str]:
    from fsframework.run.catalog import list_models

    return {entry.name: entry.family for entry in list_models()}
