"""TaylorSeer: what a module would give is forecast from what it gave at earlier steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from fsframework.core import POLICIES, RECOMPUTE, Call, Decision, Forecast, Part, ReusePolicy, ReuseWarning, Run, Site
from fsframework.core.forecast import Spacing, check_forecast, forecast
from fsframework.core.policy import Storage
from fsframework.core.schedule import check_every, is_reuse_step

PARTS: dict[str, frozenset[Part]] = {
    "submodules": frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP}),
    "block": frozenset({Part.BLOCK}),
    "trunk": frozenset({Part.TRUNK}),
    "model": frozenset({Part.MODEL}),
}


@dataclass
class TaylorSeerState:
    """What the run fixes: the length of the start, and the decision of every other step."""

    first_steps: int
    forecast: Forecast


@POLICIES.register("taylorseer")
@dataclass(frozen=True)
class TaylorSeer(ReusePolicy[TaylorSeerState]):
    """TaylorSeer (arXiv:2503.06923): one step in `interval` is computed, the others are forecast from its predecessors.

    After the first F = `first_steps` steps, which are computed, step s is computed iff (s - F) % N == N - 1, with N =
    `interval`. In the steps between, every module's output is the polynomial of degree O = `order` through its newest
    O + 1 computed outputs, evaluated at s (Newton's divided differences; for O = 1: y_0 + (s - s_0)(y_0 - y_1)/(s_0 - s_1)).
    While fewer outputs were computed the degree is lower: after F = 1 the first forecasts are copies.

    Granularity: attention, cross-attention and MLP of each block, before their gates (the paper), or with `part` something
    larger; `model` is the authors' "lite". Caches O + 1 values of each site: with sub-modules 2 to 3 (O + 1) hidden states
    per block, of the whole model O + 1 latents. The schedule is known before the run. Host reads: none.

    Source: the paper, github.com/Shenyi-Z/TaylorSeer and diffusers' `taylorseer_cache`. Published speed at N = 5, O = 1: 5.0
    times fewer FLOPs on HunyuanVideo.
    """

    paper = "TaylorSeer, arXiv:2503.06923"
    signal = "the step's number"
    deviations = (
        "Divided differences, right on uneven spacing: the released code divides differences of every order by one spacing, "
        "so from order 2 on its numbers differ wherever that changes. diffusers computes at the last of its first steps plus "
        "one, and differences in the model's dtype; here the phase is the authors' and sums are in float32."
    )
    published = {"": {"first_steps": 3}, "hunyuan-video": {"first_steps": 1}, "wan": {"first_steps": 1}}
    never = {"interval": 1}

    interval: int = 5
    """N, steps per computed one, >= 1. Higher forecasts more and further: faster, further from the reference. 1 never."""
    order: int = 1
    """O, degree of the polynomial, 0 (reuse) to 4 or so; each needs one more value in the cache. Higher follows curves, and
    magnifies noise: at distance x the weights grow with x^O."""
    first_steps: int | None = None
    """F, leading steps that are all computed, at least 1. None is as published: 1 for HunyuanVideo and Wan (first_enhance),
    else 3 (diffusers)."""
    part: str = "submodules"
    """What is forecast: `submodules`, or as one each `block`, the `trunk` of all blocks, the whole `model`."""
    spacing: Spacing = "step"
    """Abscissa of the polynomial: `step` index (the paper), or the scheduler's `timestep`."""
    storage: Storage | None = None  # type: ignore[assignment]
    """Of block, trunk and model: whether the `output` is forecast, or the `residual` (added to the live input). None is
    residual for blocks, where the output of the last one would be all that counts, else output. Not for sub-modules,
    whose output is their residual."""

    def __post_init__(self) -> None:
        check_every(self.interval, "interval", "taylorseer")
        check_forecast(self.order, self.spacing, "taylorseer")
        if self.first_steps is not None and self.first_steps < 1:
            raise ValueError(f"taylorseer: first_steps={self.first_steps} must be at least 1: a forecast needs a value")
        if self.part not in PARTS:
            raise ValueError(f"taylorseer: part={self.part!r} must be one of {', '.join(PARTS)}")
        if self.storage not in (None, "output", "residual"):
            raise ValueError(f"taylorseer: storage={self.storage!r} must be output or residual")
        if self.storage is not None and self.part == "submodules":
            raise ValueError("taylorseer: storage is for block, trunk and model; sub-modules always keep their output")

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """What `part` names."""
        return PARTS[self.part]

    @property
    def depth(self) -> int:  # type: ignore[override]
        """As many values as the polynomial goes through."""
        return self.order + 1

    def storage_of(self, site: Site) -> Storage:
        """`storage`, or what suits the part."""
        return self.storage or ("residual" if site.part is Part.BLOCK else "output")

    def start(self, run: Run) -> TaylorSeerState:
        """Check the start against the run; warn where it has too few values for the order."""
        first = self._first_steps(run)
        computed = self.schedule(run)
        last = max((s for s, full in enumerate(computed) if not full), default=0)
        most = sum(computed[:last])  # values that the last forecast can go through
        if 0 < most <= self.order:
            warnings.warn(
                f"taylorseer: order={self.order} needs {self.order + 1} computed steps, and the last forecast of this run "
                f"comes after {most}, so its order is {most - 1} at most. Lower policy.order or policy.interval.",
                ReuseWarning,
                stacklevel=2,
            )
        return TaylorSeerState(first, forecast(run, self.order, self.spacing))

    def _first_steps(self, run: Run) -> int:
        first: int = self.option("first_steps", run)
        if first > run.num_steps:
            raise ValueError(
                f"taylorseer: first_steps={first} is more than the run's {run.num_steps} steps, so nothing could be "
                f"forecast. Lower policy.first_steps or raise the number of steps."
            )
        return first

    def decide(self, state: TaylorSeerState, call: Call, site: Site) -> Decision:
        """Forecast, except in the first steps and in every N-th one after them."""
        return state.forecast if is_reuse_step(call.step.index, state.first_steps, self.interval) else RECOMPUTE

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are computed."""
        first = self._first_steps(run)
        return [not is_reuse_step(s, first, self.interval) for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """`order + 1` values per site, if so many are computed."""
        return len(run.sites) * min(sum(self.schedule(run)), max(self.depth, run.depth))
