"""AdaCache: one interval for all blocks, longer where one layer's attention changes slowly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Artifact,
    Calibration,
    Call,
    Curve,
    Decision,
    Entry,
    Fit,
    Kind,
    Part,
    ReusePolicy,
    Run,
    Site,
    State,
    Trace,
)
from fsframework.core.distance import relative_l1

Codebook = tuple[tuple[float, int], ...]
"""(bound, interval) by rising bound: the interval of the first bound above a change; above all bounds the last one."""

PUBLISHED: dict[str, tuple[tuple[int, Codebook], ...]] = {
    "fast": (
        (30, ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))),
        (100, ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))),
    ),
    "slow": ((30, ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.0, 1))),),
}
"""The codebooks released for Open-Sora 1.2, each with the number of steps it is for."""


@dataclass
class AdaCacheState:
    """One video and branch."""

    codebook: Codebook
    metric: frozenset[Site]
    """Where the change is measured."""
    next_step: int = 0
    """The next step that is computed."""
    computes: bool = True
    """Whether the forward in progress computes."""
    changes: list[Tensor] = field(default_factory=list)
    """Of this forward, one 0-d float32 tensor per metric site."""
    motion: dict[Site, Tensor] = field(default_factory=dict)
    """Of the last computed step, for MoReg."""


@POLICIES.register("adacache")
@dataclass(frozen=True)
class AdaCache(ReusePolicy[AdaCacheState]):
    """Every sub-module's contribution is reused for an interval read from how fast one attention changes.

    At a computed step s, with a the self-attention output of the metric layer and k the steps since the last computed one,

        c = mean|a(s) - cached a| / mean|cached a| / k        (averaged over the metric layers)

    is looked up in a codebook of (bound, interval) pairs, and the next computed step is s + interval; until then
    attention, cross-attention and MLP of *every* block are reused. Steps 0 and 1 and the last two are always computed. A
    change that is not finite gives interval 1.

    With `moreg` (motion regularisation; between 10 and 90 % of the steps) c is multiplied by g + |motion_gradient * (g - g')/k|,
    where g = (m / motion_scale)^motion_power, g' is that of the last computed step and m, averaged over `motion_strides` i,
    is |a[f+i] - a[f]| / (|a[f+i]| + |a[f]|) in L1 norms over all frames f: more motion, shorter intervals.

    Codebooks: a codebook depends on the number of steps. The released ones are for 30 (`speed` fast and slow) and for 100
    steps (fast). For T steps the nearer of them, T0, is carried over: bounds times T0/T, since c is a change per step, and
    intervals times sqrt(T/T0), rounded and at least 1. (This is ours. The two fast books agree with it: from 30 to 100
    steps it gives bounds .024 .048 .072 .096 .12 for the released .03 .05 .07 .09 .11, and intervals 11 9 7 5 4 2 for
    12 10 8 6 4 3.)

    Granularity: sub-modules, all alike. Caches every sub-module's output, after its gate by default: 3 hidden states per
    spatial block and 2 to 3 per temporal one (the release adds cross-attention and MLP up and keeps 2). Host reads: one per
    computed step, asynchronous and a step old. Source: arXiv:2411.02397 and its released code for Open-Sora 1.2.
    """

    paper = "AdaCache, arXiv:2411.02397, and its released code for Open-Sora 1.2"
    signal = "relative L1 change per step of one layer's self-attention output, known at the end of a computed step"
    deviations = (
        "k is the number of steps really passed, where the release uses the interval in force (they differ before the last "
        "two steps only). The change is read a step later. Carrying a codebook over to another number of steps, and "
        "calibration, are ours. motion_strides and motion_gradient are from memory: check them before quoting."
    )
    parts = frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP})
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"opensora": {"speed": "fast"}}
    example = {"codebook": ((0.5, 3), (2.0, 2), (4.0, 1)), "gate": "pre"}
    never = {"codebook": ((1.0, 1),)}
    host_reads_per_step: ClassVar[int] = 1

    speed: str | None = None
    """`fast` or `slow`: which released codebook. None is fast on Open-Sora, for which they were made; on any other model
    say which, or give a codebook or an artifact of your own."""
    codebook: tuple[tuple[float, int], ...] | None = None
    """(bound, interval) pairs by rising bound, for this number of steps, in place of a released one. An interval of k
    computes one step in k. Higher bounds and longer intervals reuse more: faster, further from the reference."""
    artifact: str | None = None
    """A file of `fsf calibrate adacache MODEL`: a codebook measured for the model."""
    metric_depths: tuple[float, ...] = (0.48,)
    """Where the change is measured: fractions of the depth, 0 <= d < 1, counted among the temporal blocks where there are
    some, else among all. 0.48 is the released block 13 of 28."""
    gate: str = "post"  # type: ignore[assignment]
    """`post` (released) keeps what a sub-module adds with the gate of the step it was computed at; `pre` keeps it before
    the gate and applies this step's. `post` needs a family that states its gates."""
    moreg: bool = False
    """Motion regularisation: shorter intervals for videos with much motion. Needs a family whose attention tells frames
    apart (spatial and temporal blocks)."""
    motion_strides: tuple[int, ...] = (1,)
    """Frames between which motion is measured, each >= 1. Those longer than the video are left out."""
    motion_scale: float = 0.385
    """The motion at which c is left as it is, > 0. Higher reuses more."""
    motion_power: float = 8.0
    """How sharply c depends on the motion, > 0."""
    motion_gradient: float = 10.0
    """Weight of the change in motion since the last computed step, >= 0. Higher reuses less."""
    target: float = 0.5
    """For calibration: the share of steps that are to be computed, 0 to 1. Higher reuses less."""

    def __post_init__(self) -> None:
        if self.speed is not None and self.speed not in PUBLISHED:
            raise ValueError(f"adacache: speed={self.speed!r} must be one of {', '.join(PUBLISHED)}")
        if sum(given is not None for given in (self.speed, self.codebook, self.artifact)) > 1:
            raise ValueError("adacache: speed, codebook and artifact each say what codebook to use; give one of them")
        if self.codebook is not None:
            _check(self.codebook)
        if not self.metric_depths or not all(0 <= depth < 1 for depth in self.metric_depths):
            raise ValueError(f"adacache: metric_depths={self.metric_depths} must be fractions of the depth, 0 <= d < 1")
        if self.gate not in ("pre", "post"):
            raise ValueError(f"adacache: gate={self.gate!r} must be one of pre, post")
        if not self.motion_strides or not all(stride >= 1 for stride in self.motion_strides):
            raise ValueError(f"adacache: motion_strides={self.motion_strides} must be numbers of frames, each >= 1")
        for name, value in (("motion_scale", self.motion_scale), ("motion_power", self.motion_power)):
            if not value > 0:
                raise ValueError(f"adacache: {name}={value} must be > 0")
        if not self.motion_gradient >= 0:
            raise ValueError(f"adacache: motion_gradient={self.motion_gradient} must be >= 0")
        if not 0 < self.target <= 1:
            raise ValueError(f"adacache: target={self.target} is a share of computed steps, 0 < target <= 1")

    def start(self, run: Run) -> AdaCacheState:
        """Look the codebook up and find the metric layers."""
        return AdaCacheState(self._codebook(run), self._metric_sites(run))

    def begin_forward(self, state: AdaCacheState, call: Call) -> None:
        """Read the change posted at the last computed step, if any: the only host read."""
        step, values, state.changes = call.step.index, call.meter.take(call.branch), []
        if values is not None:
            state.next_step += interval_of(state.codebook, values[0]) - 1
        state.computes = step >= state.next_step or step < FIRST or step >= call.step.num_steps - LAST

    def decide(self, state: AdaCacheState, call: Call, site: Site) -> Decision:
        """All sub-modules of a step alike."""
        del call, site
        return RECOMPUTE if state.computes else REUSE

    def observe(self, state: AdaCacheState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure the change of the metric layers."""
        if site not in state.metric:
            return
        lag = 1 if cached is None else call.step.index - cached.step
        factor = self._motion_factor(state, call, site, fresh, lag) if self.moreg else None
        if cached is None:
            return
        change = relative_l1(fresh[0], cached.value[0]) / lag
        if factor is not None:
            call.log(motion=factor)
            change = change * factor
        # What the change must stay below for anything to be reused: the last bound with an interval above 1.
        bounds = [bound for bound, interval in state.codebook if interval > 1]
        call.log(distance=change, threshold=bounds[-1] if bounds else 0.0)
        state.changes.append(change)

    def end_forward(self, state: AdaCacheState, call: Call) -> None:
        """After a computed step: by default the next one is computed; post what may put that off."""
        if not state.computes:
            return
        state.next_step = call.step.index + 1
        if state.changes and FIRST <= state.next_step < call.step.num_steps - LAST:
            call.meter.post(call.branch, call.meter.mean_over_ranks(torch.stack(state.changes).mean()[None]))

    def calibration(self) -> Calibration:
        """Measures c with everything computed, and makes a codebook with which a `target` share of steps is computed.

        Ours, not the paper's: the intervals are K, K-1, ..., 1 and the bounds are evenly spaced quantiles of the measured
        changes up to some share q; K is the smallest and q the value with which walking through the measured changes
        computes the share of steps nearest to `target`. The real share differs somewhat, as changes measured across an
        interval are a little smaller per step than those measured from step to step.
        """
        return _Quantiles(self)

    def _codebook(self, run: Run) -> Codebook:
        if self.codebook is not None:
            return _sorted(self.codebook)
        if self.artifact is not None:
            artifact = Artifact.load(self.artifact, "adacache")
            artifact.check(run, interpolates=("num_steps", "latent_shape"))
            measured = artifact.values
            for name, own in (("metric_depths", list(self.metric_depths)), ("gate", self.gate), ("moreg", self.moreg)):
                if measured[name] != own:
                    raise ValueError(
                        f"adacache: the codebook in {self.artifact} was measured with {name}={measured[name]}, but "
                        f"{name}={own} here, which gives other changes. Use the same, or calibrate again."
                    )
            return carried_over(_sorted(measured["codebook"]), measured["num_steps"], run.num_steps)
        books = PUBLISHED[self.option("speed", run)]
        # Nearer as a factor: 30 and 100 steps meet at sqrt(30 * 100) = 54.8.
        num_steps, book = min(books, key=lambda known: abs(math.log(known[0] / run.num_steps)))
        return carried_over(book, num_steps, run.num_steps)

    def _metric_sites(self, run: Run) -> frozenset[Site]:
        attention = run.sites_of(Part.ATTENTION)
        layers = [site for site in attention if site.kind is Kind.TEMPORAL] or attention
        if not layers:
            raise ValueError(
                "adacache measures the change of a block's self-attention, and this model's blocks have none"
            )
        return frozenset(layers[int(depth * len(layers))] for depth in self.metric_depths)

    def _motion_factor(self, state: AdaCacheState, call: Call, site: Site, fresh: State, lag: int) -> Tensor | None:
        """What c is multiplied by; None outside the middle of the run, and where there is one frame only."""
        value_BFNC = frames_apart(call, site, fresh)
        strides = [stride for stride in self.motion_strides if stride < value_BFNC.shape[1]]
        if not strides:
            return None
        motion = torch.stack([_motion(value_BFNC, stride) for stride in strides]).mean()
        level = (motion / self.motion_scale) ** self.motion_power
        before = state.motion.get(site)
        state.motion[site] = level
        if not 0.1 <= call.step.index / call.step.num_steps < 0.9:
            return None
        return level if before is None else level + (self.motion_gradient * (level - before) / lag).abs()


FIRST, LAST = 2, 2
"""Steps at the beginning and at the end that are always computed. (At step 0 nothing is cached, at step 1 nothing measured.)"""


def interval_of(codebook: Codebook, change: float) -> int:
    """The interval of the first bound above `change`; 1 for a change that is not finite."""
    if not math.isfinite(change):
        return 1
    return next((interval for bound, interval in codebook if change < bound), codebook[-1][1])


def carried_over(codebook: Codebook, own_steps: int, num_steps: int) -> Codebook:
    """A codebook for `own_steps` steps as one for `num_steps`; the same if they are equal. See `AdaCache`."""
    if own_steps == num_steps:
        return codebook
    ratio = num_steps / own_steps
    return tuple((bound / ratio, max(1, int(interval * math.sqrt(ratio) + 0.5))) for bound, interval in codebook)


def frames_apart(call: Call, site: Site, value: State) -> Tensor:
    """The video stream of an attention's output as [B, F, N, C].

    Raises:
        ValueError: the attention runs over all frames at once, so nothing says which token is of which frame.
    """
    out = call.canonical(site, value)[0]
    if out.ndim == 3 and site.kind in (Kind.SPATIAL, Kind.TEMPORAL) and out.shape[0] > call.num_samples:
        # The block is not folded, but its attention is: [(B F), N, C] or [(B N), F, C].
        out = out.unflatten(0, (call.num_samples, -1))
        out = out.transpose(1, 2) if site.kind is Kind.TEMPORAL else out
    if out.ndim != 4:
        raise ValueError(
            f"adacache: moreg needs to tell frames apart, and the output of {site} {tuple(out.shape)} has no axis of "
            f"frames. It works with models of spatial and temporal blocks (Latte, Open-Sora); set moreg=False here."
        )
    return out


def _motion(value_BFNC: Tensor, stride: int) -> Tensor:
    later, earlier = value_BFNC[:, stride:].float(), value_BFNC[:, :-stride].float()
    difference, size = (later - earlier).abs().sum(), later.abs().sum() + earlier.abs().sum()
    return torch.where(difference == 0, torch.zeros_like(difference), difference / size)


def _check(codebook: Sequence[Sequence[float]]) -> None:
    if not codebook or any(len(pair) != 2 for pair in codebook):
        raise ValueError(f"adacache: codebook={codebook} must be (bound, interval) pairs, such as [[0.1, 3], [1.0, 1]]")
    if any(b <= a for (a, _), (b, _) in pairwise(codebook)):
        raise ValueError(f"adacache: codebook={codebook} must have rising bounds")
    if any(interval < 1 or interval != int(interval) for _, interval in codebook):
        raise ValueError(f"adacache: codebook={codebook} must have whole intervals of at least 1 step")


def _sorted(codebook: Sequence[Sequence[float]]) -> Codebook:
    return tuple((float(bound), int(interval)) for bound, interval in codebook)


class _Quantiles(Calibration):
    def __init__(self, policy: AdaCache) -> None:
        self._policy = policy

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        del run
        return {"full": replace(self._policy, speed=None, artifact=None, codebook=((1.0, 1),))}

    def check(self, run: Run, num_clips: int) -> None:
        """A codebook is of the steps between those that are always computed."""
        if run.num_steps <= FIRST + LAST:
            raise ValueError(
                f"adacache: the first {FIRST} and the last {LAST} steps are always computed, so a run of {run.num_steps} "
                f"step{'' if run.num_steps == 1 else 's'} leaves none to reuse; set sampling.num_steps to {FIRST + LAST + 1} "
                f"or more"
            )

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """c of each step from the second on, averaged over metric layers and branches."""
        del rollout, latents, reference
        found: dict[int, list[float]] = {}
        for row, change in trace.logged("distance").items():
            found.setdefault(trace.step[row], []).append(change)
        return {
            "num_steps": len(trace.timesteps),
            "changes": [sum(found[step]) / len(found[step]) for step in sorted(found)],
        }

    fit_options = ("target",)

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The codebook of `AdaCache.calibration`.

        Raises:
            ValueError: a change is not finite, or none was measured.
        """
        del run
        curves = [record["changes"] for record in records["full"]]
        num_steps = records["full"][0]["num_steps"]
        pooled = sorted(change for curve in curves for change in curve if math.isfinite(change))
        num_changes = sum(map(len, curves))
        if len(pooled) < num_changes or not pooled:
            raise ValueError(
                f"adacache: {num_changes - len(pooled)} of {num_changes} changes are not finite numbers: the attention that is "
                f"measured gave NaN or inf, or was zero. Measure another layer (policy.metric_depths), or look at a video of "
                f"full compute before calibrating."
            )
        codebook, share = _codebook_for(self._policy.target, pooled, curves, num_steps)
        mean = [sum(curve[i] for curve in curves) / len(curves) for i in range(len(curves[0]))]
        steps = [float(step) for step in range(1, num_steps)]
        values = {
            "codebook": [list(pair) for pair in codebook], "num_steps": num_steps, "target": self._policy.target,
            "metric_depths": list(self._policy.metric_depths), "gate": self._policy.gate, "moreg": self._policy.moreg,
        }  # fmt: skip
        bounds = [
            Curve(f"interval {interval} below", [steps[0], steps[-1]], [bound, bound])
            for bound, interval in codebook
            if math.isfinite(bound)
        ]
        return Fit(
            values,
            {"expected_computed_share": share, "smallest_change": pooled[0], "largest_change": pooled[-1]},
            [Curve("mean change", steps, mean, "step", "relative L1 change per step"), *bounds],
        )


def _codebook_for(
    target: float, pooled: Sequence[float], curves: Sequence[Sequence[float]], num_steps: int
) -> tuple[Codebook, float]:
    """The codebook, and the mean share of computed steps when walking through the measured curves with it."""

    def book(longest: int, share: float) -> Codebook:
        bounds: list[tuple[float, int]] = []
        for i in range(1, longest):
            bound = pooled[min(int(share * i / (longest - 1) * len(pooled)), len(pooled) - 1)]
            # Just above the quantile, as a change equal to a bound is above it.
            bound = math.nextafter(bound, math.inf) if share > 0 else 0.0
            if bounds and bound <= bounds[-1][0]:
                continue
            bounds.append((bound, longest - i + 1))
        return (*bounds, (2 * max(pooled[-1], bounds[-1][0] if bounds else 0.0) + 1.0, 1))

    def share_of(codebook: Codebook) -> float:
        return sum(_computed(codebook, curve, num_steps) for curve in curves) / len(curves) / num_steps

    best: tuple[float, Codebook, float] | None = None
    for longest in range(2, max(3, num_steps // 2)):
        for i in range(101):
            codebook = book(longest, i / 100)
            share = share_of(codebook)
            if best is None or abs(share - target) < best[0] - 1e-12:
                best = abs(share - target), codebook, share
        if share <= target:  # at q = 1; longer intervals are not needed
            break
    assert best is not None
    return best[1], best[2]


def _computed(codebook: Codebook, changes: Sequence[float], num_steps: int) -> int:
    """How many steps are computed if step s, where computed, shows changes[s - 1]."""
    count, next_step = 0, 0
    for step in range(num_steps):
        if step >= next_step or step < FIRST or step >= num_steps - LAST:
            count += 1
            next_step = step + (interval_of(codebook, changes[step - 1]) if step >= 1 else 1)
    return count
