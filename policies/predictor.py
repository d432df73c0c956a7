"""Predictor: a small network says how far a site will have moved from its cached value; it is reused while that is little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Artifact,
    Call,
    Decision,
    Entry,
    Kind,
    ReusePolicy,
    Run,
    Site,
    State,
)
from fsframework.core.policy import Storage
from fsframework.core.prompt import NEUTRAL
from fsframework.core.schedule import count_of, warmup_steps

FEATURES = (
    "span / last span", "span", "last rate / rate before", "last rate / warmup rate", "last rate / mean of all sites",
    "mean of all sites / their warmup", "warmup rate", "warmup rate / mean of all sites", "timestep", "share of the run",
    "step size / mean step size", "depth", "is spatial", "is temporal", "distance at last rate / threshold",
    "threshold / mean of all sites", "prompt embedding norm",
)  # fmt: skip
"""What the network sees of a site before a step; ratios, spans, rates and norms as natural logarithms. See `Tracker`."""
FORMAT = 2
"""Of an artifact's values: 1 had neither thresholds nor the prompt among the features."""
SMALLEST = 1e-6
"""Distances are taken to be at least this, for their logarithm."""
TAIL = 3
"""Warmup steps that make a site's threshold, as Foresight's."""
MOST = 4.0
"""Features are cut at this many standard deviations of what was trained on, so that nothing is extrapolated far."""


@dataclass(frozen=True)
class Network:
    """Multilayer perceptron with tanh; weights as in torch, [out, in]. It runs on the host, on a few numbers per site."""

    mean: np.ndarray
    """[features], taken off first."""
    std: np.ndarray
    """[features], divided by."""
    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    """(weight, bias) of each layer; the last gives one number."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[N, features] to [N]."""
        x = np.clip((features - self.mean) / self.std, -MOST, MOST)
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return (x @ weight.T + bias)[:, 0]

    @staticmethod
    def zero() -> Network:
        """Says 0 whatever it sees."""
        n = len(FEATURES)
        return Network(np.zeros(n), np.ones(n), [(np.zeros((1, n)), np.zeros(1))])

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Network:
        """From an artifact's values, where rows of numbers are texts.

        Raises:
            ValueError: it was trained on other features than this version has, or is of another format.
        """
        found = values.get("format", 1), tuple(values["features"])
        if found != (FORMAT, FEATURES):
            missing = [name for name in FEATURES if name not in found[1]]
            raise ValueError(
                f"the predictor's weights are of format {found[0]}, this fsframework reads format {FORMAT}; they were trained "
                f"without the features {', '.join(missing) or 'in this order'}. Train again with `fsf train CONFIG.yaml` "
                f"(train: predictor)."
            )
        layers = [(np.array([_row(r) for r in one["weight"]]), _row(one["bias"])) for one in values["layers"]]
        return Network(_row(values["mean"]), _row(values["std"]), layers)

    def to_values(self) -> dict[str, Any]:
        """For an artifact: a text per row, nine digits per number."""
        layers = [{"weight": [_text(row) for row in weight], "bias": _text(bias)} for weight, bias in self.layers]
        return {
            "format": FORMAT,
            "features": list(FEATURES),
            "mean": _text(self.mean),
            "std": _text(self.std),
            "layers": layers,
        }


