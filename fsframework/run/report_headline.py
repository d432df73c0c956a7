"""The top of the report: one sentence with the result, and the conditions it holds under."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fsframework.run.report_data import Clip, RunData
from fsframework.run.report_table import Column, column, number, spread, unit_of

UNKNOWN = "not recorded"
MAX_MODELS = 3
"""Of more models the headline gives no results."""


def facts(runs: Sequence[RunData]) -> dict[str, str]:
    """The conditions of the numbers; several values are joined where the runs differ."""

    def joined(values: Sequence[object]) -> str:
        known = dict.fromkeys(str(v) for v in values if v not in (None, ""))
        return ", ".join(known) or UNKNOWN

    steps = [run.trace.num_steps if run.trace else run.fact("sampling", "num_steps") for run in runs]
    devices = [_device(run) for run in runs]
    dtypes = [run.fact("model", "dtype") or run.fact("dtype") for run in runs]
    sizes = [_size(run) for run in runs]
    revisions = list(dict.fromkeys(filter(None, map(_revision, runs))))
    if len(revisions) > 2:
        revisions = [f"{len(revisions)} different ones, listed below"]
    return {
        "Model": joined([run.model for run in runs]),
        "Steps": joined(steps),
        "Videos": _samples(runs),
        "Size": joined(sizes),
        "Device": joined(devices),
        "Precision": joined(dtypes),
        "Revision": joined(revisions),
    }


def headline(runs: Sequence[RunData]) -> str:
    """One sentence, or one per model, with the numbers that matter and the conditions they hold under (HTML)."""
    known = facts(runs)
    inside = [f"{known['Steps']} steps", known["Videos"], known["Device"], known["Precision"]]
    conditions = f"On {known['Model']} ({', '.join(value for value in inside if UNKNOWN not in value)})"
    methods = [r for r in runs if not math.isnan(r.mean("speedup")) and not math.isinf(r.mean("psnr"))]
    if not methods:
        return f"{escape(conditions)}: {len(runs)} run{'s' * (len(runs) > 1)}, none with a speedup and a difference to show."
    models = list(dict.fromkeys(run.model for run in methods))
    if len(models) == 1:
        return f"{escape(conditions)}, {_result(methods, True)}."
    if len(models) > MAX_MODELS:
        return f"{escape(conditions)}: {len(runs)} runs; see the table, a model at a time."
    results = [f"on {escape(model)}, {_result([r for r in methods if r.model == model], False)}" for model in models]
    return f"{escape(conditions)}: {'. '.join(result[0].upper() + result[1:] for result in results)}."


def _result(methods: Sequence[RunData], is_whole: bool) -> str:
    """The fastest and the closest run of one model, as a clause; in a few words unless it is the whole result."""
    fastest = max(methods, key=lambda run: run.mean("speedup"))
    measured = [run for run in methods if not math.isnan(run.mean("psnr"))]
    closest = max(measured, key=lambda run: run.mean("psnr")) if measured else fastest
    clock = f"{fastest.clock} time"
    saved = fastest.mean("flops_saved")
    flops = "" if math.isnan(saved) else f", saving {100 * saved:.0f} % of the FLOPs"
    speed, psnr = column("speedup"), column("psnr")
    # The sentence names the model already.
    first, second = (f"<b>{escape(r.label if is_whole else r.title)}</b>" for r in (fastest, closest))
    if fastest is closest:
        return (
            f"{first} reaches a {_shown(fastest, speed, 'speedup')} in {clock}{flops}, at a "
            f"{_shown(fastest, psnr, 'PSNR')} against the reference"
        )
    return (
        f"{first} is fastest, with a {_shown(fastest, speed, 'speedup')} in {clock} at a {_shown(fastest, psnr, 'PSNR')}; "
        f"{second} stays closest to the reference, with a {_shown(closest, psnr, 'PSNR')} at a "
        f"{_shown(closest, speed, 'speedup')}"
    )


def _shown(run: RunData, c: Column, words: str) -> str:
    if c.key not in run.measures:
        return f"{words} that was not measured"
    measure = run.measures[c.key]
    mean = f"{number(measure.interval.mean, c.style)} {unit_of(c, measure)}".strip()
    interval = spread(measure, c.style)
    return f'{words} of <strong>{escape(mean)}</strong> <span class="keep">({escape(interval)})</span>'


def head(runs: Sequence[RunData], title: str) -> str:
    """Title, headline, conditions."""
    known = {key: value for key, value in facts(runs).items() if value != UNKNOWN}
    entries = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in known.items())
    return f'<header><h1>{escape(title)}</h1><p class="headline">{headline(runs)}</p><dl class="facts">{entries}</dl></header>'


def _samples(runs: Sequence[RunData]) -> str:
    different = list(dict.fromkeys(text for run in runs if (text := _sample(run.clips))))
    if len(different) < 2:
        return "".join(different) or UNKNOWN
    counts = [len(run.clips) for run in runs if run.clips]
    return f"{min(counts)} to {max(counts)} videos" if min(counts) < max(counts) else f"{counts[0]} videos"


def _sample(clips: Sequence[Clip]) -> str:
    if not clips:
        return ""
    prompts = len({clip.prompt for clip in clips})
    each = len(clips) / prompts
    plural = f"{len(clips)} video{'s' * (len(clips) > 1)}"
    if prompts == len(clips):
        return f"{plural}, each of another prompt" if prompts > 1 else plural
    seeds = f"{each:.0f} seeds each" if each == int(each) else "several seeds each"
    return f"{plural} of {prompts} prompt{'s' * (prompts > 1)} with {seeds}"


def _device(run: RunData) -> str:
    device = str(run.environment.get("device") or run.fact("model", "device") or run.fact("device") or "")
    name = run.environment.get("gpu") or (run.environment.get("cpu") if device.startswith("cpu") else None)
    return f"{device}, {name}" if device and name else device


def _size(run: RunData) -> str:
    width, height, frames = (run.fact("sampling", key) for key in ("width", "height", "num_frames"))
    return f"{width} × {height} pixels, {frames} frames" if width and height and frames else ""


def _revision(run: RunData) -> str:
    git = run.environment.get("git")
    if isinstance(git, dict) and git.get("revision"):
        return str(git["revision"])[:10] + (" with changes" if git.get("dirty") else "")
    return str(run.environment.get("git_revision") or "")[:10]
