"""`check_adapter`: whether what an adapter states is true of its model, on random weights and without a pipeline.

What the contract tests of the package say of every registered family, in a form that needs no test framework: for an
adapter in a file of one's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsframework.core import Call, Decision, ModelAdapter, Recompute, Reuse, ReuseEngine, ReusePolicy, Site
from fsframework.core.bound import BoundModel
from fsframework.core.samples import rows_of, stacked
from fsframework.run.observe import without_reuse_warnings

TIMESTEPS = (900.0, 600.0, 300.0)
"""Of the loop that everything is checked in; the model is called once per step."""
_TOLERANCE = 1e-4
"""Relative to the largest value: what a batch of another size may change in float32 by the order of its sums."""


@dataclass(frozen=True)
class _SecondStep(ReusePolicy[None]):
    """Recomputes, but reuses every block's output in the second step if `reuses`."""

    reuses: bool
    storage: Literal["output", "residual"] = "output"

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        return Reuse() if self.reuses and call.step.index == 1 else Recompute()


def check_adapter(adapter: ModelAdapter, transformer: nn.Module | None = None) -> list[str]:
    """Try an adapter's facts on its transformer; one line for each that holds.

    Args:
        adapter: states `example_inputs`, and `tiny_config` unless a transformer is given.
        transformer: in evaluation mode; None: one of `tiny_config`, its weights random.

    Raises:
        ValueError: the facts that do not hold, all at once, each with what was seen.
    """
    model = _random(adapter) if transformer is None else transformer
    bound = adapter.bind(model)  # wrong names are an error here
    checks: dict[str, Callable[[_Loop], str | None]] = {
        "a policy that recomputes everything changes no bit, and nothing of it is left on the model": _exactness,
        "the blocks run in the order that is stated, each once in a step": _order,
        "putting every block's output back is what the model makes of those outputs": _replay,
        "the arguments with a row per sample are those that are stated": _rows,
    }
    wrong = []
    with torch.no_grad(), without_reuse_warnings():
        for claim, check in checks.items():
            try:
                problem = check(_Loop(bound))
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                wrong.append(f"{claim}: no. {problem}")
    if wrong:
        listed = "\n  - ".join(wrong)
        raise ValueError(f"{type(adapter).__name__} does not describe {type(model).__name__}:\n  - {listed}")
    sites = ", ".join(bound.block_site(index).name for index in range(len(bound.blocks)))
    return [f"{len(bound.blocks)} blocks: {sites}", *checks]


def _random(adapter: ModelAdapter) -> nn.Module:
    """The transformer of `tiny_config`; a block that is zero at first, as many families are, would hide mistakes."""
    transformer_class = getattr(importlib.import_module(adapter.pipeline_module), adapter.transformer_classes[0])
    model: nn.Module = transformer_class(**adapter.tiny_config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


class _Loop:
    """The model over `TIMESTEPS`, with a latent of its own in each step."""

    def __init__(self, bound: BoundModel) -> None:
        self.bound = bound
        self.adapter, self.model = bound.adapter, bound.transformer
        steps = range(len(TIMESTEPS))
        self.inputs = [self.adapter.example_inputs(self.model, 2, torch.Generator().manual_seed(s)) for s in steps]

    def call(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The prediction of some of the two samples."""
        inputs: dict[str, Any] = {
            name: rows_of(value, rows, self.adapter.batch_axes.get(name, 0))
            if name in self.adapter.batched_inputs
            else value
            for name, value in self.inputs[step].items()
        }
        latent = stacked(inputs[self.adapter.latent_input])
        time = torch.full((len(latent),), TIMESTEPS[step], dtype=latent.dtype)
        made = self.model(**inputs, **{self.adapter.timestep_input: time}, return_dict=False)
        return stacked(made[0] if isinstance(made, tuple) else made)

    def run(self) -> list[Tensor]:
        """The predictions of all steps."""
        return [self.call(step) for step in range(len(TIMESTEPS))]

    def session(self, policy: ReusePolicy[Any]) -> ReuseEngine:
        return ReuseEngine(self.bound, policy, timesteps=TIMESTEPS)


def _exactness(loop: _Loop) -> str | None:
    attributes = lambda: {name: sorted(vars(module)) for name, module in loop.model.named_modules()}
    bare, before = loop.run(), attributes()
    with loop.session(_SecondStep(reuses=False)):
        during = loop.run()
    for name, made in (("under it", during), ("after it", loop.run())):
        for step, (a, b) in enumerate(zip(bare, made)):
            if not torch.equal(a, b):
                return f"step {step} {name} differs by up to {float((a - b).abs().max()):.3g}"
    left = [name for name, found in attributes().items() if found != before[name]]
    return f"modules with other attributes than before: {left}" if left else None


def _order(loop: _Loop) -> str | None:
    """Compared with hooks of torch's own, which know nothing of the adapter's order."""
    names = {id(b.module): loop.bound.block_site(i).name for i, b in enumerate(loop.bound.blocks)}
    seen: list[str] = []
    handles = [
        block.module.register_forward_pre_hook(lambda module, _: seen.append(names[id(module)]))
        for block in loop.bound.blocks
    ]
    try:
        loop.call(0)
    finally:
        for handle in handles:
            handle.remove()
    stated = list(names.values())
    return None if seen == stated else f"They ran as {', '.join(seen) or 'none at all'}; stated is {', '.join(stated)}"


def _replay(loop: _Loop) -> str | None:
    """Compared with the bare model whose blocks are made to return what they returned a step before."""
    with loop.session(_SecondStep(reuses=True)) as session:
        reused = loop.run()[1]
    if "reuse" not in session.trace.column("decision"):
        return "No block was reused"
    with _repeating(loop) as repeat:
        loop.call(0)
        repeat()
        expected = loop.call(1)
    if not torch.equal(reused, expected):
        return (
            f"They differ by up to {float((reused - expected).abs().max()):.3g}: see `streams`, `returns`, `kept_aside`"
        )
    if torch.equal(reused, loop.call(1)):
        return "Reuse changed nothing: the blocks have no part in the prediction"
    return None


@contextmanager
def _repeating(loop: _Loop) -> Iterator[Callable[[], None]]:
    """Inside, blocks return what they did in the first call from when the yielded function is called."""
    kept: dict[int, Any] = {}
    repeats = False

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if repeats:
            return kept[id(module)]
        kept[id(module)] = output
        return None

    def begin() -> None:
        nonlocal repeats
        repeats = True

    handles = [block.module.register_forward_hook(hook) for block in loop.bound.blocks]
    try:
        yield begin
    finally:
        for handle in handles:
            handle.remove()


def _rows(loop: _Loop) -> str | None:
    both = loop.call(0)
    for row in range(2):
        alone = loop.call(0, slice(row, row + 1))
        if alone.shape[0] != 1:
            return f"One sample gave a prediction of {alone.shape[0]}"
        worst = float((alone[0] - both[row]).abs().max())
        if worst > _TOLERANCE * float(both.abs().max()):
            return f"Sample {row} alone differs from itself in a batch by up to {worst:.3g}: see `batched_inputs`"
    return None
