"""What a researcher should know about a video before believing its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fsframework.core.policy import ReusePolicy
from fsframework.core.site import Part, Run
from fsframework.core.trace import RECOMPUTE, Trace


class ReuseWarning(UserWarning):
    """Something a researcher should know about a run: nothing reused, a distance that is not finite, ..."""


def review(trace: Trace, policy: ReusePolicy[Any], run: Run | None) -> dict[str, str]:
    """Warnings about a finished video, by kind. Reads the logged distances: one transfer, after the video."""
    out: dict[str, str] = {}
    if not len(trace):
        return out
    distances = trace.logged("distance")
    broken = [(row, d) for row, d in distances.items() if not math.isfinite(d)]
    if broken:
        row, value = broken[0]
        out["finite"] = (
            f"{len(broken)} of {len(distances)} distances are not finite; first: {value} at {trace.site[row].name}, step "
            f"{trace.step[row]}. Such blocks are recomputed. The activations themselves overflow; try bfloat16 or float32."
        )
    name = type(policy).__name__
    if all(d == RECOMPUTE for d in trace.decision):
        idle = _idle(name, policy, run, trace, range(len(trace)))
        return {**out, "nothing": idle} if idle else out
    passed = _passed_over(trace)
    for i, (inner, one, own) in enumerate(policy.inner(run) if run is not None else ()):
        sites = set(own.sites)
        rows = [row for row, site in enumerate(trace.site) if site in sites and row not in passed]
        if all(trace.decision[row] == RECOMPUTE for row in rows):
            idle = _idle(f"In {name}, {inner}", one, own, trace, rows)
            if idle:
                out[f"nothing {i}"] = idle
    return out


def _idle(name: str, policy: ReusePolicy[Any], run: Run | None, trace: Trace, rows: Sequence[int]) -> str | None:
    """What to say of a policy that reused nothing in its rows of the trace; None where that was asked for."""
    schedule = policy.schedule(run) if run is not None else None
    is_plan = bool(schedule) and all(schedule or ())
    if _is_asked_for(policy, is_plan):
        return None
    num_steps, num_asked = len(trace.timesteps), len({trace.step[row] for row in rows})
    if is_plan:
        return (
            f"{name} reused nothing: its plan for these {num_steps} steps recomputes every one. See its warmup, interval, "
            f"window or threshold."
        )
    steps = f"{num_steps} steps" if num_asked == num_steps else f"the {num_asked} of {num_steps} steps it was asked in"
    return f"{name} reused nothing in {steps}.{_nearest(trace, rows)}"


def _passed_over(trace: Trace) -> set[int]:
    """Rows that say what an outer trunk or span decided: its blocks, and spans inside it, were not asked."""
    out: set[int] = set()
    step, branch, stop = -1, "", -1  # where a region was put in place last, and the block it ends before
    for row, site in enumerate(trace.site):
        if (trace.step[row], trace.branch[row]) == (step, branch) and site.start < stop:
            out.add(row)
        elif site.part in (Part.TRUNK, Part.SPAN) and trace.decision[row] != RECOMPUTE:
            step, branch, stop = trace.step[row], trace.branch[row], site.stop
    return out


def _is_asked_for(policy: ReusePolicy[Any], is_plan: bool) -> bool:
    """Whether a policy was set to never reuse: it has the options of its `never`, or states none and plans no reuse."""
    inner = [p for name in policy.policy_fields for p in _listed(getattr(policy, name))]
    if inner:
        return all(_is_asked_for(one, is_plan) for one in inner)
    if not policy.never:
        return is_plan
    return is_plan and all(_listed(getattr(policy, name)) == _listed(value) for name, value in policy.never.items())


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _nearest(trace: Trace, rows: Sequence[int]) -> str:
    """How near a video came to its first reuse: the smallest distance, the largest threshold, and, as these may be of
    different sites, where a distance came nearest to its own threshold. Wherever they were logged: at blocks, their parts,
    the trunk or the model."""
    own = set(rows)
    distances = {row: d for row, d in trace.logged("distance").items() if row in own and math.isfinite(d)}
    thresholds = {row: t for row, t in trace.logged("threshold").items() if row in own and math.isfinite(t)}
    if not distances:
        return " No distance was logged."
    out = f" Smallest distance {min(distances.values()):.3g}"
    out += f", largest threshold {max(thresholds.values()):.3g}." if thresholds else "."
    both = [row for row in distances if row in thresholds]
    if both and len(set(thresholds.values())) > 1:
        row = min(both, key=lambda row: distances[row] / max(thresholds[row], 1e-30))
        out += (
            f" Nearest to its threshold: {trace.site[row].name} at step {trace.step[row]}, {distances[row]:.3g} against "
            f"{thresholds[row]:.3g}."
        )
    return out
