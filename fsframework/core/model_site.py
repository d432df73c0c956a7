"""Decisions about the MODEL site: reuse or forecast of the whole prediction, and guidance branches made from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.decision import Forecast, Recompute, Reuse, Synthesize, wrong_decision
from fsframework.core.samples import rows_of, stacked
from fsframework.core.site import Branch, State
from fsframework.core.trace import FORECAST, RECOMPUTE, REUSE, SYNTHESIZE
from fsframework.core.visit import ForwardRecord
from fsframework.core.wrap import Slot, positions

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine


class ModelCall:
    """One call of the model that the policy is asked about as a whole. `run()` gives what the caller gets."""

    def __init__(
        self,
        engine: ReuseEngine,
        record: ForwardRecord,
        slot: Slot,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._record = record
        self._slot = slot
        self._model = model
        self._args = args
        self._kwargs = kwargs
        self._arguments = arguments
        self._latent = stacked(arguments[engine.bound.adapter.latent_input])
        self._row = -1

    def run(self) -> Any:
        """Ask, and carry out."""
        engine, record = self._engine, self._record
        policy, site = engine.policy, engine.sites[0]
        latent = (self._latent,)
        self._row = record.begin_visit(site, latent, RECOMPUTE)
        decision = policy.decide(record.state, record, site)
        if isinstance(decision, (Reuse, Forecast)):
            history = record.history(site)
            if history and self._plain in engine.output_types:
                reuse = isinstance(decision, Reuse)
                value = history[-1].value if isinstance(decision, Reuse) else decision.fn(history, record.step)
                if site in engine.residual_sites:
                    value = tuple([x + r for x, r in zip(self._entered(value), value)])
                else:
                    value = tuple([v.clone() for v in value])  # the caller owns what it is given, and may write to it
                record.amend(self._row, REUSE if reuse else FORECAST, record.step.index - history[-1].step)
                return self._not_run(value)
            record.force(self._row)
        elif isinstance(decision, Synthesize):
            made = self._synthesize(decision)
            if made is not None:
                return made
            record.force(self._row)
        elif not isinstance(decision, Recompute):
            raise wrong_decision(policy, site, decision, "the model", "Recompute, Reuse, Forecast or Synthesize")
        output = engine.run_model(record, 1.0, self._slot, self._model, self._args, self._kwargs)
        value = self._predictions(output)
        if site not in engine.residual_sites:
            output = self._as_output(tuple([v.clone() for v in value]), like=output)
        entered = self._entered(value) if site in engine.residual_sites else latent
        engine.predictions[record.branch] = value[0]
        record.end_visit(self._row, site, entered, value, keep=getattr(decision, "keep", True))
        return output

    def _entered(self, value: State) -> State:
        """What residuals of the predictions are taken from: the latent, and nothing for what else is predicted (audio)."""
        return (_padded(self._latent, value[0]), *[torch.zeros_like(v) for v in value[1:]])

    def _not_run(self, value: State) -> Any:
        record = self._record
        self._engine.note_forward(record, 0.0)
        self._engine.predictions[record.branch] = value[0]
        return self._as_output(value)

    def _synthesize(self, decision: Synthesize) -> Any:
        """The output with one branch made from the others; None where what that needs is absent."""
        engine, record = self._engine, self._record
        if record.branch == decision.branch:
            if not engine.predictions:
                engine._warn(
                    "order",
                    f"{decision.branch} is called before the branch it would be made from, so everything is run. Call the "
                    f"other branch first, or both in one batch.",
                )
                return None
            if self._plain not in engine.output_types:
                return None
            self._check_single(engine.num_predictions)
            prediction = decision.fn(dict(engine.predictions))
            record.amend(self._row, SYNTHESIZE, 0)
            return self._not_run((prediction,))
        adapter = engine.bound.adapter
        order, batch = adapter.batch_order, self._latent.shape[0]
        if record.branch != Branch.JOINT or decision.branch not in order or batch % 2 or not engine.is_guided():
            return None
        other = order[1 - order.index(decision.branch)]
        first = order.index(other) == 0
        rows = slice(0, batch // 2) if first else slice(batch // 2, batch)
        cut = {
            name: rows_of(self._arguments[name], rows, adapter.batch_axes.get(name, 0))
            for name in adapter.batched_inputs
            if name in self._arguments
        }
        args = tuple(cut.get(name, value) for name, value in zip(positions(self._model), self._args))
        kwargs = {name: cut.get(name, value) for name, value in self._kwargs.items()}
        whole, record.arguments = record.arguments, {**record.arguments, **cut}
        record.branch, record.num_samples, engine.bound.num_samples = other, batch // 2, batch // 2
        output = engine.run_model(record, 0.5, self._slot, self._model, args, kwargs)
        record.branch, record.num_samples, engine.bound.num_samples = Branch.JOINT.value, batch, batch
        record.arguments = whole
        value = self._predictions(output)
        self._check_single(len(value))
        (own,) = value
        made = decision.fn({other: own})
        record.amend(self._row, SYNTHESIZE, 0)
        return self._as_output((torch.cat([own, made] if first else [made, own]),))

    def _check_single(self, num_predictions: int) -> None:
        if num_predictions > 1:
            raise ValueError(
                f"{type(self._model).__name__} predicts {num_predictions} things at once (video and audio, say), and "
                f"Synthesize makes one of them only. Reuse or forecast the prediction, or ask about the blocks."
            )

    def _predictions(self, output: Any) -> State:
        """The predicted tensors in whatever the model returned; remembers the container for `_as_output`."""
        self._engine.output_types[self._plain] = type(output)
        if isinstance(output, Tensor):
            value: State = (output,)
        else:
            parts = output if isinstance(output, tuple) else output.values()
            value = tuple([stacked(part) for part in parts if part is not None])
        self._engine.num_predictions = len(value)
        return value

    @property
    def _plain(self) -> bool:
        return self._arguments.get("return_dict") is False

    def _as_output(self, value: State, like: Any = None) -> Any:
        kind = self._engine.output_types[self._plain] if like is None else type(like)
        per_sample = not isinstance(self._arguments[self._engine.bound.adapter.latent_input], Tensor)
        parts: list[Any] = [list(v.unbind()) if per_sample else v for v in value]
        if kind is Tensor:
            return parts[0]
        if kind is tuple:
            return (*parts, *(like or ())[len(parts) :])
        return kind(*parts)


def _padded(latent: Tensor, prediction: Tensor) -> Tensor:
    """The latent in the prediction's shape: zeros for its extra channels (a learned variance that pipelines drop), without
    the channels that are only a condition (the image of an image-to-video model)."""
    if latent.shape == prediction.shape:
        return latent
    out = torch.zeros_like(prediction)
    common = tuple(slice(0, min(a, b)) for a, b in zip(latent.shape, prediction.shape))
    out[common] = latent[common]
    return out
