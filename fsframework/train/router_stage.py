"""`RouterModule`: what Learning-to-Cache and HarmoniCa share. A loss is made of whole videos; gradients reach the router only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fsframework.core import Curve, Fit, HeatMap, Run
from fsframework.core.gates import FIXED, GRANULARITIES
from fsframework.data.prompts import Clip
from fsframework.train.learned import LearnedModule, Learning
from fsframework.train.router import BLENDING, Router
from fsframework.train.router_rollout import Rollout, rollout, surroundings


@dataclass
class RouterOptions:
    """What both methods can be told."""

    granularity: str = "block"
    """`block`, or `submodule`: attention, cross-attention and MLP apart (both papers: attention and MLP)."""
    storage: str = "residual"
    """Of blocks: `residual` reuses a block's change, `output` its output."""
    penalty: float = 1e-3
    """Price of full compute, in units of the squared prediction error, >= 0. It decides which errors are told apart: gates
    of sites whose error is far below their share of it, or far above it, end at the limits, where they are equal."""
    final_penalty: float | None = None
    """The price that training ends with; it grows by the same factor from iteration to iteration. Each gate then falls when
    the price of its site exceeds the error that reuse there adds to what is reused already, and the artifact's gates are
    the means over training: the earlier one fell, the smaller. So one training orders the sites for every budget, where with
    one price (null, as in the papers) all that is far from it ends at the limits, in no order.
    Choose both ends so that most gates fall between them."""
    initial_gate: float = 0.9
    """What every gate begins with, between 0.0067 and 0.9933."""
    threshold: float = 0.1
    """Above it a gate computes, 0 to 1; in training it decides whether a fresh value takes the cached one's place."""
    straight_through: bool = False
    """Blend with 0 or 1, by the threshold, and pass the gradient on as if with the gate."""

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"train.granularity={self.granularity!r} must be one of {', '.join(GRANULARITIES)}")
        if self.storage not in ("output", "residual"):
            raise ValueError(f"train.storage={self.storage!r} must be one of output, residual")
        if not self.penalty >= 0:
            raise ValueError(f"train.penalty={self.penalty} must be >= 0")
        if self.final_penalty is not None and not 0 < self.penalty < self.final_penalty:
            raise ValueError(
                f"train.final_penalty={self.final_penalty} must be above train.penalty={self.penalty}, and that above 0"
            )
        if not 0.0067 < self.initial_gate < 0.9933:
            raise ValueError(f"train.initial_gate={self.initial_gate} must be between 0.0067 and 0.9933")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"train.threshold={self.threshold} is compared with gates, which are 0 to 1")


