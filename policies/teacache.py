"""TeaCache: the residual of all blocks is reused while a polynomial of the input's change adds up to little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fsframework.core import (
    DISCARD,
    POLICIES,
    RECOMPUTE,
    REUSE,
    Artifact,
    Branch,
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
)
from fsframework.core.calibration import needs_calibration
from fsframework.core.distance import relative_l1

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core import Trace


@dataclass
class TeaCacheState:
    """One video and branch: host values only, the tensors are in the cache."""

    probe: str
    coefficients: Sequence[float]
    threshold: float
    accumulated: float = 0.0


@POLICIES.register("teacache")
@dataclass(frozen=True)
class TeaCache(ReusePolicy[TeaCacheState]):
    """Reuses the trunk's residual while the estimated change of the output, added up since the last computed step, is small.

    With m(s) a signal known before the first block, and P a polynomial fitted once per model,

        p = P(mean|m(s) - m(s-1)| / mean|m(s-1)|);  d <- d + p
        reuse at s  iff  d < threshold and p > -threshold, else compute and d = 0

    m is the first block's input after its norm and modulation (`modulated`) or the timestep embedding (`temb`), and is
    renewed at every step, reused or not. The first and the last step are always computed. A reuse adds the last computed
    trunk output - trunk input to the live input, all streams.

    Granularity: trunk. Caches its residual and keeps the signal: 2 hidden states with `modulated`, 1 and a vector with
    `temb`. Host reads: one per forward but the first and last, before the first block. Source: TeaCache
    (arXiv:2411.19108, github.com/ali-vilab/TeaCache). P comes from `coefficients`, from an `artifact` of `fsf calibrate
    teacache`, or as published for the checkpoint.
    """

    paper = "TeaCache, arXiv:2411.19108"
    signal = (
        "relative L1 change of the first block's modulated input (or the timestep embedding), before the first block"
    )
    deviations = (
        "A negative P lowers d, as in the released code, but an estimate of -threshold or less recomputes: the polynomial is "
        "then outside the range it was fitted on, and the released code may reuse to the end of the video. A d that is not "
        "finite recomputes and starts anew. One signal serves the batch, both guidance halves included. The timestep "
        "embedding could be worked out for all steps before the run, without a read; here it is read like the other signal, "
        "one value per forward. CogVideoX 1.5 has the coefficients of 5b, as the released code chooses them; other "
        "checkpoints of a family (HunyuanVideo from an image) have none. Wan's variant with its first five steps computed "
        "and other coefficients is not here. All streams' residuals are reused, text's included."
    )
    published = {
        "opensora-1.2": {
            "probe": "modulated", "threshold": 0.1,
            "coefficients": [2.17546007e2, -1.18329252e2, 2.68662585e1, -4.59364272e-2, 4.84426240e-2],
        },
        "opensora-1.2-720p": {
            "probe": "modulated", "threshold": 0.1,
            "coefficients": [2.17546007e2, -1.18329252e2, 2.68662585e1, -4.59364272e-2, 4.84426240e-2],
        },
        "latte-1": {
            "probe": "modulated", "threshold": 0.1,
            "coefficients": [-2.46434137e3, 3.08044764e2, 8.07447667e1, -4.11385132, 1.11001402e-1],
        },
        "cogvideox-2b": {
            "probe": "temb", "threshold": 0.1,
            "coefficients": [-3.10658903e1, 2.54732368e1, -5.92380459, 1.75769064, -3.61568434e-3],
        },
        "cogvideox-5b": {
            "probe": "temb", "threshold": 0.1,
            "coefficients": [-1.53880483e3, 8.43202495e2, -1.34363087e2, 7.97131516, -5.23162339e-2],
        },
        "cogvideox1.5-5b": {
            "probe": "temb", "threshold": 0.1,
            "coefficients": [-1.53880483e3, 8.43202495e2, -1.34363087e2, 7.97131516, -5.23162339e-2],
        },
        "hunyuan-video": {
            "probe": "modulated", "threshold": 0.1,
            "coefficients": [7.33226126e2, -4.01131952e2, 6.75869174e1, -3.14987800, 9.61237896e-2],
        },
        "wan2.1-t2v-1.3b": {
            "probe": "temb", "threshold": 0.05,
            "coefficients": [2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1],
        },
        "wan2.1-t2v-14b": {
            "probe": "temb", "threshold": 0.14,
            "coefficients": [-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404],
        },
        "flux-dev": {
            "probe": "modulated", "threshold": 0.25,
            "coefficients": [4.98651651e2, -2.83781631e2, 5.58554382e1, -3.82021401, 2.64230861e-1],
        },
    }  # fmt: skip
    example = {"probe": "latent", "coefficients": [1.0, 0.0], "threshold": 0.5}
    never = {"threshold": 0.0}
    parts = frozenset({Part.TRUNK})
    storage = "residual"
    host_reads_per_step: ClassVar[int] = 1

    threshold: float | None = None
    """On the accumulated d, >= 0. Higher reuses more: faster, further from the reference. None is the slowest published:
    0.1 for Open-Sora, Latte and CogVideoX (fast: 0.2) and HunyuanVideo (fast: 0.15), 0.05 for Wan 2.1 1.3B (to 0.08), 0.14
    for 14B (to 0.2), 0.25 for FLUX (to 0.8)."""
    coefficients: list[float] | None = None
    """P, high order to low: [a, b] is a x + b. None: those of `artifact`, or as published for the checkpoint."""
    probe: str | None = None
    """The signal, a tensor the model's adapter provides: `modulated`, `temb`, or `latent`. None: that of `artifact`, or as
    published, else `modulated`."""
    artifact: str | None = None
    """Path of what `fsf calibrate teacache` wrote, instead of `coefficients`."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(
                f"teacache: threshold={self.threshold} must be a finite number >= 0; published are 0.05 to 0.8"
            )
        if self.coefficients is not None and self.artifact is not None:
            raise ValueError("teacache: give either coefficients or an artifact, not both")
        if self.coefficients is not None and (
            not self.coefficients or not all(math.isfinite(c) for c in self.coefficients)
        ):
            raise ValueError(f"teacache: coefficients={self.coefficients} must be finite numbers, high order to low")

    def start(self, run: Run) -> TeaCacheState:
        """A cold state, with the polynomial for this model."""
        probe, coefficients = self.probe_for(run), self.coefficients
        if self.artifact is not None:
            artifact = Artifact.load(self.artifact, "teacache")
            artifact.check(run, interpolates=("num_steps", "latent_shape"))
            measured = artifact.values.get("probe", probe)
            if measured != probe:
                raise ValueError(
                    f"teacache: {self.artifact} is of the signal {measured!r}, not of probe={probe!r}. Leave policy.probe "
                    f"out, or calibrate again."
                )
            coefficients = artifact.values.get("coefficients")
            if not coefficients:
                raise ValueError(f"{self.artifact} holds no 'coefficients'; calibrate again")
        elif coefficients is None:
            try:
                coefficients = self.option("coefficients", run)
            except ValueError:
                known = ", ".join(self.published)
                raise needs_calibration(
                    "teacache",
                    run,
                    "the coefficients of its polynomial",
                    f"coefficients=[...]; published are those of {known}",
                ) from None
            # A polynomial says nothing of another signal than its own.
            if self.probe not in (None, self._published_probe(run)):
                raise ValueError(
                    f"teacache: the published coefficients are not of the signal {self.probe!r}. Leave policy.probe out, "
                    f"or give coefficients or an artifact for it."
                )
        return TeaCacheState(probe, coefficients, self.option("threshold", run))

    def decide(self, state: TeaCacheState, call: Call, site: Site) -> Decision:
        """Renew the signal, add its change, compare."""
        signal, before = _signal(call, state.probe), call.kept("signal")
        call.keep("signal", (signal,))
        if before is None or call.step.index in (0, call.step.num_steps - 1):
            state.accumulated = 0.0
            return RECOMPUTE
        (change,) = call.meter.fetch(call.meter.mean_over_ranks(relative_l1(signal, before[0])))
        estimate = polynomial(state.coefficients, change)
        state.accumulated += estimate
        call.log(distance=state.accumulated, threshold=state.threshold, signal_change=change)
        if may_reuse(estimate, state.accumulated, state.threshold):
            return REUSE
        state.accumulated = 0.0
        return RECOMPUTE

    def option(self, name: str, run: Run) -> Any:
        """What was published is one checkpoint's own: its polynomial says nothing of others of the family."""
        return super().option(name, replace(run, facts={k: v for k, v in run.facts.items() if k != "family"}))

    def num_kept(self, run: Run) -> int:
        """The last step's signal."""
        return 1

    def calibration(self) -> TeaCacheCalibration:
        """The polynomial, from full runs."""
        return TeaCacheCalibration(self)

    def probe_for(self, run: Run) -> str:
        """The signal's name for a run."""
        if self.probe is not None:
            return self.probe
        if self.artifact is not None:
            measured = Artifact.load(self.artifact, "teacache").values.get("probe", DEFAULT_PROBE)
            return str(measured)
        return self._published_probe(run) or DEFAULT_PROBE

    def _published_probe(self, run: Run) -> str | None:
        known = self.published.get(str(run.facts.get("checkpoint")))
        return None if known is None else str(known["probe"])


