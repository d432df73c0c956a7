"""What a researcher should know about a video before believing its numbers."""

from __future__ import annotations

import math
from typing import Any

from fsframework.core.policy import ReusePolicy
from fsframework.core.site import Run
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
    schedule = policy.schedule(run) if run is not None else None
    is_plan = bool(schedule) and all(schedule or ())
    if any(d != RECOMPUTE for d in trace.decision) or _is_asked_for(policy, is_plan):
        return out
    name, num_steps = type(policy).__name__, len(trace.timesteps)
    if is_plan:
        out["nothing"] = (
            f"{name} reused nothing: its plan for these {num_steps} steps recomputes every one. See its warmup, interval, "
            f"window or threshold."
        )
    else:
        out["nothing"] = f"{name} reused nothing in {num_steps} steps.{_nearest(trace)}"
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


def _nearest(trace: Trace) -> str:
    """How near a video came to its first reuse: the smallest distance, the largest threshold, and, as these may be of
    different sites, where a distance came nearest to its own threshold. Wherever they were logged: at blocks, their parts,
    the trunk or the model."""
    distances = {row: d for row, d in trace.logged("distance").items() if math.isfinite(d)}
    thresholds = {row: t for row, t in trace.logged("threshold").items() if math.isfinite(t)}
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
