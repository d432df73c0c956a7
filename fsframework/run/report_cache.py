"""The report's picture of the cache over the steps: what each run holds, and when it holds the most."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from fsframework.run.report_data import RunData
from fsframework.run.report_runs import sign
from fsframework.run.report_svg import NUM_COLOURS, path, step_ticks, svg, text, ticks
from fsframework.run.report_table import number
from fsframework.run.report_trace import CacheSteps

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 260, 132, 46, 8, 10, 30
"""A panel and its margins."""


def cache_panels(runs: Sequence[RunData]) -> str:
    """A panel per run that caches something, all on one scale, and sentences on the others; nothing without any record."""
    recorded = [(i, run, run.trace.cache) for i, run in enumerate(runs) if run.trace and run.trace.cache]
    if not recorded:
        return ""
    most = max(cache.peak for _, _, cache in recorded)
    panels = "".join(_figure(i, run, cache, most) for i, run, cache in recorded if cache.peak > 0)
    unknown = [run.mark for i, run in enumerate(runs) if i not in {i for i, _, _ in recorded}]
    idle = [run.mark for _, run, cache in recorded if not cache.peak > 0]
    notes = [f"{_marks(idle)} nothing."] if idle else []
    if unknown:
        notes.append(f"Not known for {', '.join(unknown)}: a trace of an earlier release does not say.")
    spread = any(cache.num_videos > 1 for _, _, cache in recorded)
    means = " Means over the videos of a run." if spread else ""
    key = '<svg class="key" viewBox="0 0 26 10" aria-hidden="true">{}</svg>'
    held, line = key.format(path("M0 2H26V10H0Z", "held run-0")), key.format(path("M0 5H26", "most run-0"))
    return (
        f'<h4>Cache over the steps</h4><div class="panels cache">{panels}</div>'
        f'<ul class="legend"><li>{held}held at the end of a step</li><li>{line}the most at once within it</li></ul>'
        f'<p class="small">x: denoising step. y: bytes, the same scale for all runs; the dot is the first step with the most. '
        f"What no later step reads is freed when the next step begins.{means} {escape(' '.join(notes))}</p>"
    )


def cache_payload(run: RunData) -> dict[str, Any] | None:
    """The numbers behind a panel's hover, in whole bytes; None without a panel."""
    cache = run.trace.cache if run.trace else None
    if cache is None or not cache.peak > 0:
        return None
    rows = {"held": cache.held_T, "most": cache.most_T}
    return {name: [None if np.isnan(v) else round(v) for v in row_T.tolist()] for name, row_T in rows.items()}


def _marks(marks: Sequence[str]) -> str:
    return f"{', '.join(marks)} {'holds' if len(marks) == 1 else 'hold'}"


def _figure(position: int, run: RunData, cache: CacheSteps, most: float) -> str:
    peak = f"{number(cache.peak, 'bytes')} at step {cache.peak_step}"
    return (
        f'<figure data-row="{position}"><figcaption>{sign(position)}<b>{run.mark} {escape(run.title)}</b>'
        f"<span>peak {peak}</span></figcaption>{_panel(position, run, cache, most)}</figure>"
    )


def _panel(position: int, run: RunData, cache: CacheSteps, most: float) -> str:
    floor, end, num_steps = HEIGHT - BOTTOM, WIDTH - RIGHT, len(cache.held_T)
    colour = f"run-{position % NUM_COLOURS}"

    def x(step: float) -> float:
        return LEFT + step / num_steps * (end - LEFT)

    def y(value: float) -> float:
        return floor - value / most * (floor - TOP)

    def stairs(row_T: np.ndarray) -> str:
        """A step's value over its whole width; a step that is not known is a gap."""
        out, before = [], float("nan")
        for step, value in enumerate(row_T.tolist()):
            if not np.isnan(value):
                out.append(f"{'M' if np.isnan(before) else 'L'}{x(step):.1f} {y(value):.1f}H{x(step + 1):.1f}")
            before = value
        return "".join(out)

    known = np.flatnonzero(~np.isnan(cache.held_T)).tolist()
    area = "".join(f"M{x(t):.1f} {floor}V{y(cache.held_T[t]):.1f}H{x(t + 1):.1f}V{floor}Z" for t in known)
    out = []
    for value in ticks(0, most, 4):
        out.append(path(f"M{LEFT} {y(value):.1f}H{end}", "grid"))
        out.append(text(LEFT - 4, y(value) + 3.5, number(value, "bytes"), anchor="end"))
    out += [text(x(step + 0.5), floor + 13, str(step)) for step in step_ticks(num_steps, 5)]
    out.append(text((LEFT + end) / 2, HEIGHT - 3, "denoising step"))
    out += [path(area, f"held {colour}"), path(stairs(cache.most_T), f"most {colour}")]
    out.append(path(f"M{LEFT} {floor}H{end}", "axis"))
    top = cache.peak_step
    out.append(f'<circle class="mark {colour}" cx="{x(top + 0.5):.1f}" cy="{y(cache.peak):.1f}" r="4"/>')
    label = f"bytes cached by {run.mark} over {num_steps} steps, at most {number(cache.peak, 'bytes')} at step {top}"
    return svg(out, WIDTH, HEIGHT, "panel", label, f'data-cache="{position}"')