DEFAULT_PROBE = "modulated"
DEGREE = 4
FEWEST_POINTS = 2 * (DEGREE + 1)
"""A polynomial through as many points as it has coefficients fits any of them: R^2 is 1 and says nothing."""


def _signal(call: Call, probe: str) -> Tensor:
    """The signal, to be kept: the latent is copied, since the caller owns it and may write to it."""
    signal = call.probe(probe)
    return signal.clone() if probe == "latent" else signal


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """The polynomial's value; `coefficients` high order to low."""
    value = 0.0
    for c in coefficients:
        value = value * x + c
    return value


def may_reuse(estimate: float, accumulated: float, threshold: float) -> bool:
    """Whether a step whose estimate has just been added may be reused; never on values that are not finite."""
    return estimate > -threshold and -math.inf < accumulated < threshold


def threshold_for_half(coefficients: Sequence[float], rows: Sequence[Sequence[float]]) -> float | None:
    """The smallest threshold of two digits, 0.01 to 9.9, with which at most half the steps are computed in runs with these
    changes of the signal; None if there is none."""
    num_steps = sum(len(changes) + 1 for changes in rows)
    for exponent in (-3, -2, -1):
        for digits in range(10, 100):
            threshold = float(f"{digits}e{exponent}")
            if 2 * sum(num_recomputed(coefficients, threshold, changes) for changes in rows) <= num_steps:
                return threshold
    return None


