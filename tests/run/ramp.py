"""A policy made to be calibrated, small enough to follow: it reuses where the model was seen to change little.

Its artifact holds the mean change of block outputs per step, and how far rollouts end from the reference that reuse every
second and every third step. A test loads it as a plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsframework.core import (
    POLICIES,
    Artifact,
    Calibration,
    Call,
    Curve,
    Decision,
    Fit,
    Recompute,
    Reuse,
    ReusePolicy,
    Run,
    Site,
    Trace,
)
from fsframework.core.distance import relative_l1


@dataclass(frozen=True)
class Recorder(ReusePolicy[None]):
    """Recomputes everything and logs how much each block's output changed."""

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        return Recompute()

    def observe(self, state: None, call: Call, site: Site, fresh: Any, cached: Any) -> None:
        if cached is not None:
            call.log(change=relative_l1(fresh[0], cached.value[0]))


@dataclass(frozen=True)
class Every(ReusePolicy[None]):
    """Recomputes every `interval` steps."""

    interval: int

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        return Reuse() if call.step.index % self.interval else Recompute()


@dataclass(frozen=True)
class RampCalibration(Calibration):
    longest: int

    fit_options = ("threshold",)

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        assert run.facts["latent_shape"]
        return {"full": Recorder(), **{f"every {n}": Every(n) for n in range(2, self.longest + 1)}}

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        changes = trace.logged("change")
        per_step = [[v for row, v in changes.items() if trace.step[row] == s] for s in range(len(trace.timesteps))]
        return {
            "changes": [sum(step) / len(step) if step else 0.0 for step in per_step],
            "error": float((latents - reference).abs().mean()),
        }

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        full = records["full"]
        changes = [sum(r["changes"][s] for r in full) / len(full) for s in range(run.num_steps)]
        errors = {name: sum(r["error"] for r in found) / len(found) for name, found in records.items()}
        curves = [Curve(f"clip {i}", range(run.num_steps), r["changes"], "step", "change") for i, r in enumerate(full)]
        curves.append(Curve("error", range(len(errors)), list(errors.values()), "rollout", "error", is_line=False))
        return Fit({"changes": changes, "errors": errors}, {"mean_change": sum(changes) / len(changes)}, curves)


@POLICIES.register("ramp")
@dataclass(frozen=True)
class Ramp(ReusePolicy[list[bool]]):
    """Reuses the steps that its artifact says change by less than `threshold`."""

    threshold: float = 0.1
    """Relative change, > 0."""
    longest: int = 3
    """Longest interval tried in calibration."""
    artifact: str | None = None
    """What `fsf calibrate ramp` wrote."""

    def start(self, run: Run) -> list[bool]:
        if self.artifact is None:
            raise ValueError("ramp needs an artifact: fsf calibrate ramp MODEL")
        artifact = Artifact.load(self.artifact, "ramp")
        artifact.check(run)
        return [s == 0 or change > self.threshold for s, change in enumerate(artifact.values["changes"])]

    def decide(self, state: list[bool], call: Call, site: Site) -> Decision:
        return Recompute() if state[call.step.index] else Reuse()

    def schedule(self, run: Run) -> list[bool]:
        return self.start(run)

    def calibration(self) -> Calibration:
        return RampCalibration(self.longest)
