"""SmoothCache: a schedule per kind of sub-module, from errors measured once for the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    Artifact,
    Calibration,
    Call,
    Curve,
    Decision,
    Entry,
    Fit,
    Part,
    ReusePolicy,
    Run,
    Site,
    State,
    Trace,
)
from fsframework.core.calibration import needs_calibration
from fsframework.core.distance import relative_l1
from fsframework.core.schedule import most_kept, plan

Errors = Sequence[Sequence[float]]
"""errors[k - 1][i]: the error of putting the value of step i in place at step i + k. Row k has num_steps - k numbers."""


@dataclass
class SmoothCacheState:
    """One video and branch: for each site, the decision of each step."""

    decisions: dict[Site, list[Decision]]


@POLICIES.register("smoothcache")
@dataclass(frozen=True)
class SmoothCache(ReusePolicy[SmoothCacheState]):
    """Each kind of sub-module is reused for as many steps as its measured error stays within `alpha`.

    Calibration measures for every kind of sub-module (self-attention, cross-attention, MLP; spatial and temporal blocks
    apart), step i and lag k = 1..`max_lag`

        e_k(i) = mean over blocks of mean|y(i+k) - y(i)| / mean|y(i)|

    The schedule of a kind is a greedy scan: compute at i = 0; take the largest k with e_k(i) <= alpha, reuse steps
    i+1..i+k, go on at i+k+1; where there is no such k, i+1 is computed. The last step is always computed. All blocks
    follow the schedule of their kind. The artifact holds the errors, so one serves every alpha.

    For another number of steps, or other timesteps, the errors are interpolated, with a warning: steps of the run are
    placed among the measured ones by their timestep, and e is taken linearly between measured steps and lags (0 at lag 0).
    A lag beyond the longest measured one is not reused.

    Granularity: sub-modules of a kind. Caches every sub-module's output, before its gate. Host reads: none. Calibration
    keeps the last `max_lag` outputs of every sub-module. Source: arXiv:2411.10510 and its released code.
    """

    paper = "SmoothCache, arXiv:2411.10510, and its released code"
    signal = "the step's number, and errors measured offline"
    deviations = (
        "Spatial and temporal blocks have schedules of their own. The error is relative to the older value; whether the "
        "release divides by the older or the newer is unverified. Interpolation to other steps is ours."
    )
    parts = frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP})
    example = {"steps": {"attention": [0, 3, 6], "cross_attention": [0, 5], "mlp": [0, 2, 4, 6]}}
    never = {"steps": {}}

    alpha: float = 0.18
    """The largest error that is put up with, >= 0; published on DiT-XL: 0.08 and 0.18 for 50 and 70 steps, 0.35 for 30.
    Higher reuses more: faster, further from the reference."""
    artifact: str | None = None
    """A file of `fsf calibrate smoothcache MODEL`."""
    steps: dict[str, list[int]] | None = None
    """Schedules by hand in place of an artifact: which steps compute, by kind of sub-module (`attention`,
    `cross_attention`, `mlp`, or `spatial.attention` and so on, which goes before). The first and the last step compute
    always, a kind that is not named in every step. Steps beyond the run's last are left out."""
    max_lag: int = 3
    """For calibration: the longest lag that is measured, >= 1 (the release: 3). It bounds how many steps in a row are reused."""

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"smoothcache: alpha={self.alpha} must be >= 0; published are 0.08 to 0.35")
        if self.max_lag < 1:
            raise ValueError(f"smoothcache: max_lag={self.max_lag} must be at least 1 step")
        if self.artifact is not None and self.steps is not None:
            raise ValueError("smoothcache: artifact and steps each say when to compute; give one of them")
        for kind, steps in (self.steps or {}).items():
            part = kind.rpartition(".")[2]
            if part not in (p.value for p in Part if p.inside_block):
                raise ValueError(
                    f"smoothcache: steps names {kind!r}, which is no kind of sub-module: attention, cross_attention, mlp, "
                    f"or one of them after the kind of block, as in spatial.mlp"
                )
            if any(step < 0 for step in steps):
                raise ValueError(f"smoothcache: steps of {kind!r} must be numbers of steps from 0; got {list(steps)}")

    def start(self, run: Run) -> SmoothCacheState:
        """Make the schedule of each kind; say so where the errors are of other steps.

        Raises:
            ValueError: neither an artifact nor steps, or an artifact of another model.
        """
        if self.artifact is not None:
            Artifact.load(self.artifact, "smoothcache").check(run, interpolates=("num_steps", "latent_shape"))
        plans = {kind: plan(computes, run.depth) for kind, computes in self._schedules(run).items()}
        return SmoothCacheState({site: plans[kind_of(site)] for site in run.sites})

    def decide(self, state: SmoothCacheState, call: Call, site: Site) -> Decision:
        """By the step's number."""
        return state.decisions[site][call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Steps in which every kind computes."""
        return [all(steps) for steps in zip(*self._schedules(run).values())]

    def num_cached(self, run: Run) -> int:
        """One value of every sub-module that is ever reused."""
        schedules = self._schedules(run)
        return sum(most_kept(schedules[kind_of(site)], run.depth) for site in run.sites)

    def calibration(self) -> Calibration:
        """Measures the errors at every lag with everything computed."""
        return _ErrorCurves(self.max_lag, self.alpha)

    def _schedules(self, run: Run) -> dict[str, list[bool]]:
        kinds = dict.fromkeys(kind_of(site) for site in run.sites)
        if self.steps is not None:
            return {kind: _by_hand(self.steps, kind, run.num_steps) for kind in kinds}
        if self.artifact is None:
            raise needs_calibration(
                "smoothcache", run, "the errors of reuse", "schedules by hand, as in steps={attention: [0, 2, 4]}"
            )
        artifact = Artifact.load(self.artifact, "smoothcache")
        measured, timesteps = artifact.values["errors"], artifact.values["timesteps"]
        missing = [kind for kind in kinds if kind not in measured]
        if missing:
            raise ValueError(
                f"smoothcache: {self.artifact} has errors of {', '.join(measured)}, and none of this model's "
                f"{', '.join(missing)}. Calibrate again for it."
            )
        out = {}
        for kind in kinds:
            errors = measured[kind]
            if not _same(timesteps, run.timesteps):
                errors = interpolated(errors, timesteps, run.timesteps)
            out[kind] = greedy(errors, self.alpha, run.num_steps)
        return out


def kind_of(site: Site) -> str:
    """`temporal.mlp`: what shares a schedule."""
    return f"{site.kind.value}.{site.part.value}"


def greedy(errors: Errors, alpha: float, num_steps: int) -> list[bool]:
    """Which steps compute: from each computed step, the longest lag whose error is at most alpha is reused."""
    computes = [False] * num_steps
    step = 0
    while step < num_steps:
        computes[step] = True
        # An error that is not finite is never within alpha; the last step is left to be computed.
        lags = [k for k in range(1, len(errors) + 1) if step + k < num_steps - 1 and errors[k - 1][step] <= alpha]
        step += max(lags, default=0) + 1
    return computes


def _same(measured: Sequence[float], timesteps: Sequence[float]) -> bool:
    """Whether two runs have the same timesteps, to a part in ten thousand as `Artifact.check` compares them."""
    scale = max(1.0, *(abs(t) for t in measured))
    return len(measured) == len(timesteps) and all(abs(a - b) <= 1e-4 * scale for a, b in zip(measured, timesteps))


def interpolated(errors: Errors, measured: Sequence[float], timesteps: Sequence[float]) -> list[list[float]]:
    """Errors measured on some timesteps, for the steps of another run. Lags that were not measured have infinite error."""
    places = [_place(measured, t) for t in timesteps]
    out: list[list[float]] = []
    # Finer steps may cover the longest measured lag with more of their own.
    longest = min(len(timesteps) - 1, math.ceil(len(errors) * len(timesteps) / len(measured)) + 1)
    for k in range(1, longest + 1):
        out.append([_error(errors, a, b - a, len(measured)) for a, b in zip(places, places[k:])])
    return out


def _place(measured: Sequence[float], timestep: float) -> float:
    """Where a timestep lies among the measured ones, which rise or fall, as a fractional step. Beyond their ends steps go
    on with the spacing there."""
    place = 0.0
    for i, (a, b) in enumerate(pairwise(measured)):
        if a == b:
            continue
        place = i + (timestep - a) / (b - a)
        if place <= i + 1:
            break
    return place


def _error(errors: Errors, step: float, lag: float, num_steps: int) -> float:
    """Linear between measured steps and lags."""
    low = int(lag)
    if lag > len(errors):
        return math.inf

    def at(k: int) -> float:
        if k == 0:
            return 0.0
        row = errors[k - 1]
        here = min(max(step, 0.0), num_steps - 1 - k)  # the steps from which that lag was measured
        i = min(int(here), len(row) - 1)
        j = min(i + 1, len(row) - 1)
        return row[i] + (here - i) * (row[j] - row[i])

    return at(low) if lag == low else at(low) + (lag - low) * (at(low + 1) - at(low))


def _by_hand(steps: Mapping[str, Sequence[int]], kind: str, num_steps: int) -> list[bool]:
    given = steps.get(kind, steps.get(kind.rpartition(".")[2]))
    if given is None:
        return [True] * num_steps
    return [step in (0, num_steps - 1) or step in given for step in range(num_steps)]


@dataclass(frozen=True)
class ErrorRecorder(ReusePolicy[None]):
    """Computes everything and logs `lag_1` ... `lag_k`: how far each sub-module's output is from those 1 to k steps ago."""

    depth: int = 3
    """How many past outputs of each sub-module are kept and compared with."""
    parts: ClassVar[frozenset[Part]] = SmoothCache.parts

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        """Everything is computed."""
        return RECOMPUTE

    def observe(self, state: None, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Compare with every kept output; the device does it and nobody waits."""
        for entry in call.history(site):
            lag = call.step.index - entry.step
            call.log(**{f"lag_{lag}": relative_l1(fresh[0], entry.value[0])})


class _ErrorCurves(Calibration):
    fit_options = ("alpha",)

    def __init__(self, max_lag: int, alpha: float) -> None:
        self._max_lag = max_lag
        self._alpha = alpha

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        return {"full": ErrorRecorder(min(self._max_lag, max(1, run.num_steps - 1)))}

    def check(self, run: Run, num_clips: int) -> None:
        """An error is of two steps."""
        if run.num_steps < 2:
            raise ValueError("smoothcache: a run of one step has no errors to measure; set sampling.num_steps higher")

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """Errors of each kind, lag and step, averaged over blocks and branches."""
        del rollout, latents, reference
        num_steps = len(trace.timesteps)
        errors: dict[str, list[list[float]]] = {}
        for k in range(1, min(self._max_lag, num_steps - 1) + 1):
            found: dict[tuple[str, int], list[float]] = {}
            for row, error in trace.logged(f"lag_{k}").items():
                found.setdefault((kind_of(trace.site[row]), trace.step[row] - k), []).append(error)
            for kind in dict.fromkeys(kind for kind, _ in found):
                rows = [found[kind, i] for i in range(num_steps - k)]
                errors.setdefault(kind, []).append([sum(row) / len(row) for row in rows])
        return {"errors": errors, "timesteps": [float(t) for t in trace.timesteps]}

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The mean errors. An infinite one (a value that was 0 and is not any more) is kept: that step is never reused.

        Raises:
            ValueError: a kind of sub-module gave NaN.
        """
        del run
        all_errors = [record["errors"] for record in records["full"]]
        timesteps = records["full"][0]["timesteps"]
        errors: dict[str, list[list[float]]] = {}
        for kind, rows in all_errors[0].items():
            errors[kind] = [
                [sum(one[kind][k][i] for one in all_errors) / len(all_errors) for i in range(len(row))]
                for k, row in enumerate(rows)
            ]
            found = [(k, i) for k, row in enumerate(errors[kind]) for i, error in enumerate(row) if math.isnan(error)]
            if found:
                lag, step = found[0]
                raise ValueError(
                    f"smoothcache: the error of {kind} between steps {step} and {step + lag + 1} is not a number, so the model "
                    f"gave NaN or inf there. Look at a video of full compute before calibrating."
                )
        shares = {
            f"computed_share_of_{kind}": sum(greedy(rows, self._alpha, len(timesteps))) / len(timesteps)
            for kind, rows in errors.items()
        }
        curves: list[Curve] = []
        for kind, rows in errors.items():  # a panel each
            labels = ("step", f"relative L1 error of {kind}")
            lags = [
                Curve(f"reused {k + 1} step{'s' if k else ''} later", [float(i) for i in range(len(row))], row, *labels)
                for k, row in enumerate(rows)
            ]
            ends = [0.0, float(len(rows[0]) - 1)]
            curves += [*lags, Curve(f"alpha = {self._alpha:g}", ends, [self._alpha, self._alpha], *labels)]
        return Fit({"errors": errors, "timesteps": timesteps}, shares, curves)