class Tracker:
    """What is known of all sites on the host: when each was computed, and how fast it moved when that was measured.

    Time is counted in *spans*: |t(c) - t(s)| / max |t| for the timesteps of steps c and s. A *rate* is a distance divided by
    the span over which it was measured. So neither the number of steps nor a site's usual size of change is in them.

    A site's *threshold* is Foresight's lambda (arXiv:2506.00329, with gamma = 1), of this policy's distances in place of mean
    squares: over the last three warmup steps s < W the sum of 10^(s - W + 1) d(s, s - 1). It is known from step W on, the first
    at which there is anything to decide.
    """

    def __init__(self, run: Run, warmup: int) -> None:
        n = len(run.sites)
        largest = max(abs(t) for t in run.timesteps) or 1.0
        self.times = np.array([t / largest for t in run.timesteps])
        self.warmup = warmup
        self.cached = np.full(n, -1)
        """Step of each site's cached value; -1 where there is none."""
        self.rate, self.before, self.span = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
        """Logarithms of the last rate, of the one before, and of the span over which the last was measured."""
        self._sum, self._count = np.zeros(n), np.zeros(n)
        """Of the logarithms of the rates in the warmup, whose mean is the site's usual rate."""
        self._threshold = np.zeros(n)
        """Of each site; 0 before anything was measured in the warmup's tail."""
        self.prompt_norm: float | None = None
        """Root mean square of the prompt's embedding, `NEUTRAL` for models that take none; None until it is known."""
        blocks = max(site.stop for site in run.sites)
        kinds = [site.kind for site in run.sites]
        self._fixed = np.array(
            [
                [site.start / blocks, float(kind is Kind.SPATIAL), float(kind is Kind.TEMPORAL)]
                for site, kind in zip(run.sites, kinds)
            ]
        )
        self._mean_step = max(abs(self.times[0] - self.times[-1]) / max(len(self.times) - 1, 1), SMALLEST)

    def log_span(self, earlier: np.ndarray | int, later: int) -> np.ndarray:
        """Logarithm of the span between steps."""
        return np.log(np.maximum(np.abs(self.times[earlier] - self.times[later]), SMALLEST))

    def measured(self, step: int, sites: np.ndarray, distances: np.ndarray) -> None:
        """Distances [len(sites)] of what was computed at `step` from what was cached until then. Before `computed`."""
        span = self.log_span(self.cached[sites], step)
        rate = np.log(np.maximum(distances, SMALLEST)) - span
        first = np.isnan(self.rate[sites])
        self.before[sites] = np.where(first, rate, self.rate[sites])
        self.rate[sites], self.span[sites] = rate, span
        if step < self.warmup:
            self._sum[sites] += rate
            self._count[sites] += 1
            if step >= self.warmup - TAIL:
                self._threshold[sites] += 10.0 ** (step - self.warmup + 1) * distances

    def computed(self, step: int, sites: np.ndarray) -> None:
        """These sites' values of `step` are cached now."""
        self.cached[sites] = step

    def lags(self, step: int) -> np.ndarray:
        """[sites]: how old each cached value would be."""
        return step - self.cached

    def straight(self, step: int) -> np.ndarray:
        """[sites]: logarithm of the distance if every site goes on moving at its last rate."""
        return self.rate + self.log_span(self.cached, step)

    def features(self, step: int) -> np.ndarray:
        """[sites, features]: `FEATURES`, for the distance of `step` from what is cached."""
        span = self.log_span(self.cached, step)
        usual = np.divide(self._sum, self._count, out=np.full_like(self._sum, np.nan), where=self._count > 0)
        usual = np.where(np.isnan(usual), self.rate, usual)
        straight = self.straight(step)
        # Before there is a threshold the distance is neither above nor below it.
        sums = np.where(np.isfinite(self._threshold), np.maximum(self._threshold, SMALLEST), np.nan)
        threshold = np.where(self._threshold == 0, straight, np.log(sums))
        prompt = math.log(max(NEUTRAL if self.prompt_norm is None else self.prompt_norm, SMALLEST))
        size = self.log_span(max(step - 1, 0), step) - math.log(self._mean_step)
        ones = np.ones_like(span)
        columns = [
            span - self.span, span, self.rate - self.before, self.rate - usual, self.rate - self.rate.mean(),
            ones * (self.rate - usual).mean(), usual, usual - usual.mean(), ones * self.times[step],
            ones * (step / len(self.times)), ones * size,
        ]  # fmt: skip
        more = [straight - threshold, threshold - threshold.mean(), ones * prompt]
        return np.column_stack([*columns, self._fixed, *more])


