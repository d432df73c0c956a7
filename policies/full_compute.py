"""Full compute: the reference every policy is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import DISCARD, POLICIES, Call, Recompute, ReusePolicy, Run, Site


@POLICIES.register("full")
@dataclass(frozen=True)
class FullCompute(ReusePolicy[None]):
    """Recomputes every block at every step; bit-identical to the bare pipeline. Caches nothing, reads nothing."""

    def decide(self, state: None, call: Call, site: Site) -> Recompute:
        """Always recompute, never store."""
        return DISCARD

    def schedule(self, run: Run) -> list[bool]:
        """Every step is recomputed."""
        return [True] * run.num_steps

    def num_cached(self, run: Run) -> int:
        """Nothing."""
        return 0
