"""What the engine itself costs: a call in which nothing is reused, a visit of a block, a forward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import BlockList, Kind, ModelAdapter, ReuseEngine, ReusePolicy
from fsframework.run.progress import Progress

FEW, MANY = 12, 112
"""Blocks of the two models whose difference gives the cost of a visit."""
Costs = dict[str, tuple[list[float], str]]
"""What -> (a value per round, unit)."""


class Nothing(nn.Module):
    """A block that returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.ff = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """The input."""
        return hidden_states


class Empty(nn.Module):
    """Blocks that do nothing: what is left is the engine."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Nothing() for _ in range(num_blocks)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """The input, through all blocks."""
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


class EmptyAdapter(ModelAdapter):
    """For `Empty`."""

    transformer_classes = ("Empty",)
    blocks = (BlockList("transformer_blocks", Kind.JOINT),)


def engine_costs(rounds: int) -> Costs:
    """All figures, in interleaved rounds, in process CPU time of one thread."""
    progress = Progress("engine", 2 * rounds, 0)
    try:
        return {**_overhead(rounds, progress), **_visits(rounds, progress)}
    finally:
        progress.close()


def _cpu_seconds(call: Callable[[int], None], num_steps: int) -> float:
    started = time.process_time()
    for step in range(num_steps):
        call(step)
    return time.process_time() - started


def _overhead(rounds: int, progress: Progress) -> Costs:
    """A 12-block CogVideoX of random weights, about 7 ms a call on an idle core: each policy's calls by the bare model's.
    The session is opened outside the clock, as it is once per run."""
    import diffusers

    from fsframework.models import CogVideoX
    from fsframework.policies import Foresight, FullCompute, StaticReuse

    adapter, num_steps = CogVideoX(), 30
    torch.manual_seed(0)
    config = {**adapter.tiny_config, "num_layers": 12, "num_attention_heads": 8, "attention_head_dim": 8}
    model: Any = diffusers.CogVideoXTransformer3DModel(**config)
    model.eval().requires_grad_(False)
    bound, inputs = adapter.bind(model), adapter.example_inputs(model, 2, torch.Generator().manual_seed(0))
    timesteps = [torch.tensor([step, step]) for step in range(num_steps)]

    def call(step: int) -> None:
        with torch.no_grad():
            model(timestep=timesteps[step], return_dict=False, **inputs)

    policies: Mapping[str, tuple[ReusePolicy[Any], bool]] = {
        "full compute": (FullCompute(), True),
        "full compute, no trace": (FullCompute(), False),
        "static that never reuses": (StaticReuse(interval=1), True),
        "foresight that never reuses, its distances included": (Foresight(gamma=0.0), True),
    }
    _cpu_seconds(call, num_steps)
    bare: list[float] = []
    ratios: dict[str, list[float]] = {"bare model again": [], **{name: [] for name in policies}}
    for number in range(rounds):
        bare.append(_cpu_seconds(call, num_steps))
        order = list(ratios) if number % 2 == 0 else list(ratios)[::-1]
        for name in order:
            policy, record = policies.get(name, (None, False))
            with _session(bound, policy, record, num_steps):
                ratios[name].append(_cpu_seconds(call, num_steps) / bare[-1])
        progress.advance("calls of a 12-block model")
    out: Costs = {"call of the bare 12-block model": ([1e3 * seconds / num_steps for seconds in bare], "ms CPU")}
    return out | {f"{name}: call by the bare model's": (values, "x") for name, values in ratios.items()}


def _session(
    bound: Any, policy: ReusePolicy[Any] | None, record: bool, num_steps: int
) -> AbstractContextManager[object]:
    if policy is None:
        return nullcontext()
    return ReuseEngine(bound, policy, timesteps=list(range(num_steps)), record=record)


def _visits(rounds: int, progress: Progress) -> Costs:
    """Blocks that do nothing. Cost of a visit: that of 100 more blocks, by 100. Of a forward: what is left of one."""
    from fsframework.policies import FullCompute, StaticReuse

    adapter, num_steps, x = EmptyAdapter(), 50, torch.zeros(1, 16, 16)
    models = {number: Empty(number) for number in (FEW, MANY)}
    steps = [torch.tensor([float(step)]) for step in range(num_steps)]
    policies: Mapping[str, tuple[ReusePolicy[Any], bool]] = {
        "full compute, no trace": (FullCompute(), False),
        "full compute": (FullCompute(), True),
        "static every 2nd step": (StaticReuse(interval=2), True),
    }
    out: Costs = {"visit, the bare call of a block": ([], "us CPU")}
    out |= {f"visit, {name}, beyond that": ([], "us CPU") for name in policies}
    out |= {f"forward, {name}, beside its visits": ([], "us CPU") for name in policies}

    def seconds(number: int, policy: ReusePolicy[Any] | None, record: bool) -> float:
        model = models[number]

        def call(step: int) -> None:
            with torch.no_grad():
                model(x, steps[step])

        with _session(adapter.bind(model), policy, record, num_steps):
            return 1e6 * _cpu_seconds(call, num_steps) / num_steps

    seconds(MANY, None, False)
    for _ in range(rounds):
        few, many = (seconds(number, None, False) for number in (FEW, MANY))
        out["visit, the bare call of a block"][0].append((many - few) / (MANY - FEW))
        for name, (policy, record) in policies.items():
            extra_few = seconds(FEW, policy, record) - few
            visit = (seconds(MANY, policy, record) - many - extra_few) / (MANY - FEW)
            out[f"visit, {name}, beyond that"][0].append(visit)
            out[f"forward, {name}, beside its visits"][0].append(extra_few - FEW * visit)
        progress.advance("visits")
    return out