class RouterModule(LearnedModule):
    """Learns the gates of a frozen model's sites, one per step.

    The loss of an iteration, over its clips, with T steps, errors e and importance lambda:

        mean over clips of 1/T sum_s lambda_s e_s  +  penalty * 1/T sum over gated (s, m) of gate[s, m] * share[m]

    With `final_penalty` the penalty of iteration i of n is penalty * (final_penalty / penalty)^(i / (n - 1)).
    """

    options_class = RouterOptions
    follow = "teacher"
    """Whose predictions the sampler gets while learning: `teacher` (the full model's) or `student`."""

    def __init__(self, learning: Learning) -> None:
        options = learning.options
        if options.final_penalty is not None and learning.config.validation.patience:
            raise ValueError("train.final_penalty makes the loss grow; set validation.patience=0")
        around = surroundings(learning.model, options.granularity, learning.clips[0], learning.sampling)
        gated = self.gated_steps(around.run.num_steps, options)
        router = Router(gated, list(around.shares), list(around.shares.values()), options.initial_gate)
        super().__init__(learning, router)
        self.options = options
        self._run = around.run
        self._window_errors: list[Tensor] = []

    @staticmethod
    def gated_steps(num_steps: int, options: Any) -> list[bool]:
        """Which steps have gates; the others are computed in full.

        Raises:
            ValueError: none has.
        """
        raise NotImplementedError

    @property
    def router(self) -> Router:
        """The trained network."""
        return cast(Router, self.networks)

    @property
    def run(self) -> Run:
        """The run that the gates are for."""
        return self._run

    def loss(self, step: int) -> Tensor:
        """Its gradient is put together from those of the steps, each of which ended at its own latent and cache."""
        clips = self.clips_of(step)
        mine = clips[self.share(len(clips))]
        router = self.router
        importance: list[float] = router.importance_T.tolist()
        gates_TM = router.gates()
        num_steps = len(importance)
        gradient_TM, errors_T = torch.zeros_like(gates_TM), torch.zeros_like(router.importance_T)
        for clip in mine:
            found = self.rollout(clip, gates_TM.detach(), importance, learn=True)
            gradient_TM += found.gradient_TM / (len(mine) * num_steps)
            errors_T += found.errors_T / (len(mine) * num_steps)
        self._window_errors.append(errors_T.sum())
        carrier = (gates_TM * gradient_TM).sum()  # has that gradient; of its value nothing is wanted
        error = (errors_T * router.importance_T).sum()
        return error + (carrier - carrier.detach()) + self.price(step) * router.compute()

    def price(self, step: int) -> float:
        """The penalty of an iteration."""
        first, last = self.options.penalty, self.options.final_penalty
        if last is None:
            return float(first)
        return float(first * (last / first) ** (step / max(self.learning.config.num_iterations - 1, 1)))

    def rollout(self, clip: Clip, gates_TM: Tensor, importance: Sequence[float], *, learn: bool) -> Rollout:
        """One video with the gates as weights."""
        options = self.options
        above_TM = gates_TM > options.threshold
        weights_TM = above_TM.to(gates_TM.dtype) if options.straight_through else gates_TM.clone()
        gated: list[bool] = self.router.gated_T.tolist()
        policy = BLENDING[options.granularity](
            weights=weights_TM.requires_grad_(learn),
            kept=above_TM.tolist(),
            gated=gated,
            columns={site: i for i, site in enumerate(self.router.sites)},
            storage=options.storage,
        )
        learning = self.learning
        return rollout(learning.model, policy, clip, learning.sampling, importance, follow=self.follow, learn=learn)

    def clips_of(self, step: int) -> list[Clip]:
        """The clips of an iteration: all come once, in an order of chance, before any comes again."""
        clips, size = self.learning.clips, self.learning.config.batch_clips
        chosen = []
        for place in range(step * size, (step + 1) * size):
            order = self.numpy_generator(place // len(clips)).permutation(len(clips))
            chosen.append(clips[order[place % len(clips)]])
        return chosen

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and keep theta within its limits."""
        super().optimizer_step(*args, **kwargs)
        self.router.clamp()
        self.router.add_to_mean()
        cast(Router, self.average).clamp()

    def record(self, row: dict[str, Any]) -> None:
        """With the error and the compute that the loss is made of, and what is computed at the threshold."""
        if "loss" in row:
            row = {**row, "error": float(torch.stack(self._window_errors).mean()), **self.compute_numbers()}
            self._window_errors = []
        super().record(row)

    def compute_numbers(self) -> dict[str, float]:
        """FLOPs as a fraction of full compute: by the gates as shares, and with those at or below the threshold reused."""
        table = self.router.table()
        fixed = 1.0 - float((self.router.shares_M.sum() * self.router.gated_T.sum()) / len(self.router.gated_T))
        return {
            "compute": fixed + float(self.router.compute().detach()),
            "compute_at_threshold": table.flops_fraction(table.above(self.options.threshold)),
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on the validation clips, all steps of the same importance."""
        clips = self.learning.validation_clips
        mine = clips[self.trainer.global_rank :: self.trainer.world_size]
        gates_TM = self.router.gates()
        total = torch.zeros((), device=gates_TM.device)
        for clip in mine:
            found = self.rollout(clip, gates_TM, [1.0] * len(gates_TM), learn=False)
            total += found.errors_T.sum() / (len(gates_TM) * len(clips))
        error = self.sum_over_processes(total)
        return {
            "validation": float(error + self.price(self.trainer.global_step) * self.router.compute()),
            "validation_error": float(error),
        }

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor of each process, in all of them."""
        summed: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return summed

    def result(self) -> Fit:
        """The gates, what they cost, and how they and the loss came to be."""
        options = self.options
        table = self.router.table(None if options.final_penalty is None else self.router.mean())
        least = {site: [gate >= FIXED for gate in row] for site, row in table.gates.items()}
        numbers = {**self.compute_numbers(), "compute_at_least": table.flops_fraction(least)}
        rows = [row for row in self.metrics.rows() if row["stage"] == self.stage and "loss" in row]
        steps = [float(row["step"]) for row in rows]
        curves = [
            Curve("loss", steps, [row["loss"] for row in rows], "iteration", "loss"),
            Curve("prediction error", steps, [row["error"] for row in rows], "iteration", "loss"),
            Curve("compute", steps, [row["compute"] for row in rows], "iteration", "fraction of full compute"),
        ]
        if rows:
            numbers |= {"loss": rows[-1]["loss"], "error": rows[-1]["error"]}
        gated = self.router.gated_T.tolist()
        rows_of = {
            site: [gate if may else math.nan for gate, may in zip(row, gated)] for site, row in table.gates.items()
        }
        maps = [HeatMap("gates, low where reuse costs little", rows_of, 0.0, 1.0)]
        return Fit(table.values(options.granularity, options.storage), numbers, curves, maps=maps)
