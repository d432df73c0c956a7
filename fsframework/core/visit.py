"""One forward of the model: what happens when execution comes to a block or a sub-module."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.adapter import BoundBlock
from fsframework.core.cache import Entry
from fsframework.core.decision import RECOMPUTE as DO_RECOMPUTE
from fsframework.core.decision import Blend, Decision, Forecast, Partial, Recompute, Reuse
from fsframework.core.meter import Meter
from fsframework.core.site import Part, Run, Site, State, Step
from fsframework.core.trace import BLEND, ELIMINATED, FORECAST, PARTIAL, RECOMPUTE, REUSE
from fsframework.core.wrap import Slot

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine

Restore = Callable[[State], State]


class BlockKey:
    """What the wrapper of one block needs: its sites, and where its streams are."""

    __slots__ = ("asked", "bound", "index", "positions", "regions", "site")

    def __init__(
        self, bound: BoundBlock, index: int, site: Site, asked: bool, regions: tuple[Site, ...], pos: Mapping[str, int]
    ) -> None:
        self.bound = bound
        self.index = index
        self.site = site
        self.asked = asked
        self.regions = regions
        self.positions = tuple((name, pos[name]) for name in bound.facts.streams)

    def streams(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> State:
        """The block's token streams, video first."""
        return tuple([kwargs[name] if name in kwargs else args[i] for name, i in self.positions])

    def pack(self, output: Any) -> State:
        """A return value as a State, video first."""
        facts = self.bound.facts
        if len(facts.returns) == 1:
            return (output[0],) if isinstance(output, tuple) else (output,)
        if facts.returns == facts.streams:
            return tuple(output[: len(facts.streams)])
        return tuple(output[facts.returns.index(name)] for name in facts.streams)

    def unpack(self, value: State) -> Any:
        """A State as the block would return it."""
        facts = self.bound.facts
        if len(facts.returns) == 1:
            return value[0]
        if facts.returns == facts.streams:
            return value
        return tuple(value[facts.streams.index(name)] for name in facts.returns)

    def replace(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], value: State
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments with other streams."""
        listed, named = list(args), dict(kwargs)
        for (name, i), stream in zip(self.positions, value):
            if name in named:
                named[name] = stream
            else:
                listed[i] = stream
        return tuple(listed), named


class PartKey:
    """What the wrapper of a sub-module needs: its site, and its block for the gate."""

    __slots__ = ("block", "site")

    def __init__(self, block: BlockKey, site: Site) -> None:
        self.block = block
        self.site = site


class ForwardRecord:
    """One forward of the model in one guidance branch. It is also the `Call` that policies see."""

    def __init__(
        self, engine: ReuseEngine, run: Run, step: Step, branch: str, state: Any, arguments: Mapping[str, Any]
    ) -> None:
        self.engine = engine
        self.run = run
        self.step = step
        self.branch = branch
        self.state = state
        self.meter: Meter = engine.meter
        self.num_samples = engine.bound.num_samples
        self.visited: set[int] = set()
        self._arguments = arguments
        self._policy = engine.policy
        self._cache = engine.cache
        self._trace = engine.recording
        self._residual = engine.policy.storage == "residual"
        self._streams: State = ()
        self._row = -1
        self._skip_to = -1
        self._skip_code = REUSE
        self._skip_lag = 0
        self._restore: Restore | None = None
        self._open: list[tuple[Site, int, State, bool]] = []
        self._plan: list[Decision] | None = None
        self._last_reused = -1
        self._block: tuple[BlockKey, tuple[Any, ...], dict[str, Any]] | None = None

    # What a policy may ask (see `Call`).

    def history(self, site: Site) -> Sequence[Entry]:
        """See `Call.history`."""
        return self._cache.history(self.branch, site)

    def input(self) -> State:
        """See `Call.input`."""
        return self._streams

    def probe(self, name: str) -> Tensor:
        """See `Call.probe`."""
        return self.engine.bound.adapter.probe(name, self.engine.bound.transformer, self._arguments)

    def state_of(self, branch: str) -> object | None:
        """See `Call.state_of`."""
        return self.engine.state_of(branch)

    def log(self, distance: Tensor | float | None = None, threshold: Tensor | float | None = None) -> None:
        """See `Call.log`."""
        if self._trace is None or self._row < 0:
            return
        if distance is not None:
            self._trace.log("distance", self._row, distance)
        if threshold is not None:
            self._trace.log("threshold", self._row, threshold)

    # What the engine does.

    def plan(self, keys: Sequence[BlockKey]) -> None:
        """Ask for all blocks now, so that what a later reuse would throw away need not run."""
        self._plan = [DO_RECOMPUTE] * len(keys)
        for key in keys:
            if not key.asked:
                continue
            decision = self._policy.decide(self.state, self, key.site)
            self._plan[key.index] = decision
            if isinstance(decision, (Reuse, Forecast)):
                target = (decision.through if isinstance(decision, Reuse) else None) or key.site
                if self._cache.last(self.branch, target) is not None:
                    self._last_reused = max(self._last_reused, target.start)

    def visit(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execution has come to a wrapped module."""
        key = slot.key
        if isinstance(key, PartKey):
            return self._visit_part(key, slot, module, args, kwargs)
        if self.engine.timing:
            trace, started = self._trace, time.perf_counter()
            first = len(trace) if trace is not None else 0
            output = self._visit_block(key, slot, module, args, kwargs)
            if trace is not None:
                row = next(i for i in range(first, len(trace)) if trace.site[i] is key.site)
                trace.seconds[row] = time.perf_counter() - started
            return output
        return self._visit_block(key, slot, module, args, kwargs)

    def _visit_block(
        self, key: BlockKey, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        index = key.index
        self.visited.add(index)
        streams = self._streams = key.streams(args, kwargs)
        if index <= self._skip_to:
            self._record(key.site, self._skip_code, self._skip_lag)
            return self._pass_over(key, streams)
        for region in key.regions:
            decision = self._policy.decide(self.state, self, region)
            if not isinstance(decision, Recompute):
                if self._enter_region(region, decision, streams):
                    self._record(key.site, self._skip_code, self._skip_lag)
                    return self._pass_over(key, streams)
            else:
                self._open.append((region, self._record(region, RECOMPUTE, 0), streams, decision.keep))
        if not key.asked:
            self._record(key.site, RECOMPUTE, 0)
            decision = DO_RECOMPUTE
        elif self._plan is not None:
            decision = self._plan[index]
            if index < self._last_reused and not isinstance(decision, Reuse):
                self._record(key.site, ELIMINATED, 0)
                return key.unpack(streams)
            if index < self._last_reused and isinstance(decision, Reuse) and decision.through is None:
                entry = self._cache.last(self.branch, key.site)
                self._record(key.site, REUSE if entry else ELIMINATED, self.step.index - entry.step if entry else 0)
                return key.unpack(streams)  # a later reuse replaces it: the value need not be put in place
            self._record(key.site, RECOMPUTE, 0)
        else:
            self._record(key.site, RECOMPUTE, 0)
            decision = self._policy.decide(self.state, self, key.site)
        output, value = self._apply(key, decision, slot, module, args, kwargs, streams)
        if self._open:
            self._close_regions(index, value)
        return output

    def _apply(
        self,
        key: BlockKey,
        decision: Decision,
        slot: Slot,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        streams: State,
    ) -> tuple[Any, State]:
        """Carry out a decision about a block; gives (return value, streams)."""
        site = key.site
        row = self._row
        if type(decision) is Reuse:
            target = decision.through or site
            entry = self._cache.last(self.branch, target)
            if entry is not None:
                if decision.through is not None:
                    self._begin_jump(site, target, entry)
                    self._amend(row, REUSE, self.step.index - entry.step)
                    value = self._pass_over_value(key.index, streams)
                else:
                    value = self._stored(site, entry, streams)
                    self._amend(row, REUSE, self.step.index - entry.step)
                return key.unpack(value), value
            self._force(row)
        elif isinstance(decision, Forecast):
            history = self._cache.history(self.branch, site)
            if history:
                value = decision.fn(history, self.step)
                if self._residual:
                    value = tuple(x + r for x, r in zip(streams, value))
                self._amend(row, FORECAST, self.step.index - history[-1].step)
                return key.unpack(value), value
            self._force(row)
        elif isinstance(decision, Partial):
            entry = self._cache.last(self.branch, site)
            if entry is not None:
                cached = self._stored(site, entry, streams)
                value = self._run_tokens(key, decision.index, slot, module, args, kwargs, streams, cached)
                self._amend(row, PARTIAL, self.step.index - entry.step)
                self._share(row, decision.index.shape[-1] / streams[0].shape[1])
                self._store(site, value, streams)
                return key.unpack(value), value
            self._force(row)
        elif not isinstance(decision, (Recompute, Blend)):
            raise TypeError(
                f"{type(self._policy).__name__}.decide({site}) gave {decision!r}, which no block can carry out"
            )
        outer, self._block = self._block, (key, args, kwargs)
        output = slot.call(module, args, kwargs)
        self._block = outer
        fresh = key.pack(output)
        if not key.asked:
            return output, fresh
        self._row, self._streams = row, streams
        cached_entry = self._cache.last(self.branch, site)
        self._policy.observe(self.state, self, site, fresh, cached_entry)
        if isinstance(decision, Blend):
            self._amend(row, BLEND, 0)
            value = fresh
            if cached_entry is not None:
                old = self._stored(site, cached_entry, streams)
                value = tuple(decision.weight * f + (1 - decision.weight) * o for f, o in zip(fresh, old))
            if decision.keep or cached_entry is None:
                self._store(site, fresh, streams)
            return key.unpack(value), value
        if not isinstance(decision, Recompute) or decision.keep:
            self._store(site, fresh, streams)
        return output, fresh

    # Regions and jumps: pass over several blocks, then put a value in place at the last.

    def _enter_region(self, region: Site, decision: Decision, streams: State) -> bool:
        """Start passing over a TRUNK or SPAN. False if nothing is cached: the region is run, forced."""
        history = self._cache.history(self.branch, region)
        if not history:
            row = self._record(region, RECOMPUTE, 0)
            self._force(row)
            self._open.append((region, row, streams, True))
            return False
        entry = history[-1]
        self._cache.check(entry, region)
        if isinstance(decision, Reuse) and decision.through is None:
            code, value = REUSE, entry.value
        elif isinstance(decision, Forecast):
            code, value = FORECAST, decision.fn(history, self.step)
        else:
            raise TypeError(
                f"{type(self._policy).__name__}.decide({region}) gave {decision!r}; a region takes Reuse or Forecast"
            )
        lag = self.step.index - entry.step
        self._record(region, code, lag)
        bound, last = self.engine.bound, region.stop - 1
        if self._residual:
            entered = bound.to_canonical(region.start, streams)
            value = bound.from_canonical(last, tuple(x + r for x, r in zip(entered, value)))
        self._skip_to, self._skip_code, self._skip_lag = last, code, lag
        self._restore = lambda _streams: value
        return True

    def _close_regions(self, index: int, value: State) -> None:
        """Observe and store the regions that end with block `index`; forget those a jump went beyond."""
        while self._open and self._open[-1][0].stop <= index + 1:
            region, row, entered, keep = self._open.pop()
            if region.stop <= index:
                continue
            self._row, self._streams = row, entered
            self._policy.observe(self.state, self, region, value, self._cache.last(self.branch, region))
            if not keep:
                continue
            if self._residual:
                bound = self.engine.bound
                before, after = bound.to_canonical(region.start, entered), bound.to_canonical(index, value)
                self._put(region, tuple(y - x for x, y in zip(before, after)))
            else:
                self._put(region, value)

    def _begin_jump(self, site: Site, target: Site, entry: Entry) -> None:
        if self._residual:
            raise ValueError(
                f"{type(self._policy).__name__} jumps from {site} through {target}; a jump needs storage='output'"
            )
        if target.part is not Part.BLOCK or target.start < site.start:
            raise ValueError(
                f"{type(self._policy).__name__} jumps from {site} through {target}; a jump ends at a block at or after its start"
            )
        self._cache.check(entry, target)
        value = entry.value
        self._skip_to, self._skip_code = target.start, REUSE
        self._skip_lag = self.step.index - entry.step
        self._restore = lambda _streams: value

    def _pass_over(self, key: BlockKey, streams: State) -> Any:
        return key.unpack(self._pass_over_value(key.index, streams))

    def _pass_over_value(self, index: int, streams: State) -> State:
        if index < self._skip_to:
            return streams
        assert self._restore is not None
        restore, self._restore, self._skip_to = self._restore, None, -1
        value = restore(streams)
        if self._open:
            self._close_regions(index, value)
        return value

    # Sub-modules: what they return is what they add, so the cache keeps their output.

    def _visit_part(
        self, key: PartKey, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        site = key.site
        self._streams = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        row = self._record(site, RECOMPUTE, 0)
        decision = self._policy.decide(self.state, self, site)
        history = () if isinstance(decision, (Recompute, Blend)) else self._cache.history(self.branch, site)
        if not isinstance(decision, (Recompute, Blend)) and not history:
            self._force(row)
            decision = DO_RECOMPUTE
        gate = self._gate(site)
        if isinstance(decision, (Reuse, Forecast)):
            self._cache.check(history[-1], site)
            reuse = isinstance(decision, Reuse)
            value = history[-1].value if isinstance(decision, Reuse) else decision.fn(history, self.step)
            self._amend(row, REUSE if reuse else FORECAST, self.step.index - history[-1].step)
            return _as_output(_ungated(value, gate))
        if isinstance(decision, Partial):
            self._cache.check(history[-1], site)
            tokens = self._streams[0].shape[1]
            output = slot.call(module, *_pick_tokens(args, kwargs, decision.index, tokens))
            part = tuple(t for t in (output if isinstance(output, tuple) else (output,)))
            merged = tuple(
                _put_tokens(old, new, decision.index) for old, new in zip(_ungated(history[-1].value, gate), part)
            )
            self._amend(row, PARTIAL, self.step.index - history[-1].step)
            self._share(row, decision.index.shape[-1] / tokens)
            self._put(site, _gated(merged, gate))
            return _as_output(merged)
        output = slot.call(module, args, kwargs)
        fresh = _gated(output if isinstance(output, tuple) else (output,), gate)
        self._row = row
        cached = self._cache.last(self.branch, site)
        self._policy.observe(self.state, self, site, fresh, cached)
        if isinstance(decision, Blend):
            self._amend(row, BLEND, 0)
            blended = fresh
            if cached is not None:
                blended = tuple(decision.weight * f + (1 - decision.weight) * c for f, c in zip(fresh, cached.value))
            if decision.keep or cached is None:
                self._put(site, fresh)
            return _as_output(_ungated(blended, gate))
        if not isinstance(decision, Recompute):
            raise TypeError(
                f"{type(self._policy).__name__}.decide({site}) gave {decision!r}, which no sub-module can carry out"
            )
        if decision.keep:
            self._put(site, fresh)
        return output

    def _gate(self, site: Site) -> Tensor | None:
        if self._policy.gate == "pre" or self._block is None:
            return None
        key, args, kwargs = self._block
        names = {i: name for name, i in self.engine.block_positions(key.index).items()}
        arguments = {**{names[i]: a for i, a in enumerate(args)}, **kwargs}
        return self.engine.bound.adapter.gate(site.part, key.bound.module, arguments)

    # Tokens.

    def _run_tokens(
        self,
        key: BlockKey,
        index: Tensor,
        slot: Slot,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        streams: State,
        cached: State,
    ) -> State:
        few = (_take_tokens(streams[0], index), *streams[1:])
        args, kwargs = key.replace(args, kwargs, few)
        for name in key.bound.facts.token_inputs:
            if kwargs.get(name) is not None:
                if index.ndim != 1:
                    raise ValueError(
                        f"{key.site} has a table per token ({name}): Partial needs the same tokens for the whole batch"
                    )
                kwargs[name] = tuple(table.index_select(0, index) for table in kwargs[name])
        fresh = key.pack(slot.call(module, args, kwargs))
        return (_put_tokens(cached[0], fresh[0], index), *fresh[1:])

    # The cache and the trace.

    def _stored(self, site: Site, entry: Entry, streams: State) -> State:
        self._cache.check(entry, site)
        if not self._residual:
            return entry.value
        return tuple([x + r for x, r in zip(streams, entry.value)])

    def _store(self, site: Site, value: State, streams: State) -> None:
        self._put(site, tuple([y - x for x, y in zip(streams, value)]) if self._residual else value)

    def _put(self, site: Site, value: State) -> None:
        if torch.is_grad_enabled():
            value = tuple(t.detach() for t in value)
        self._cache.put(self.branch, site, self.step.index, value)

    def _record(self, site: Site, code: int, lag: int) -> int:
        if self._trace is None:
            return -1
        row = self._row = self._trace.append(self.step.index, self.branch, site, code)
        if lag:
            self._trace.lag[row] = lag
        return row

    def _amend(self, row: int, code: int, lag: int) -> None:
        if self._trace is not None:
            self._trace.decision[row] = code
            self._trace.lag[row] = lag

    def _force(self, row: int) -> None:
        if self._trace is not None:
            self._trace.forced[row] = True

    def _share(self, row: int, share: float) -> None:
        if self._trace is not None:
            self._trace.share[row] = share


def _as_output(value: State) -> Any:
    return value[0] if len(value) == 1 else value


def _gated(value: State, gate: Tensor | None) -> State:
    return value if gate is None else (gate * value[0], *value[1:])


def _ungated(value: State, gate: Tensor | None) -> State:
    """What the sub-module must return so that the block's gate gives `value`; exact up to rounding, 0 where the gate is."""
    if gate is None:
        return value
    return (torch.where(gate == 0, torch.zeros_like(value[0]), value[0] / gate), *value[1:])


def _take_tokens(x: Tensor, index: Tensor) -> Tensor:
    if index.ndim == 1:
        return x.index_select(1, index)
    return x.gather(1, index[..., None].expand(*index.shape, x.shape[-1]))


def _put_tokens(whole: Tensor, few: Tensor, index: Tensor) -> Tensor:
    if index.ndim == 1:
        return whole.index_copy(1, index, few)
    return whole.scatter(1, index[..., None].expand(*index.shape, whole.shape[-1]), few)


def _pick_tokens(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, tokens: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A sub-module's arguments with only some tokens of its first tensor."""
    listed, named = list(args), dict(kwargs)
    for i, value in enumerate(listed):
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == tokens:
            listed[i] = _take_tokens(value, index)
            return tuple(listed), named
    for name, value in named.items():
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == tokens:
            named[name] = _take_tokens(value, index)
            break
    return tuple(listed), named
