"""LeMiCa: which steps are computed is a shortest path over errors of the finished video, measured once for the model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
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
    Part,
    ReusePolicy,
    ReuseWarning,
    Run,
    Site,
    Trace,
)
from fsframework.core.calibration import needs_calibration
from fsframework.core.policy import Storage
from fsframework.core.schedule import most_kept, plan

Edges = tuple[tuple[int, int, float], ...]
"""(i, j, weight): i and j are computed and the steps between them reuse i; the weight is what that does to the video."""


@POLICIES.register("lemica")
@dataclass(frozen=True)
class LeMiCa(ReusePolicy[list[Decision]]):
    """The trunk's residual is reused in steps chosen so that the worst error of a reused stretch is as small as a budget allows.

    An edge (i, j) computes steps i and j and reuses i in between. Calibration generates a video with that one stretch
    reused and everything else computed, for every edge with 2 <= j - i <= `max_skip`, and takes

        w(i, j) = mean|x_0 of that video - x_0 of full compute|        (final latents; mean over prompts and seeds)

    Edges to the next step have weight 0. A schedule with `budget` computed steps is a path of that many nodes from the
    first step to the last; of all such paths the one is taken whose edge weights, sorted from the largest, come first in
    lexicographic order: the smallest largest error, among those the smallest second largest, and so on. It is found
    exactly. The artifact holds the weights, so one serves every budget.

    Granularity: step. Caches the trunk's residual: 1 hidden state. Host reads: none. Calibration: about
    (max_skip - 1) * num_steps videos per prompt and seed. Source: arXiv:2511.00090.
    """

    paper = "LeMiCa, arXiv:2511.00090"
    signal = "the step's number, and errors of the finished video measured offline"
    deviations = (
        "From summaries and the README: the code that builds the graph is not released, nor are the paper's schedules "
        "reproduced. The bounds on the first and the last steps are ours."
    )
    parts = frozenset({Part.TRUNK})
    example = {"steps": [0, 2, 3, 6]}
    never = {"steps": list(range(1000))}

    budget: float | int = 0.5
    """Steps that are computed: a fraction of the steps (float) or a number of steps (int). Lower reuses more: faster,
    further from the reference."""
    artifact: str | None = None
    """A file of `fsf calibrate lemica MODEL`, measured with the run's number of steps."""
    steps: list[int] | None = None
    """The computed steps by hand in place of an artifact and a budget; the first and the last always are, and steps beyond
    the run's last are left out."""
    first: int = 1
    """So many leading steps are always computed, >= 1."""
    last: int = 1
    """So many steps at the end are always computed, >= 1."""
    max_skip: int = 5
    """For calibration: the longest edge j - i that is measured, >= 2; it reuses max_skip - 1 steps in a row."""
    storage: Storage = "residual"
    """`residual` adds the trunk's old change to the live input (the paper); `output` puts its old output in place."""

    def __post_init__(self) -> None:
        if isinstance(self.budget, float) and not 0.0 < self.budget <= 1.0:
            raise ValueError(
                f"lemica: budget={self.budget} as a float is a fraction of the steps, above 0 and up to 1; for a number of "
                f"steps write an integer (budget={self.budget:.0f})"
            )
        for name, value in (("budget", self.budget), ("first", self.first), ("last", self.last)):
            if isinstance(value, int) and value < 1:
                raise ValueError(f"lemica: {name}={value} must be at least 1 step")
        if self.max_skip < 2:
            raise ValueError(f"lemica: max_skip={self.max_skip} must be at least 2, or nothing is reused")
        if self.artifact is not None and self.steps is not None:
            raise ValueError("lemica: artifact and steps each say when to compute; give one of them")
        if self.steps is not None and any(step < 0 for step in self.steps):
            raise ValueError(f"lemica: steps must be numbers of steps from 0; got {list(self.steps)}")
        if self.storage not in ("output", "residual"):
            raise ValueError(f"lemica: storage={self.storage!r} must be one of output, residual")

    def start(self, run: Run) -> list[Decision]:
        """What to do at each step.

        Raises:
            ValueError: neither an artifact nor steps, an artifact of another model or number of steps, or a budget that no
                path has.
        """
        computed = self.schedule(run)
        beyond = [step for step in self.steps or () if step >= run.num_steps]
        if beyond and not all(computed):
            warnings.warn(
                f"lemica: steps={list(self.steps or ())}: the run's steps are 0 to {run.num_steps - 1}, so {beyond} are "
                f"left out",
                ReuseWarning,
                stacklevel=2,
            )
        return plan(computed, run.depth)

    def decide(self, state: list[Decision], call: Call, site: Site) -> Decision:
        """By the step's number."""
        del site
        return state[call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are computed."""
        num_steps = run.num_steps
        fixed = [step < self.first or step >= num_steps - self.last for step in range(num_steps)]
        if self.steps is not None:
            chosen = set(self.steps)
        elif self.artifact is None:
            raise needs_calibration(
                "lemica", run, "the errors of reuse", "the computed steps by hand, as in steps=[0, 1, 3, 5]"
            )
        else:
            artifact = Artifact.load(self.artifact, "lemica")
            artifact.check(run, interpolates=("latent_shape",))
            edges = tuple((int(i), int(j), float(w)) for i, j, w in artifact.values["edges"])
            chosen = set(best_path(edges, num_steps, self._full_steps(num_steps), self.first, self.last))
        return [fixed[step] or step in chosen for step in range(num_steps)]

    def num_cached(self, run: Run) -> int:
        """One (of a forecast, several), unless nothing is reused."""
        return most_kept(self.schedule(run), run.depth)

    def calibration(self) -> Calibration:
        """Measures the weight of every edge with a video of its own."""
        return _EdgeErrors(self)

    def _full_steps(self, num_steps: int) -> int:
        if isinstance(self.budget, float):
            return max(1, int(self.budget * num_steps + 0.5))
        return self.budget


def edges_between(num_steps: int, max_skip: int, first: int, last: int) -> list[tuple[int, int]]:
    """Every edge that reuses something and leaves the first and the last steps to be computed."""
    return [(i, j) for i in range(first - 1, num_steps) for j in range(i + 2, min(i + max_skip, num_steps - last) + 1)]


@lru_cache(maxsize=64)
def best_path(edges: Edges, num_steps: int, budget: int, first: int = 1, last: int = 1) -> tuple[int, ...]:
    """The path of `budget` steps from 0 to the last whose descending edge weights are lexicographically smallest.

    Steps 0..first-1 and the last `last` are on it. Edges to the next step weigh 0; those whose weight is not finite are
    left out. For two multisets of equal size the order stays when the same weight is added to both, so the best path to a
    step with a number of nodes extends the best path to the step before: dynamic programming is exact.

    Raises:
        ValueError: no path has that many steps.
    """
    into: dict[int, list[tuple[int, float]]] = {j: [(j - 1, 0.0)] for j in range(1, num_steps)}
    for i, j, weight in edges:
        if math.isfinite(weight) and j - i >= 2 and i >= first - 1 and j <= num_steps - last:
            into[j].append((i, weight))
    # best[j][n]: (descending weights, path) of the best path of n nodes from 0 to j.
    best: list[dict[int, tuple[tuple[float, ...], tuple[int, ...]]]] = [{1: ((), (0,))}]
    for j in range(1, num_steps):
        here: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for i, weight in into[j]:
            for count, (weights, path) in best[i].items():
                if count >= budget:
                    continue
                longer = tuple(sorted((*weights, weight), reverse=True))
                if count + 1 not in here or longer < here[count + 1][0]:
                    here[count + 1] = longer, (*path, j)
        best.append(here)
    if budget not in best[-1]:
        least = _fewest(into, num_steps)
        raise ValueError(
            f"lemica: no schedule computes {budget} of {num_steps} steps; with the edges that were measured and first={first}, "
            f"last={last} it is {least} to {num_steps}. Change policy.budget, or calibrate with a longer max_skip."
        )
    return best[-1][budget][1]


def _fewest(into: Mapping[int, Sequence[tuple[int, float]]], num_steps: int) -> int:
    fewest = [1]
    for j in range(1, num_steps):
        fewest.append(1 + min(fewest[i] for i, _ in into[j]))
    return fewest[-1]


class _EdgeErrors(Calibration):
    fit_options = ("budget",)

    def __init__(self, policy: LeMiCa) -> None:
        self._policy = policy

    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        policy, n = self._policy, run.num_steps
        videos = {"full": list(range(n))}
        for i, j in edges_between(n, policy.max_skip, policy.first, policy.last):
            videos[f"{i}-{j}"] = [*range(i + 1), *range(j, n)]
        return {name: replace(policy, artifact=None, steps=steps) for name, steps in videos.items()}

    def check(self, run: Run, num_clips: int) -> None:
        """Between the first and the last steps there must be one to reuse."""
        policy = self._policy
        if not edges_between(run.num_steps, policy.max_skip, policy.first, policy.last):
            raise ValueError(
                f"lemica: {run.num_steps} steps leave nothing to reuse between the first and the last ones; set "
                f"sampling.num_steps higher"
            )

    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """The mean absolute difference of the final latents."""
        del rollout, trace
        return {"error": (latents.float() - reference.float()).abs().mean().item()}

    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The mean errors. An edge whose video ran away (its error is not finite) is left out: no path takes it.

        Raises:
            ValueError: no edge is left, or a video of full compute is not finite itself.
        """
        edges: list[tuple[int, int, float]] = []
        num_lost = 0
        if not all(math.isfinite(record["error"]) for record in records["full"]):
            raise ValueError(
                "lemica: a video of full compute ends in latents that are not finite, so no error can be measured. Look at "
                "it before calibrating."
            )
        for name, found in records.items():
            if name != "full":
                i, j = (int(step) for step in name.split("-"))
                weight = sum(record["error"] for record in found) / len(found)
                if math.isfinite(weight):
                    edges.append((i, j, weight))
                else:
                    num_lost += 1
        if not edges:
            raise ValueError(
                f"lemica: all {num_lost} videos with a reused stretch end in latents that are not finite: reuse of the trunk's "
                f"{self._policy.storage} does not work on this model. Set policy.storage to the other."
            )
        policy, known = self._policy, tuple(edges)
        worst: dict[int, float] = {}
        weights = {(i, j): w for i, j, w in edges}
        for budget in range(1, run.num_steps + 1):
            try:
                path = best_path(known, run.num_steps, budget, policy.first, policy.last)
            except ValueError:
                continue
            worst[budget] = max(weights.get(edge, 0.0) for edge in pairwise(path))
        # With every step computed there is no error, and nothing to see.
        shown = {budget: error for budget, error in worst.items() if budget < run.num_steps}
        labels = ("computed steps in all", "largest error of a stretch, of the best path")
        curves = [Curve(labels[1], [float(budget) for budget in shown], list(shown.values()), *labels)]
        for skip in range(2, policy.max_skip + 1):
            points = [(float(i), w) for i, j, w in edges if j - i == skip]
            if points:
                x, y = zip(*points)
                name = f"{skip - 1} step{'s' if skip > 2 else ''} reused"
                curves.append(
                    Curve(name, x, y, "computed step before the reused", "mean |difference| of final latents")
                )
        numbers = {
            **({"edges left out, not finite": float(num_lost)} if num_lost else {}),
            "fewest_computed_steps": float(min(worst)),
            "smallest_error": min(weights.values()),
            "largest_error": max(weights.values()),
        }
        return Fit({"edges": [list(edge) for edge in edges]}, numbers, curves)
