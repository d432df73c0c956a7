"""The report's memory section: what each run keeps in its cache, and the memory of a video beside full compute's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fsframework.run.report_cache import cache_panels
from fsframework.run.report_data import RunData
from fsframework.run.report_runs import run_name
from fsframework.run.report_svg import NUM_COLOURS
from fsframework.run.report_table import REFERENCE, column, number, spread

CACHE = "cache_bytes_peak"
MEASURED = ("memory_bytes_growth", "memory_bytes_peak")
"""Of one video; each stands beside the same of full compute."""


def memory_section(runs: Sequence[RunData]) -> str:
    """A row per run: peak cache bytes as a bar, and the memory of a video under the method and under full compute; below
    them the cache's bytes over the steps."""
    title = '<section id="memory"><h2>Memory</h2>'
    if not any(known(run, CACHE) for run in runs):
        return f'{title}<p class="missing">No run has its cache counted.</p></section>'
    measured = [key for key in MEASURED if any(known(run, key) for run in runs)]
    most = max(run.mean(CACHE) for run in runs if known(run, CACHE))
    heads = '<th scope="col" class="text">Run</th><th scope="col" class="text">Cache, peak\u00a0▼</th>'
    below = ""
    if measured:
        heads = heads.replace('scope="col"', 'scope="col" rowspan="2"')
        heads += "".join(
            f'<th scope="colgroup" colspan="3" title="{escape(column(key).about)}">{column(key).title}\u00a0▼</th>'
            for key in measured
        )
        thirds = "".join(f'<th scope="col">{word}</th>' for word in ("method", "full compute", "ratio"))
        below = f"<tr>{thirds * len(measured)}</tr>"
    rows = "".join(_row(run, i, most, measured) for i, run in enumerate(runs))
    return (
        f'{title}<p class="lead">Cache counts the bytes of every value that the method keeps, at the moment of a video when '
        f"they are most, from shapes. {_measured_words(runs, measured)}</p>"
        f'<div class="scroll"><table id="memory-table"><thead><tr>{heads}</tr>{below}</thead>'
        f"<tbody>{rows}</tbody></table></div>{cache_panels(runs)}</section>"
    )


def known(run: RunData, key: str) -> bool:
    """Whether a run has a number for it."""
    return key in run.measures and not math.isnan(run.mean(key))


def _row(run: RunData, position: int, most: float, measured: Sequence[str]) -> str:
    cells = [f'<th scope="row" class="text">{run_name(run, position)}</th>']
    if known(run, CACHE):
        share = run.mean(CACHE) / most if most else 0.0
        bar = f'<span class="bar"><span class="run-{position % NUM_COLOURS}" style="width:{100 * share:.1f}%"></span></span>'
        cells.append(f'<td class="text">{bar}{_value(run, CACHE)}</td>')
    else:
        cells.append('<td class="text missing">–</td>')
    for key in measured:
        own, full = run.mean(key), run.mean(REFERENCE + key)
        ratio = f"{own / full:.2f}×" if full > 0 else "–"
        cells += [f"<td>{_value(run, key)}</td>", f"<td>{_value(run, REFERENCE + key)}</td>", f"<td>{ratio}</td>"]
    return f'<tr data-row="{position}">{"".join(cells)}</tr>'


def _value(run: RunData, key: str) -> str:
    if not known(run, key):
        return '<span class="missing">–</span>'
    measure = run.measures[key]
    inside = escape(spread(measure, "bytes"))
    return f'<span class="mean">{number(measure.interval.mean, "bytes")}</span><span class="spread">{inside}</span>'


def _measured_words(runs: Sequence[RunData], measured: Sequence[str]) -> str:
    if not measured:
        return "The memory of a whole video was not measured in these runs."
    on_gpu = {str(run.environment.get("device") or run.fact("device") or "cpu").startswith("cuda") for run in runs}
    where = {True: "what torch's allocator handed out on the GPU", False: "the process's resident set"}
    which = " or ".join(where[kind] for kind in sorted(on_gpu))
    return (
        f"Growth is the most memory of a video beyond what was held when it began (activations, cache, frames); peak has the "
        f"weights too: {which}. Full compute is the reference, measured in the same run. On a CPU a second call reuses pages "
        f"of the first, so small differences between the two mean nothing."
    )
