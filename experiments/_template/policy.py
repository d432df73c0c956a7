"""A policy of this experiment: Foresight that recomputes everything in the last steps."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework import POLICIES, Call, Decision, Recompute, Site
from fsframework.policies import Foresight
from fsframework.policies.foresight import ForesightState


@POLICIES.register("delayed_foresight")
@dataclass(frozen=True)
class DelayedForesight(Foresight):
    """Foresight, with the last steps always recomputed: they decide fine detail."""

    last_steps: int = 5
    """So many steps at the end are always recomputed, >= 0. Higher reuses less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_steps < 0:
            raise ValueError(f"delayed_foresight: last_steps={self.last_steps} must be at least 0")

    def decide(self, state: ForesightState, call: Call, site: Site) -> Decision:
        if call.step.index >= call.step.num_steps - self.last_steps:
            return Recompute()
        return super().decide(state, call, site)