@dataclass
class PredictorState:
    """One video and branch."""

    tracker: Tracker
    network: Network
    longest: int
    """The longest lag in steps."""
    column: dict[Site, int]
    fresh: dict[int, Tensor] = field(default_factory=dict)
    """Distances measured in the forward in progress, 0-d, by column."""
    done: list[int] = field(default_factory=list)
    """Columns computed in the forward in progress."""
    posted: tuple[int, np.ndarray] | None = None
    """Step and columns of the distances that are on their way to the host; behind them the prompt's norm is."""
    awaited: tuple[int, np.ndarray] | None = None
    """Step and columns of what was computed a step ago."""
    prompt_norm: Tensor | None = None
    """Of the prompt's embedding, 0-d, worked out once."""
    predicted: np.ndarray | None = None
    """[sites]: distances predicted for this step; None in the warmup."""


@POLICIES.register("predictor")
@dataclass(frozen=True)
class Predictor(ReusePolicy[PredictorState]):
    """A site is reused while the distance that a small network predicts for it is under a budget.

    The distance of step s from the cached step c, of the stored value v (a residual or an output) and the output y, is

        d(s, c) = mean|v(s) - v(c)| / mean|y(s)|

    Before a step the host knows for every site when it was computed and the last distances measured. If a site went on
    moving at its last rate, d would be that rate times the span from c to s in timesteps; the network predicts the
    logarithm of how much more or less it is, from `FEATURES`: ratios of rates and spans, relative to the site's own warmup
    and to all other sites, to the threshold that Foresight would set, the timestep, its step size, the site's depth and
    kind, and the norm of the prompt's embedding. None of them grows with the number of steps or tokens. From the warmup on a
    site is reused iff the prediction is below `budget` and its lag is at most `max_lag`.

    Without an artifact the network's weights are all zero: each site is predicted to go on at its last rate. `fsf train`
    trains the weights on recordings of full compute (`fsframework/train/predictor.py`).

    Granularity: block. Caches every block's residual (or output): 1 hidden state per block. Host reads: one per forward,
    asynchronous and a step old; the prompt's norm comes with it. Our own.
    """

    paper = "our own"
    signal = "a learned prediction from each block's last changes, known at the end of the step before"
    deviations = "None: there is no paper."
    never = {"budget": 0.0}
    host_reads_per_step: ClassVar[int] = 1

    budget: float = 0.05
    """The largest predicted distance, as a share of the mean size of a block's output, >= 0. Higher reuses more: faster,
    further from the reference."""
    artifact: str | None = None
    """A file that `fsf train` wrote for the trainer `predictor`; None predicts that every site goes on at its last rate."""
    warmup: float | int = 0.15
    """Leading steps always recomputed: a fraction of the steps (float) or a number of steps (int), at least 2."""
    max_lag: float | int = 0.2
    """The oldest value that is put in place: a fraction of the steps (float) or a number of steps (int), at least 1. An
    artifact bounds it further, to what it was trained on."""
    storage: Storage = "residual"
    """`residual` adds a block's old change to the live input, `output` puts its old output in place."""

    def __post_init__(self) -> None:
        if not self.budget >= 0:
            raise ValueError(f"predictor: budget={self.budget} must be >= 0")
        if not self.max_lag > 0 or (isinstance(self.max_lag, float) and self.max_lag > 1):
            raise ValueError(
                f"predictor: max_lag={self.max_lag} must be a fraction of the steps, above 0 and up to 1, or a number of steps"
            )
        if self.storage not in ("output", "residual"):
            raise ValueError(f"predictor: storage={self.storage!r} must be one of output, residual")

    def start(self, run: Run) -> PredictorState:
        """A cold state.

        Raises:
            ValueError: a warmup of fewer than 2 steps, or an artifact that does not fit.
        """
        warmup = warmup_steps(self.warmup, run.num_steps, 2, "predictor")
        longest = max(1, count_of(self.max_lag, run.num_steps))
        network = Network.zero()
        if self.artifact is not None:
            artifact = Artifact.load(self.artifact, "predictor")
            artifact.check(run, interpolates=("num_steps", "latent_shape"))
            values = artifact.values
            if values["storage"] != self.storage:
                raise ValueError(
                    f"predictor: {self.artifact} was trained for storage={values['storage']}; set policy.storage to that"
                )
            network = Network.from_values(values)
            longest = min(longest, max(1, count_of(float(values["max_lag"]), run.num_steps)))
        columns = {site: i for i, site in enumerate(run.sites)}
        return PredictorState(Tracker(run, warmup), network, longest, columns)

    def begin_forward(self, state: PredictorState, call: Call) -> None:
        """Take in what was measured a step ago (the only host read), and predict."""
        step, tracker = call.step.index, state.tracker
        if state.posted is not None and (values := call.meter.take(call.branch)) is not None:
            *distances, tracker.prompt_norm = values
            tracker.measured(*state.posted, np.array(distances))
        if state.awaited is not None:
            tracker.computed(*state.awaited)
        state.posted = state.awaited = state.predicted = None
        state.fresh, state.done = {}, []
        if state.prompt_norm is None:
            state.prompt_norm = call.probe("prompt_norm")
        if step >= tracker.warmup:
            state.predicted = predict(tracker, state.network, step)

    def decide(self, state: PredictorState, call: Call, site: Site) -> Decision:
        """Reuse iff the predicted distance is under the budget; a prediction that is not finite is not."""
        if state.predicted is None:
            return RECOMPUTE
        column = state.column[site]
        predicted = float(state.predicted[column])
        call.log(threshold=self.budget, predicted=predicted)
        lag = call.step.index - int(state.tracker.cached[column])
        return REUSE if predicted < self.budget and lag <= state.longest else RECOMPUTE

    def observe(self, state: PredictorState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Measure how far the site was from what was cached."""
        column = state.column[site]
        state.done.append(column)
        if cached is not None:
            distance = relative_change(fresh, call.input(), cached, self.storage)
            call.log(distance=distance)
            state.fresh[column] = distance

    def end_forward(self, state: PredictorState, call: Call) -> None:
        """Start copying what was measured to the host, if there is a step that can use it; after the first forward, in which
        there is nothing to compare with, the prompt's norm alone."""
        step = call.step.index
        state.awaited = step, np.array(state.done, dtype=int)
        if (state.fresh or state.tracker.prompt_norm is None) and step + 1 < call.step.num_steps:
            assert state.prompt_norm is not None
            values = call.meter.mean_over_ranks(torch.stack([*state.fresh.values(), state.prompt_norm]))
            call.meter.post(call.branch, values)
            state.posted = step, np.array(list(state.fresh), dtype=int)


def relative_change(fresh: State, entered: State, cached: Entry, storage: Storage) -> Tensor:
    """d(s, c) of `Predictor`, a 0-d float32 tensor on the device, of the video stream; 0 where nothing moved."""
    output = fresh[0].float()
    now = output - entered[0].float() if storage == "residual" else output
    moved = (now - cached.value[0].float()).abs_().mean()
    return torch.where(moved == 0, torch.zeros_like(moved), moved / output.abs().mean())


def predict(tracker: Tracker, network: Network, step: int) -> np.ndarray:
    """[sites]: the distance of each site at `step` from what is cached."""
    with np.errstate(invalid="ignore", over="ignore"):  # where a distance was not finite, nor is its prediction
        predicted: np.ndarray = np.exp(tracker.straight(step) + network(tracker.features(step)))
    return predicted


def _row(text: str) -> np.ndarray:
    return np.array([float(number) for number in text.split()])


def _text(row: np.ndarray) -> str:
    return " ".join(f"{number:.9g}" for number in row)
