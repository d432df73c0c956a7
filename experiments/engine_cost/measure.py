"""Overhead, cost of a visit, efficiency and host reads, side by side with the bare model in one process."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn

from fsframework.core import BlockList, Kind, ModelAdapter, ReuseEngine
from fsframework.models import CogVideoX, Latte
from fsframework.policies import Foresight, FullCompute, StaticReuse

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from toys import count_host_reads


class Nothing(nn.Module):
    """A block that returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = self.ff = nn.Identity()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states


class Empty(nn.Module):
    """A hundred blocks that do nothing."""

    def __init__(self, num_blocks: int = 100) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Nothing() for _ in range(num_blocks)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


class EmptyAdapter(ModelAdapter):
    transformer_classes = ("Empty",)
    blocks = (BlockList("transformer_blocks", Kind.JOINT),)


def random_model(adapter: ModelAdapter, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = {**adapter.tiny_config, **changes}
    return getattr(diffusers, adapter.transformer_classes[0])(**config).eval().requires_grad_(False)


def caller(adapter: ModelAdapter, model: nn.Module) -> Callable[[int], None]:
    inputs = adapter.example_inputs(model, 2, torch.Generator().manual_seed(0))

    def call(step: int) -> None:
        timestep = torch.tensor([step, step])
        with torch.no_grad():
            model(timestep=timestep, return_dict=False, **inputs)

    return call


def cpu_seconds(call: Callable[[int], None], num_steps: int) -> float:
    """Process CPU seconds of one run of `num_steps` calls."""
    started = time.process_time()
    for step in range(num_steps):
        call(step)
    return time.process_time() - started


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def line(name: str, values: dict[str, float], unit: str) -> str:
    return f"  {name:<44} {values['median']:8.3f} {unit:<12} ({values['low']:.3f} .. {values['high']:.3f}, n={values['n']})"


def overhead(rounds: int) -> dict[str, dict[str, float]]:
    adapter, num_steps = CogVideoX(), 30
    model = random_model(adapter, num_layers=12, num_attention_heads=8, attention_head_dim=8)
    bound, call = adapter.bind(model), caller(adapter, model)
    policies = {
        "full": FullCompute(),
        "static, never": StaticReuse(interval=1),
        "foresight, never": Foresight(gamma=0.0),
    }
    cpu_seconds(call, num_steps)
    ratios: dict[str, list[float]] = {name: [] for name in ["bare again", *policies]}
    per_call = []
    for _ in range(rounds):
        bare = cpu_seconds(call, num_steps)
        per_call.append(1e3 * bare / num_steps)
        ratios["bare again"].append(cpu_seconds(call, num_steps) / bare)
        for name, policy in policies.items():
            with ReuseEngine(bound, policy, timesteps=list(range(num_steps))):
                ratios[name].append(cpu_seconds(call, num_steps) / bare)
    print(
        f"Overhead when nothing is reused: 12 blocks, {statistics.median(per_call):.1f} ms a call, ratio to the bare model"
    )
    out = {name: spread(values) for name, values in ratios.items()}
    for name, values in out.items():
        print(line(name, values, "x bare"))
    return out


def visits(rounds: int) -> dict[str, dict[str, float]]:
    adapter, model, num_steps = EmptyAdapter(), Empty(), 50
    bound, x = adapter.bind(model), torch.zeros(1, 16, 16)
    steps = [torch.tensor([float(i)]) for i in range(num_steps)]

    def call(step: int) -> None:
        with torch.no_grad():
            model(x, steps[step])

    settings = {
        "full, with trace": (FullCompute(), True),
        "full, without trace": (FullCompute(), False),
        "static every 2nd, with trace": (StaticReuse(), True),
        "foresight, with its distances": (Foresight(gamma=0.0), True),
    }
    extra: dict[str, list[float]] = {name: [] for name in ["bare call itself", *settings]}
    cpu_seconds(call, num_steps)
    scale = 1e6 / num_steps / len(model.transformer_blocks)
    for _ in range(rounds):
        bare = cpu_seconds(call, num_steps)
        extra["bare call itself"].append(bare * scale)
        for name, (policy, record) in settings.items():
            with ReuseEngine(bound, policy, timesteps=list(range(num_steps)), record=record):
                extra[name].append((cpu_seconds(call, num_steps) - bare) * scale)
    print("Cost of a visit beyond the bare call (blocks that do nothing)")
    out = {name: spread(values) for name, values in extra.items()}
    for name, values in out.items():
        print(line(name, values, "us"))
    return out


def efficiency(rounds: int) -> dict[str, dict[str, float]]:
    adapter, num_steps = CogVideoX(), 16
    model = random_model(adapter, num_layers=6, num_attention_heads=16, attention_head_dim=64)
    bound, call = adapter.bind(model), caller(adapter, model)
    cpu_seconds(call, 2)
    speedups, flops_speedup = [], 0.0
    for _ in range(rounds):
        bare = cpu_seconds(call, num_steps)
        with ReuseEngine(bound, StaticReuse(interval=2), timesteps=list(range(num_steps))) as session:
            speedups.append(bare / cpu_seconds(call, num_steps))
        flops_speedup = session.summary()["flops_speedup"]
    print(f"Efficiency of static every 2nd step: 6 blocks 1024 wide, FLOPs speedup {flops_speedup:.3f}")
    out = {"speedup": spread(speedups), "efficiency": spread([s / flops_speedup for s in speedups])}
    print(line("CPU-time speedup", out["speedup"], "x bare"))
    print(line("CPU-time speedup / FLOPs speedup", out["efficiency"], ""))
    return out


def host_reads() -> dict[str, float]:
    adapter, num_steps = Latte(), 50
    model = random_model(adapter)
    call = caller(adapter, model)
    cpu_seconds(call, 2)
    out = {}
    print("Host reads per step beyond the bare model, intercepted (50 steps)")
    for name, policy in (("full", FullCompute()), ("static", StaticReuse()), ("foresight", Foresight(gamma=2.0))):
        with count_host_reads() as bare:
            cpu_seconds(call, num_steps)
        engine = ReuseEngine(adapter.bind(model), policy, timesteps=list(range(num_steps)))
        with engine as session, count_host_reads() as found:
            for step in range(num_steps):
                session.step(step)
                call(step)
        out[name] = (len(found) - len(bare)) / num_steps
        print(f"  {name:<44} {out[name]:8.3f} per step     (own counter: {session.meter.num_reads / num_steps:.3f})")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds per figure (default 9)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread, process CPU time")
    figures = {
        "overhead": overhead(options.rounds),
        "visit_microseconds": visits(options.rounds),
        "efficiency": efficiency(max(3, options.rounds // 3)),
        "host_reads_per_step": host_reads(),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
