"""What Python and torch do while a call runs, counted and not timed: instructions, calls, containers, dispatches."""

from __future__ import annotations

import dis
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fsframework
from fsframework.core import BlockList, Kind, ModelAdapter, ReuseEngine, ReusePolicy

ROOT = str(Path(fsframework.__file__).resolve().parent)
REAL_ROOTS = (ROOT, str(Path(ROOT).parent / "policies"), str(Path(ROOT).parent / "models"))


class Nothing(nn.Module):
    """A block that returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.ff = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states


class Empty(nn.Module):
    """Blocks that do nothing, so that what is left is the engine's and the policy's.

    Not those of `fsf bench`, which lie in the package: what runs there is counted.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Nothing() for _ in range(num_blocks)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


class EmptyAdapter(ModelAdapter):
    transformer_classes = ("Empty",)
    blocks = (BlockList("transformer_blocks", Kind.JOINT),)


@dataclass
class Counts:
    """Of this project's own code: by name of the function."""

    instructions: Counter[str] = field(default_factory=Counter)
    """Bytecode instructions."""
    calls: Counter[str] = field(default_factory=Counter)
    """Calls of Python functions (generators and, in Python 3.11, comprehensions are some)."""
    containers: Counter[str] = field(default_factory=Counter)
    """Instructions that make a tuple, list, dictionary or set."""

    def __sub__(self, other: Counts) -> Counts:
        def less(a: Counter[str], b: Counter[str]) -> Counter[str]:
            return Counter({name: a[name] - b[name] for name in {*a, *b} if a[name] != b[name]})

        return Counts(
            less(self.instructions, other.instructions),
            less(self.calls, other.calls),
            less(self.containers, other.containers),
        )


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what this project's code does inside the block, in this thread. Slow: for a few calls of a small model."""
    counts = Counts()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(REAL_ROOTS):
            return None
        name = code.co_qualname
        if event == "call":
            counts.calls[name] += 1
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            counts.instructions[name] += 1
            operation = dis.opname[code.co_code[frame.f_lasti]]
            if operation.startswith("BUILD_") or operation == "LIST_TO_TUPLE":
                counts.containers[name] += 1
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counts
    finally:
        sys.settrace(previous)


@contextmanager
def dispatched() -> Iterator[list[str]]:
    """The names of the torch operations that ran inside the block."""
    names: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        yield names


@contextmanager
def empty_session(
    policy: ReusePolicy[Any], num_blocks: int, num_steps: int, record: bool
) -> Iterator[tuple[ReuseEngine, Callable[[int], None]]]:
    """A session on blocks that do nothing, and a function that runs one step of it."""
    model = Empty(num_blocks)
    x = torch.zeros(1, 4, 2)
    steps = [torch.tensor([float(step)]) for step in range(num_steps)]
    with (
        torch.no_grad(),
        ReuseEngine(EmptyAdapter().bind(model), policy, timesteps=list(range(num_steps)), record=record) as session,
    ):
        session.may_idle = True
        yield session, lambda step: model(x, steps[step])


def per_visit(policy: ReusePolicy[Any], step: int, record: bool) -> tuple[Counts, list[str]]:
    """What one more block costs in a step, once what happens once per forward is taken off: 12 blocks less 2, over 10."""
    found = []
    for num_blocks in (2, 12):
        with empty_session(policy, num_blocks, step + 2, record) as (_, run):
            for earlier in range(step):
                run(earlier)
            with counted() as counts:
                run(step)
            with empty_session(policy, num_blocks, step + 2, record) as (_, again):
                for earlier in range(step):
                    again(earlier)
                with dispatched() as operations:
                    again(step)
        found.append((counts, operations))
    (few, few_operations), (many, many_operations) = found
    more = many - few
    for counter in (more.instructions, more.calls, more.containers):
        for name in counter:
            assert counter[name] % 10 == 0, f"{name} does not do the same for every block: {counter[name]} for 10"
            counter[name] //= 10
    extra = Counter(many_operations) - Counter(few_operations)
    return more, [name for name, count in sorted(extra.items()) for _ in range(count // 10)]