def num_recomputed(coefficients: Sequence[float], threshold: float, changes: Sequence[float]) -> int:
    """Steps that are computed in a run with these changes of the signal (of step 1, 2, ...): the last one always."""
    accumulated, count = 0.0, 1
    for i, change in enumerate(changes):
        estimate = polynomial(coefficients, change)
        accumulated += estimate
        if i == len(changes) - 1 or not may_reuse(estimate, accumulated, threshold):
            count, accumulated = count + 1, 0.0
    return count


@dataclass(frozen=True)
class ChangeRecorder(ReusePolicy[None]):
    """Recomputes everything and logs, per step, how the signal and the model's prediction changed (relative L1)."""

    parts = frozenset({Part.MODEL, Part.TRUNK})

    probe: str = DEFAULT_PROBE

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        """Always recompute; at the trunk log `signal_change`."""
        if site.part is Part.MODEL:
            return RECOMPUTE
        signal, before = _signal(call, self.probe), call.kept("signal")
        call.keep("signal", (signal,))
        if before is not None:
            call.log(signal_change=relative_l1(signal, before[0]))
        return DISCARD

    def observe(self, state: None, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """At the model log `output_change`."""
        if site.part is Part.MODEL and cached is not None:
            call.log(output_change=relative_l1(fresh[0], cached.value[0]))

    def schedule(self, run: Run) -> list[bool]:
        """Every step is computed."""
        return [True] * run.num_steps


@dataclass
class TeaCacheCalibration(Calibration):
    """Full runs; P is the polynomial of degree 4 that fits the change of the model's prediction to that of the signal."""

    policy: TeaCache
    fit_options = ("threshold",)

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        """One: everything computed, changes logged."""
        return {"full": ChangeRecorder(self.policy.probe_for(run))}

    def check(self, run: Run, num_clips: int) -> None:
        """A polynomial needs more points than it has coefficients to say anything: twice as many."""
        branches = 1 if run.branch == Branch.JOINT else 2
        points = num_clips * (run.num_steps - 1) * branches
        if points < FEWEST_POINTS:
            raise ValueError(
                f"teacache: {num_clips} clip{'' if num_clips == 1 else 's'} of {run.num_steps} "
                f"step{'' if run.num_steps == 1 else 's'} give{'s' if num_clips == 1 else ''} {points} points, and the "
                f"polynomial has {DEGREE + 1} coefficients; it is fitted to at least {FEWEST_POINTS}. Set prompts.limit or "
                f"sampling.num_steps higher."
            )

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """By branch, the changes of `signal` and `output` at steps 1, 2, ..."""
        out: dict[str, dict[str, list[float]]] = {"signal": {}, "output": {}}
        for name, changes in out.items():
            for row, value in sorted(trace.logged(f"{name}_change").items()):
                changes.setdefault(trace.branch[row], []).append(value)
        return out

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """Least squares over all videos, branches and steps. `range` are the smallest and largest change of the signal that
        was measured; beyond them the polynomial is a guess.

        Raises:
            ValueError: fewer than `FEWEST_POINTS` different changes of the signal, or they are too close together to tell
                the powers apart; a prediction whose change is always the same; values that are not finite.
        """
        import numpy as np

        rows = [(video["signal"][b], video["output"][b]) for video in records["full"] for b in video["signal"]]
        x = np.array([value for signal, _ in rows for value in signal])
        y = np.array([value for _, output in rows for value in output])
        if x.shape != y.shape:
            raise ValueError(
                "teacache: the changes of signal and prediction do not pair in the records; calibrate again"
            )
        for what, changes in (("signal", x), ("prediction", y)):
            if num_bad := int((~np.isfinite(changes)).sum()):
                raise ValueError(
                    f"teacache: {num_bad} of {len(changes)} changes of the {what} are not finite numbers, so the model gave NaN "
                    f"or inf or was zero somewhere. Look at a video of full compute before calibrating."
                )
        num_different = len(np.unique(x.round(12)))
        if num_different < FEWEST_POINTS:
            raise ValueError(
                f"teacache: the signal changed by {num_different} different amounts in {len(x)} points; a polynomial of degree "
                f"{DEGREE} is fitted to at least {FEWEST_POINTS}. Generate with more steps, or more clips where the signal is "
                f"not of the timestep alone, which is the same in every video."
            )
        if not np.ptp(y):
            raise ValueError(
                f"teacache: the prediction changed by {y[0]:g} at every step, so there is nothing to learn from the signal. "
                f"Look at a video of full compute before calibrating."
            )
        coefficients, _, rank, _, _ = np.polyfit(x, y, DEGREE, full=True)
        if rank <= DEGREE:
            raise ValueError(
                f"teacache: all changes of the signal are {x.min():.6g} to {x.max():.6g}, too close together for a polynomial "
                f"of degree {DEGREE}. Use another probe, or a sampler whose steps differ more."
            )
        found = [float(c) for c in coefficients]
        fitted = np.polyval(found, x)
        left, total = float(((y - fitted) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
        numbers = {
            "R^2": 1 - left / total,
            "residual standard deviation": math.sqrt(left / len(y)),
            "points": float(len(y)),
        }
        proposed: dict[str, float] = {}
        try:
            threshold = self.policy.option("threshold", run)
        except ValueError:
            threshold = threshold_for_half(found, [signal for signal, _ in rows])  # none was given or published
            proposed = {} if threshold is None else {"threshold": threshold}
        if threshold is not None:
            counts = [num_recomputed(found, threshold, signal) / (len(signal) + 1) for signal, _ in rows]
            numbers[f"share of recomputed steps at threshold {threshold:g}"] = sum(counts) / len(counts)
        line = np.linspace(x.min(), x.max(), 100)
        labels = ("relative L1 change of the signal", "relative L1 change of the output")
        curves = [
            Curve("steps of all videos", x.tolist(), y.tolist(), *labels, is_line=False),
            Curve("polynomial", line.tolist(), np.polyval(found, line).tolist(), *labels),
        ]
        values = {
            "coefficients": found,
            "probe": self.policy.probe_for(run),
            "range": [float(x.min()), float(x.max())],
        }
        return Fit(values, numbers, curves, proposed)
