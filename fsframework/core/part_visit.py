"""A visit of a sub-module. What it returns is what it adds to the block, so the cache keeps its output as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.decision import RECOMPUTE as DO_RECOMPUTE
from fsframework.core.decision import Blend, Forecast, Partial, Recompute, Reuse, wrong_decision
from fsframework.core.keys import PartKey
from fsframework.core.site import Site, State
from fsframework.core.tokens import check_partial, cut_first, cut_tables, put_tokens, video_tokens
from fsframework.core.trace import BLEND, FORECAST, PARTIAL, RECOMPUTE, REUSE
from fsframework.core.wrap import Slot, positions

if TYPE_CHECKING:
    from fsframework.core.forward_call import ForwardCall
    from fsframework.core.visit import ForwardRecord


Gates = Sequence[Tensor | None] | None
"""One factor per returned tensor."""


def visit_part(
    record: ForwardRecord,
    key: PartKey,
    slot: Slot,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Ask about the sub-module and carry the decision out; gives what the block is to see as its return value."""
    site, policy = key.site, record.engine.policy
    streams = tuple([a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)])
    row = record.begin_visit(site, streams, RECOMPUTE)
    decision = policy.decide(record.state, record, site)
    if not isinstance(decision, (Recompute, Reuse, Forecast, Partial, Blend)):
        raise wrong_decision(policy, site, decision, "a sub-module", "Recompute, Reuse, Forecast, Blend or Partial")
    history = () if isinstance(decision, Recompute) else record.history(site)
    if not history and not isinstance(decision, (Recompute, Blend)):
        record.force(row)
        decision = DO_RECOMPUTE
    gate = _gate(record, key, site)
    if isinstance(decision, (Reuse, Forecast)):
        entry = record.last(site)
        assert entry is not None
        reuse = isinstance(decision, Reuse)
        value = decision.fn(history, record.step) if isinstance(decision, Forecast) else entry.value
        record.amend(row, REUSE if reuse else FORECAST, record.step.index - entry.step)
        return _as_output(_ungated(value, gate))
    if isinstance(decision, Partial):
        entry = record.last(site)
        assert entry is not None
        facts = key.block.bound.facts
        order = check_partial(facts, site, type(policy).__name__)
        num_video = _num_video_tokens(record)
        args, kwargs = cut_tables(args, kwargs, positions(module), facts.token_inputs, decision.index, num_video, site)
        index, num_tokens, args, kwargs = cut_first(args, kwargs, decision.index, order, num_video)
        fresh = _as_state(slot.call(module, args, kwargs))
        old = _ungated(entry.value, gate)
        # The index counts the first tensor's tokens; what else comes back (text) is fresh as a whole.
        merged = (put_tokens(old[0], fresh[0], index), *fresh[1:])
        record.amend(row, PARTIAL, record.step.index - entry.step, index.shape[-1] / num_tokens)
        record.store(site, _gated(merged, gate), None)
        return _as_output(merged)
    output = slot.call(module, args, kwargs)
    fresh = _gated(_as_state(output), gate)
    if isinstance(decision, Recompute):
        record.end_visit(row, site, streams, fresh, decision.keep, residual=False)
        return output
    entry = record.last(site)
    record.amend(row, BLEND, 0)
    record.end_visit(row, site, streams, fresh, decision.keep or entry is None, residual=False)
    if entry is None:
        return output
    blended = tuple(decision.weight * f + (1 - decision.weight) * c for f, c in zip(fresh, entry.value))
    return _as_output(_ungated(blended, gate))


def _num_video_tokens(record: ForwardCall) -> int:
    assert record.block is not None
    block, args, kwargs = record.block
    return block.streams(args, kwargs)[0].shape[1]


def video_tokens_at(record: ForwardCall, site: Site) -> Tensor:
    """See `Call.video_tokens`."""
    order = check_partial(record.engine.bound.blocks[site.start].facts, site, type(record.engine.policy).__name__)
    if not site.part.inside_block:
        return record.input()[0]
    return video_tokens(record.input(), order, _num_video_tokens(record))


def _gate(record: ForwardRecord, key: PartKey, site: Site) -> Gates:
    if record.block is None or record.engine.policy.gate_of(site) == "pre":
        return None
    block, args, kwargs = record.block
    positions = record.engine.block_positions(block.index)
    arguments = {**dict(zip(positions, args)), **kwargs}
    return record.engine.bound.adapter.gate(site.part, block.bound.module, arguments)


def _as_state(output: Any) -> State:
    return output if isinstance(output, tuple) else (output,)


def _as_output(value: State) -> Any:
    return value[0] if len(value) == 1 else value


def _gated(value: State, gates: Gates) -> State:
    return value if gates is None else tuple(v if g is None else g * v for v, g in zip(value, gates, strict=True))


def _ungated(value: State, gates: Gates) -> State:
    """What the sub-module must return so that the block's gates give `value`: exact up to rounding, 0 where a gate is."""
    if gates is None:
        return value
    return tuple(
        v if g is None else torch.where(g == 0, torch.zeros_like(v), v / g) for v, g in zip(value, gates, strict=True)
    )
