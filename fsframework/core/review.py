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
    distances, thresholds = trace.logged("distance"), trace.logged("threshold")
    broken = [(row, d) for row, d in distances.items() if not math.isfinite(d)]
    if broken:
        row, value = broken[0]
        out["finite"] = (
            f"{len(broken)} of {len(distances)} distances are not finite; first: {value} at {trace.site[row].name}, step "
            f"{trace.step[row]}. Such blocks are recomputed. The activations themselves overflow; try bfloat16 or float32."
        )
    schedule = policy.schedule(run) if run is not None else None
    if all(d == RECOMPUTE for d in trace.decision) and not (schedule and all(schedule)):
        finite = [d for d in distances.values() if math.isfinite(d)]
        lines = [t for t in thresholds.values() if math.isfinite(t)]
        measured = f" Smallest distance {min(finite):.3g}" if finite else ""
        measured += f", largest threshold {max(lines):.3g}." if finite and lines else ""
        out["nothing"] = f"{type(policy).__name__} reused nothing in {len(trace.timesteps)} steps.{measured}"
    return out
