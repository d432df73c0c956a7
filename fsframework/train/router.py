"""A router: one learned gate per step and site, and the policy that puts it to work on a frozen model while it learns.

Shape suffixes: T steps, M sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsframework.core import Blend, Call, Decision, Part, ReusePolicy, Run, Site
from fsframework.core.decision import RECOMPUTE
from fsframework.core.gates import FIXED, GRANULARITIES, GateTable
from fsframework.core.policy import Storage

LOGIT_LIMIT = 5.0
"""theta stays within this (as in the release of Learning-to-Cache): gates between 0.0067 and 0.9933."""


class Router(nn.Module):
    """theta [T, M]; the gates are its sigmoid where a step may reuse, and 1 elsewhere."""

    gated_T: Tensor
    shares_M: Tensor
    importance_T: Tensor
    sum_TM: Tensor
    count: Tensor

    def __init__(
        self, gated: Sequence[bool], sites: Sequence[str], shares: Sequence[float], initial_gate: float
    ) -> None:
        super().__init__()
        self.sites = list(sites)
        self.theta_TM = nn.Parameter(torch.full((len(gated), len(sites)), math.log(initial_gate / (1 - initial_gate))))
        self.register_buffer("gated_T", torch.tensor(gated))
        self.register_buffer("shares_M", torch.tensor(shares, dtype=torch.float32))
        self.register_buffer("importance_T", torch.ones(len(gated)))
        self.register_buffer("sum_TM", torch.zeros(len(gated), len(sites)))
        self.register_buffer("count", torch.zeros(()))

    def gates(self) -> Tensor:
        """[T, M], differentiable."""
        return torch.where(self.gated_T[:, None], torch.sigmoid(self.theta_TM), torch.ones_like(self.theta_TM))

    def compute(self) -> Tensor:
        """The sum of gates by their FLOPs, a fraction of full compute: what gated sites would cost if w were a share."""
        gates_TM = torch.sigmoid(self.theta_TM) * self.shares_M
        return (gates_TM * self.gated_T[:, None]).sum() / len(self.gated_T)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep theta within its limits."""
        self.theta_TM.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)

    @torch.no_grad()
    def add_to_mean(self) -> None:
        """Count the gates as they are now into their mean over training."""
        self.sum_TM += torch.sigmoid(self.theta_TM)
        self.count += 1

    @torch.no_grad()
    def mean(self) -> Tensor:
        """[T, M], the mean over what was counted, before anything was the gates as they are now; 1 as in `gates`."""
        if not self.count:
            return self.gates()
        return torch.where(self.gated_T[:, None], self.sum_TM / self.count, torch.ones_like(self.sum_TM))

    @torch.no_grad()
    def table(self, gates_TM: Tensor | None = None) -> GateTable:
        """The gates as they are now, or those given, for an artifact; those of steps that never reuse are exactly `FIXED`."""
        rows_MT = (self.gates() if gates_TM is None else gates_TM).T.tolist()
        shares: list[float] = self.shares_M.tolist()
        gated: list[bool] = self.gated_T.tolist()
        gates = {
            site: [gate if may else FIXED for gate, may in zip(row, gated)] for site, row in zip(self.sites, rows_MT)
        }
        return GateTable(gates, dict(zip(self.sites, shares)))


@dataclass
class Progress:
    """Where a video under `Blending` is, for whoever looks on from outside."""

    step: int = 0


@dataclass(frozen=True, eq=False)
class Blending(ReusePolicy[dict[Site, int]]):
    """In steps that may reuse, every site gives weight * fresh + (1 - weight) * cached; gradients reach the weights."""

    differentiable: ClassVar[bool] = True
    parts: ClassVar[frozenset[Part]] = GRANULARITIES["block"]

    weights: Tensor
    """[T, M]."""
    kept: Sequence[Sequence[bool]]
    """[T][M], whether the fresh value takes the place of the cached one."""
    gated: Sequence[bool]
    """[T], whether a step may reuse. One that may not runs everything and stores it."""
    columns: Mapping[str, int]
    """Site name -> column."""
    storage: Storage = "residual"
    progress: Progress = field(default_factory=Progress)

    def start(self, run: Run) -> dict[Site, int]:
        """The column of each site."""
        return {site: self.columns[site.name] for site in run.sites}

    def begin_forward(self, state: dict[Site, int], call: Call) -> None:
        """Note the step."""
        self.progress.step = call.step.index

    def decide(self, state: dict[Site, int], call: Call, site: Site) -> Decision:
        """Blend, or compute."""
        step = call.step.index
        if not self.gated[step]:
            return RECOMPUTE
        column = state[site]
        return Blend(self.weights[step, column], keep=self.kept[step][column])


class BlendingParts(Blending):
    """The same at attention, cross-attention and MLP."""

    parts = GRANULARITIES["submodule"]


BLENDING: dict[str, type[Blending]] = {"block": Blending, "submodule": BlendingParts}
"""Granularity -> the policy to learn with."""
