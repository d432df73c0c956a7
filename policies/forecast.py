"""A forecast in place of the copy, for any policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fsframework.core import (
    POLICIES,
    Calibration,
    Call,
    Decision,
    Entry,
    Part,
    Reuse,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.forecast import Spacing, check_forecast, extrapolate, forecast, times_of
from fsframework.core.policy import Storage, as_policy


@POLICIES.register("forecast")
@dataclass(frozen=True)
class ForecastReuse(ReusePolicy[Any]):
    """Decides as the policy `base` does, and where that reuses puts a forecast in place instead of the last value.

    Every `Reuse` of the base becomes y_0 + d (P(s) - y_0): y_0 is the newest cached value, P the polynomial of degree O =
    `order` through the newest O + 1 (Newton's divided differences, right for uneven spacing), s the step or its timestep, d =
    `damping`. A jump to a later block gets the forecast of that block's output. While fewer values are cached the degree
    is lower; one alone is copied. All other answers of the base stay as they are, among them `Recompute(keep=False)`: what the
    base does not keep has no history, and is never reused either.

    When the base reuses is up to its own rule. By default (`judge: copy`) that sees what it always sees: how far a fresh
    value is from the last one. With `judge: forecast` it is shown the forecast for this step as the cached value, so
    that a threshold bounds the forecast's own error; the lag it sees stays the newest value's. A base that takes its
    distances from something else (the latent, a modulated input) is not changed by `judge`.

    Granularity: the base's, and so are parts and storage. Caches O + 1 values where the base caches one (or as many as the base
    asks for, if more). Host reads: the base's.

    Source: none; the arithmetic is TaylorSeer's (arXiv:2503.06923) with the decision left open.
    """

    paper = "our own; the forecast is TaylorSeer's, arXiv:2503.06923"
    signal = "the base policy's"
    deviations = "Not published; `order: 0` is the base policy itself."
    policy_fields = ("base",)
    never = {"base": "full"}

    base: Any = None
    """The policy that decides: an object, a name, or a mapping with `name` and options. None is `static`."""
    order: int = 1
    """O, degree of the polynomial, >= 0; each needs one more value in the cache. 0 copies, as the base does alone."""
    spacing: Spacing = "step"
    """Abscissa of the polynomial: `step` index, or the scheduler's `timestep`."""
    damping: float = 1.0
    """d, how much of the way from the copy to the forecast is gone: 0.0 to 1.0, the whole."""
    judge: Literal["copy", "forecast"] = "copy"
    """What the base compares a fresh value with: the last value (`copy`), or the `forecast` of it, whose error then decides.
    The latter costs one forecast per recomputed site, and most policies reuse more with it at the same threshold."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", as_policy("static" if self.base is None else self.base, "forecast: base"))
        check_forecast(self.order, self.spacing, "forecast", self.damping)
        if self.judge not in ("copy", "forecast"):
            raise ValueError(f"forecast: judge={self.judge!r} must be one of copy, forecast")

    # What the base says about itself holds.

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """The base's."""
        parts: frozenset[Part] = self.base.parts
        return parts

    @property
    def storage(self) -> Storage:  # type: ignore[override]
        """The base's."""
        storage: Storage = self.base.storage
        return storage

    @property
    def gate(self) -> Literal["pre", "post"]:  # type: ignore[override]
        """The base's."""
        gate: Literal["pre", "post"] = self.base.gate
        return gate

    @property
    def eliminate_dead(self) -> bool:  # type: ignore[override]
        """The base's."""
        return bool(self.base.eliminate_dead)

    @property
    def jumps(self) -> bool:
        """The base's."""
        return bool(self.base.jumps)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """The base's."""
        return bool(self.base.differentiable)

    @property
    def host_reads_per_step(self) -> int:  # type: ignore[override]
        """The base's."""
        return int(self.base.host_reads_per_step)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """As many values as the polynomial goes through, or the base wants."""
        return max(self.base.depth, self.order + 1)

    def depth_of(self, site: Site) -> int:
        """As many values as the polynomial goes through, or the base wants."""
        return max(self.base.depth_of(site), self.order + 1)

    def storage_of(self, site: Site) -> Storage:
        """The base's."""
        return self.base.storage_of(site)

    def gate_of(self, site: Site) -> Literal["pre", "post"]:
        """The base's."""
        return self.base.gate_of(site)

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """The base's."""
        return self.base.spans(num_blocks)

    def schedule(self, run: Run) -> list[bool] | None:
        """The base's."""
        return self.base.schedule(run)

    def num_host_reads(self, run: Run) -> int:
        """The base's."""
        return self.base.num_host_reads(run)

    def num_kept(self, run: Run) -> int:
        """The base's."""
        return self.base.num_kept(run)

    def calibration(self) -> Calibration | None:
        """The base's."""
        return self.base.calibration()

    def num_cached(self, run: Run) -> int:
        """The base's, told how many past values to keep: `order + 1` where it keeps one, if it computes so many."""
        return int(self.base.num_cached(self._deeper(run)))

    # What happens is the base's business, but for the value put in place.

    def start(self, run: Run) -> Any:
        """The base's state: there is none besides. A base with a plan is told how many past values to keep."""
        return self.base.start(self._deeper(run))

    def begin_forward(self, state: Any, call: Call) -> None:
        """The base's."""
        self.base.begin_forward(state, call)

    def decide(self, state: Any, call: Call, site: Site) -> Decision:
        """The base's decision, a reuse turned into a forecast."""
        decision: Decision = self.base.decide(state, call, site)
        if not isinstance(decision, Reuse):
            return decision
        return forecast(call.run, self.order, self.spacing, self.damping, decision.through)

    def observe(self, state: Any, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool | None:
        """Let the base compare with the last value or with its forecast."""
        if type(self.base).observe is ReusePolicy.observe:
            return None
        if cached is not None and self.judge == "forecast":
            times = times_of(call.run, self.spacing)
            value = extrapolate(call.history(site), call.step, self.order, times, self.damping)
            cached = Entry(cached.step, value)
        return self.base.observe(state, call, site, fresh, cached)

    def end_forward(self, state: Any, call: Call) -> None:
        """The base's."""
        self.base.end_forward(state, call)

    def _deeper(self, run: Run) -> Run:
        """The run as the base sees it: with as many past values per site as the polynomial goes through."""
        return replace(run, depth=max(run.depth, self.order + 1))
