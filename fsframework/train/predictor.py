"""The trainer `predictor`: a network that predicts how far a site will have moved from its cached value.

It learns from recordings of full compute. In each the distances of every site from its own values 1, 2, ... steps ago are
noted, so any pattern of reuse can be played on it: what the policy would know before a step, and the distance it would be
asked about. How good the predictions are is measured on captions that were not learned from, and again there with other
numbers of steps and other sizes of the video.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fsframework.core import Curve, Fit, Run
from fsframework.core.registry import nearest
from fsframework.core.schedule import warmup_steps
from fsframework.policies.predictor import FEATURES, MOST, SMALLEST, Network, Tracker
from fsframework.train.learned import TRAINERS, LearnedModule, Learning
from fsframework.train.predictor_recording import Recording, Recordings

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class PredictorOptions:
    """Options of the trainer `predictor`."""

    storage: str = "residual"
    """What the policy will store, `residual` or `output`: its distances are learned."""
    hidden: int = 40
    """Width of the two hidden layers, >= 1."""
    max_lag: int = 6
    """The longest lag that is recorded, in steps, >= 1; the policy reuses no older value, in proportion to its steps."""
    warmup: float = 0.15
    """Leading share of the steps in which everything is computed."""
    replays: int = 12
    """Patterns of reuse that are played on each recording, >= 1."""
    strides: list[int] = field(default_factory=lambda: [1, 2])
    """Patterns are played on every step of a recording, on every second, ...: other numbers of steps, fewer than recorded. Those
    that leave fewer than 4 steps or no lag are left out."""
    batch_size: int = 2048
    """Distances per iteration, >= 1."""
    other_steps: list[int] = field(default_factory=lambda: [20, 50])
    """Numbers of steps on which it is judged besides."""
    other_sizes: list[list[int]] = field(default_factory=list)
    """Sizes [height, width] in pixels on which it is judged besides."""
    judged_clips: int = 3
    """Validation clips for each of these, >= 1."""
    ignored: list[str] = field(default_factory=list)
    """Features that the network does not look at, by their names in `FEATURES`: to see what they are worth."""

    def __post_init__(self) -> None:
        if self.storage not in ("output", "residual"):
            raise ValueError(f"train.storage={self.storage!r} must be one of output, residual")
        for name in ("hidden", "max_lag", "replays", "batch_size", "judged_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"train.strides={self.strides} must be whole numbers of steps, at least 1")
        if any(len(size) != 2 for size in self.other_sizes):
            raise ValueError(f"train.other_sizes={self.other_sizes} must be a list of [height, width]")
        unknown = [name for name in self.ignored if name not in FEATURES]
        if unknown:
            raise ValueError(f"train.ignored: no feature {unknown[0]!r}. {nearest(unknown[0], list(FEATURES))}")


@dataclass(frozen=True)
class Examples:
    """What a policy would know before some steps, and what happened."""

    features: Tensor
    """[N, features] float32."""
    straight: Tensor
    """[N] float32: logarithm of the distance if the site went on at its last rate."""
    target: Tensor
    """[N] float32: logarithm of the distance."""


def play(recording: Recording, warmup: float, rng: random.Random) -> Examples:
    """Play one pattern of reuse on a recording: for every step after the warmup and every site the features that the policy
    would have, and the distance of that step from what would be cached.

    Of the pattern a share of the decisions, drawn from 0.1 to 0.9, is to reuse; half of the patterns decide for all sites
    at once. A value of the longest recorded lag is computed anew.
    """
    run, distances = recording.run, recording.distances
    num_steps, num_sites, max_lag = distances.shape
    first = warmup_steps(warmup, num_steps, 2, "train")
    tracker = Tracker(run, first)
    tracker.prompt_norm = recording.prompt_norm
    share, alike = rng.uniform(0.1, 0.9), rng.random() < 0.5
    everything = np.arange(num_sites)
    features, straight, target = [], [], []
    for step in range(num_steps):
        lags = tracker.lags(step)
        moved = distances[step, everything, np.minimum(lags, max_lag) - 1] if step else None
        reused = np.zeros(num_sites, dtype=bool)
        if step >= first:
            assert moved is not None
            features.append(tracker.features(step))
            straight.append(tracker.straight(step))
            target.append(np.log(np.maximum(moved, SMALLEST)))
            draws = [rng.random()] * num_sites if alike else [rng.random() for _ in range(num_sites)]
            reused = (np.array(draws) < share) & (lags < max_lag)
        computed = everything[~reused]
        if moved is not None:
            tracker.measured(step, computed, moved[computed])
        tracker.computed(step, computed)
    stacked = [np.concatenate(parts) for parts in (features, straight, target)]
    return Examples(*(torch.from_numpy(part).float() for part in stacked))


def thinned(recording: Recording, stride: int) -> Recording | None:
    """Every so many steps of a recording, as if it had no others; None where fewer than 4 steps or no lag remain."""
    if stride == 1:
        return recording
    run, distances = recording.run, recording.distances[::stride, :, stride - 1 :: stride]
    if distances.shape[0] < 4 or distances.shape[2] < 1:
        return None
    run = replace(run, num_steps=distances.shape[0], timesteps=run.timesteps[::stride])
    return replace(recording, run=run, distances=distances)


def examples_of(
    recordings: Sequence[Recording], warmup: float, replays: int, seed: int, strides: Sequence[int] = (1,)
) -> Examples:
    """Some patterns on each recording, as it is or with fewer steps; they follow from the seed. Distances that are not finite are
    left out."""
    rng = random.Random(seed)
    thinner = [thinned(recording, stride) for stride in strides for recording in recordings]
    played = [play(recording, warmup, rng) for recording in thinner if recording is not None for _ in range(replays)]
    found = [torch.cat([getattr(one, name) for one in played]) for name in ("features", "straight", "target")]
    good = torch.isfinite(found[0]).all(dim=1) & torch.isfinite(found[1]) & torch.isfinite(found[2])
    return Examples(*(part[good] for part in found))


LEAST = {"prompt embedding norm": 1e-5}
"""Standard deviation of a feature over the examples below which it has not varied; of others 0.01. Norms of embeddings
differ little, but exactly: by 0.0004 to 0.0009 on the tiny models."""


class ChangeNetwork(nn.Module):
    """Two hidden layers with tanh, as `Network` runs them on the host. Features are brought to mean 0 and deviation 1. The
    last layer starts at 0: each site is predicted to go on at its last rate."""

    mean: Tensor
    std: Tensor

    def __init__(self, hidden: int, features: Tensor, ignored: Sequence[str] = ()) -> None:
        super().__init__()
        n = len(FEATURES)
        self.layers = nn.ModuleList([nn.Linear(n, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)])
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("mean", features.mean(dim=0))
        # What never varied (the step size of an even schedule) was not learned from and must not be looked at elsewhere.
        std = features.std(dim=0)
        least = torch.tensor([LEAST.get(name, 1e-2) for name in FEATURES])
        unseen = (std < least) | torch.tensor([name in ignored for name in FEATURES])
        self.register_buffer("std", torch.where(unseen, torch.full_like(std, 1e6), std))

    def forward(self, features: Tensor) -> Tensor:
        """[N, features] to [N]: logarithm of how much more the distance is than at the last rate."""
        x = ((features - self.mean) / self.std).clamp(-MOST, MOST)
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        last: Tensor = self.layers[-1](x)
        return last[:, 0]

    def to_host(self) -> Network:
        """As the policy runs it."""
        layers = [(_array(one.weight), _array(one.bias)) for one in self.layers if isinstance(one, nn.Linear)]
        return Network(_array(self.mean), _array(self.std), layers)


def _array(tensor: Tensor) -> NDArray[np.float64]:
    out: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return out


@TRAINERS.register("predictor")
class PredictorModule(LearnedModule):
    """Least squares on the logarithm of the distance, Huber's beyond a factor of e.

    Recordings are kept below `recordings` in the output directory, so a run that was stopped goes on with those it has. Each
    process makes those that it does not find.
    """

    options_class = PredictorOptions
    policy = "predictor"

    def __init__(self, learning: Learning) -> None:
        options: PredictorOptions = learning.options
        if not learning.validation_clips:
            raise ValueError(
                "the predictor is judged on captions that are not learned from; set validation.every and its prompts"
            )
        if learning.sampling["num_steps"] < 4:
            raise ValueError("the predictor learns from runs of at least 4 steps; set sampling.num_steps higher")
        kept = Recordings(learning, options)
        recordings = kept.of(learning.clips, {}, "learning")
        self.examples = examples_of(recordings, options.warmup, options.replays, learning.config.seed, options.strides)
        torch.manual_seed(learning.config.seed)
        super().__init__(learning, ChangeNetwork(options.hidden, self.examples.features, options.ignored))
        self._run = recordings[0].run
        self._options = options
        self._judged = {"held-out prompts": kept.of(learning.validation_clips, {}, "validation")}
        few = learning.validation_clips[: options.judged_clips]
        for steps in options.other_steps:
            self._judged[f"{steps} steps"] = kept.of(few, {"num_steps": steps}, f"{steps} steps")
        for height, width in options.other_sizes:
            size = {"height": height, "width": width}
            self._judged[f"{height}x{width}"] = kept.of(few, size, f"{height}x{width}")

    @property
    def run(self) -> Run:
        """Of the recordings learned from."""
        return self._run

    def loss(self, step: int) -> Tensor:
        """Huber's loss of a batch of distances."""
        size = self._options.batch_size
        chosen = torch.randint(len(self.examples.target), (size,), generator=self.generator(step))[self.share(size)]
        batch = Examples(self.examples.features[chosen], self.examples.straight[chosen], self.examples.target[chosen])
        network = self.networks
        return nn.functional.smooth_l1_loss(network(batch.features) + batch.straight, batch.target)

    def validate(self) -> dict[str, float]:
        """Mean squared error of the logarithm on the held-out prompts, and R^2."""
        scores = self._score(self._judged["held-out prompts"])[0]
        return {"validation": scores["error"], "r2": scores["r2"]}

    def _score(self, recordings: Sequence[Recording]) -> tuple[dict[str, float], Tensor, Tensor]:
        examples = examples_of(recordings, self._options.warmup, max(1, self._options.replays // 4), 1)
        with torch.no_grad():
            predicted = self.networks(examples.features) + examples.straight
        return scores_of(predicted, examples), predicted.exp(), examples.target.exp()

    def result(self) -> Fit:
        """The weights; on each kind of recording how well they predict, beside the prediction without a network."""
        numbers: dict[str, float] = {"examples": float(len(self.examples.target))}
        numbers["weights"] = float(sum(p.numel() for p in self.networks.parameters()))
        reliability: list[Curve] = []
        clouds: list[Curve] = []
        for name, recordings in self._judged.items():
            scores, predicted, measured = self._score(recordings)
            numbers |= {f"{key}, {name}": value for key, value in scores.items()}
            reliability.append(Curve(name, *reliability_curve(predicted, measured), *RELIABILITY))
            every = max(1, len(predicted) // 1500)
            points = predicted[::every].tolist(), measured[::every].tolist()
            labels = (f"predicted distance, {name}", "measured distance")
            clouds += [Curve(name, *points, *labels, is_line=False), _diagonal(points[0], labels)]
        reliability.append(_diagonal([x for curve in reliability for x in curve.x], RELIABILITY))
        network = self.networks
        assert isinstance(network, ChangeNetwork)
        max_lag = min(self._options.max_lag, self._run.num_steps - 1) / self._run.num_steps
        values = {"storage": self._options.storage, "max_lag": max_lag, **network.to_host().to_values()}
        return Fit(values, numbers, [*reliability, *clouds])


RELIABILITY = ("mean predicted distance", "mean measured distance")
"""Labels of the panel."""


def _diagonal(values: Sequence[float], labels: tuple[str, str]) -> Curve:
    ends = [min(values), max(values)]
    return Curve("as measured", ends, ends, *labels)


def scores_of(predicted: Tensor, examples: Examples) -> dict[str, float]:
    """Of the logarithm of the distance: mean squared error, R^2, and that without a network; Spearman's correlation."""
    total = (examples.target - examples.target.mean()).square().sum()
    straight = (examples.straight - examples.target).square().sum()
    error = (predicted.detach() - examples.target).square()
    return {
        "error": float(error.mean()),
        "r2": float(1 - error.sum() / total),
        "r2 at the last rate": float(1 - straight / total),
        "rank correlation": spearman(predicted, examples.target),
    }


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two [N] tensors; of equal numbers the one that comes first counts as the smaller."""
    places = torch.stack([x.argsort(stable=True).argsort(stable=True).double() for x in (one, other)])
    return float(torch.corrcoef(places)[0, 1])


def reliability_curve(predicted: Tensor, measured: Tensor, bins: int = 12) -> tuple[list[float], list[float]]:
    """Mean predicted and mean measured distance in so many equally full bins of the predicted one."""
    order = predicted.argsort(stable=True)
    parts = [part for part in order.tensor_split(bins) if len(part)]
    return [float(predicted[part].mean()) for part in parts], [float(measured[part].mean()) for part in parts]
