"""`ForwardRecord`: one forward of the model; what happens when execution comes to a block or a sub-module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.cache import Entry, versions
from fsframework.core.decision import RECOMPUTE as DO_RECOMPUTE
from fsframework.core.decision import Blend, Decision, Forecast, Partial, Recompute, Reuse, wrong_decision
from fsframework.core.keys import BlockKey, PartKey
from fsframework.core.meter import Meter
from fsframework.core.part_visit import video_tokens_at, visit_part
from fsframework.core.policy import ReusePolicy
from fsframework.core.site import Branch, Part, Run, Site, State, Step
from fsframework.core.tokens import check_partial, cut_tables, put_tokens, take_tokens
from fsframework.core.trace import BLEND, ELIMINATED, FORECAST, PARTIAL, RECOMPUTE, REUSE
from fsframework.core.wrap import Slot, positions

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine

NO_ARGUMENTS: dict[str, Any] = {}
"""In place of a block's arguments while there is none."""


class ForwardRecord:
    """One forward of the model in one guidance branch. It is also the `Call` that policies see.

    `visit` is the hot path: what a block costs when nothing is reused is what it does there. So it is written out, does
    not build what nobody asks for, and leaves whatever is not an ordinary recompute or reuse of one block to others.
    `tests/core/test_cost.py` counts its instructions.
    """

    __slots__ = (
        "_args", "_cache", "_decide", "_decisions", "_held", "_key", "_kwargs", "_lags", "_last_reused", "_next",
        "_observe", "_open", "_ordinary", "_plan", "_planning", "_policy", "_residual_sites", "_restored", "_row",
        "_rows", "_sites", "_skip_code", "_skip_lag", "_skip_to", "_slot_keys", "_streams", "_suspended", "_trace",
        "_within", "arguments", "block", "branch", "engine", "meter", "num_samples", "part", "run", "state", "step",
        "visited",
    )  # fmt: skip

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
        self.visited = bytearray(len(engine.bound.blocks))
        """1 for each block that came by."""
        self.block: tuple[BlockKey, tuple[Any, ...], dict[str, Any]] | None = None
        """The block being run, with its arguments: for the gates of its sub-modules. Only where there are such sites."""
        self.part: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
        """The sub-module being visited, with its arguments: for its probes."""
        self.arguments = arguments
        """The model's, by name; only one half of the batch where that half is run alone."""
        # The block that execution has come to.
        self._key: BlockKey | None = None
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        latent = arguments[engine.bound.adapter.latent_input]
        self._streams: State | None = (latent,) if isinstance(latent, Tensor) else tuple(latent)
        """The streams entering the site that is asked about; None: the block's, taken from its arguments when needed."""
        self._suspended = False
        self._slot_keys = engine.slot_keys
        timed = engine.timing and engine.recording is not None
        self._ordinary = {} if timed or engine.bound.has_concatenated else engine.ordinary_keys
        """The blocks that `visit` deals with itself."""
        self._residual_sites = engine.residual_sites
        policy = self._policy = engine.policy
        self._decide = policy.decide
        self._observe = policy.observe if type(policy).observe is not ReusePolicy.observe else None
        self._cache = engine.cache
        self._within = engine.has_part_sites
        self._held: dict[Site, list[tuple[str, Tensor | float]]] = {}
        self._planning: Site | None = None
        # Rows of the trace. `_next` is the number of the next one; the columns are long enough already.
        trace = self._trace = engine.recording
        self._row = -1
        self._rows = engine.rows_per_forward
        self._next = -1 if trace is None else trace.begin(step.index, branch, self._rows)
        self._sites = [] if trace is None else trace.site
        self._decisions = [] if trace is None else trace.decision
        self._lags = [] if trace is None else trace.lag
        # Passing over blocks, up to and including _skip_to, where _restored is put in place.
        self._skip_to = -1
        self._skip_code = REUSE
        self._skip_lag = 0
        self._restored: State = ()
        self._open: list[tuple[Site, int, State, tuple[int, ...], bool]] = []
        self._plan: list[Decision] | None = None
        self._last_reused = -1

    # What a policy may ask.

    def history(self, site: Site, branch: str | None = None) -> Sequence[Entry]:
        """See `Call.history`. Every entry is checked not to have been written to."""
        entries = self._cache.history(branch or self.branch, site)
        for entry in entries:
            self._cache.check(entry, site)
        return entries

    def predictions(self) -> Mapping[str, Tensor]:
        """See `Call.predictions`."""
        found = dict(self.engine.predictions)
        if Branch.JOINT in found and self.run.facts.get("guided"):
            halves = found.pop(Branch.JOINT).chunk(2)
            found.update(zip(self.engine.bound.adapter.batch_order, halves))
        return found

    def input(self) -> State:
        """See `Call.input`."""
        streams = self._streams
        if streams is None:
            assert self._key is not None
            streams = self._streams = self._key.streams(self._args, self._kwargs)
        return streams

    def canonical(self, site: Site, value: State) -> State:
        """See `Call.canonical`."""
        return value if site.part in (Part.TRUNK, Part.SPAN) else self.engine.bound.to_canonical(site.start, value)

    def probe(self, name: str) -> Tensor:
        """See `Call.probe`."""
        adapter = self.engine.bound.adapter
        if self.part is not None and name in adapter.part_probes:
            module, own_args, own_kwargs = self.part
            return adapter.part_probes[name](module, {**dict(zip(positions(module), own_args)), **own_kwargs})
        block: dict[str, Any] = {}
        if (key := self._key) is not None:
            if name in adapter.block_probes and key.index > 0:
                raise ValueError(
                    f"the probe {name!r} is about the first block's arguments and can not be asked at {key.site}; ask it "
                    f"at the trunk, or at the first block"
                )
            block = {**dict(zip(self.engine.block_positions(key.index), self._args)), **self._kwargs}
        return adapter.probe(name, self.engine.bound.transformer, self.arguments, block)

    def video_tokens(self, site: Site) -> Tensor:
        """See `Call.video_tokens`."""
        return video_tokens_at(self, site)

    def state_of(self, branch: str) -> object | None:
        """See `Call.state_of`."""
        return self.engine.state_of(branch)

    def keep(self, name: str, value: State) -> None:
        """See `Call.keep`."""
        self._cache.keep(self.branch, name, self.step.index, value)

    def kept(self, name: str) -> State | None:
        """See `Call.kept`."""
        return self._cache.kept(self.branch, name)

    def log(
        self, distance: Tensor | float | None = None, threshold: Tensor | float | None = None, **more: Tensor | float
    ) -> None:
        """See `Call.log`."""
        trace = self._trace
        if trace is None:
            return
        if self._planning is not None:
            given = {"distance": distance, "threshold": threshold, **more}
            held = self._held.setdefault(self._planning, [])
            held += [(column, value) for column, value in given.items() if value is not None]
            return
        row = self._row
        if row < 0:
            return
        if distance is not None:
            trace.distance[row] = distance
        if threshold is not None:
            trace.threshold[row] = threshold
        for column in more:
            trace.log(column, row, more[column])

    # Rows of the trace, and the cache.

    def begin_visit(self, site: Site, streams: State, code: int, lag: int = 0) -> int:
        """Start a row for `site`; gives its number, -1 without a trace."""
        self._streams = streams
        trace = self._trace
        if trace is None:
            return -1
        row = self._row = self._next
        self._next = row + 1
        if row == len(trace.site):
            self._lengthen()
        trace.site[row] = site
        trace.decision[row] = code
        trace.lag[row] = lag
        if self._held:
            for column, value in self._held.pop(site, ()):
                trace.log(column, row, value)
        return row

    def _lengthen(self) -> None:
        """More rows than were prepared for: the model comes to a block more than once in a forward."""
        assert self._trace is not None
        self._trace.begin(self.step.index, self.branch, self._rows)

    def close(self) -> None:
        """The forward is over: give back the rows of the trace that were not needed."""
        if self._trace is not None:
            self._trace.end(self._next)

    @property
    def num_rows(self) -> int:
        """Rows of the trace so far, -1 without one."""
        return self._next

    def amend(self, row: int, code: int, lag: int, share: float | None = None) -> None:
        """Say what was really done at a row."""
        if self._trace is not None:
            self._trace.decision[row] = code
            self._trace.lag[row] = lag
            if share is not None:
                self._trace.share[row] = share

    def force(self, row: int) -> None:
        """Mark a row: the policy wanted to reuse, but nothing was cached."""
        if self._trace is not None:
            self._trace.forced[row] = True

    def end_visit(self, row: int, site: Site, streams: State, fresh: State, keep: bool, residual: bool = True) -> None:
        """`site` really ran: let the policy observe, then store, as a residual if the policy wants and the part can."""
        self._row, self._streams = row, streams
        if self._observe is not None and self._observe(self.state, self, site, fresh, self.last(site)) is False:
            keep = False
        if keep:
            self.store(site, fresh, streams if residual else None)

    def store(self, site: Site, value: State, streams: State | None) -> None:
        """Put a value into the cache; minus `streams` where residuals are stored."""
        if streams is not None and site in self._residual_sites:
            value = tuple([y - x for x, y in zip(streams, value)])
        if torch.is_grad_enabled():
            value = tuple(t.detach() for t in value)
        self._cache.put(self.branch, site, self.step.index, value)

    def last(self, site: Site) -> Entry | None:
        """The newest cached value, checked not to have been written to."""
        entry = self._cache.last(self.branch, site)
        if entry is not None:
            self._cache.check(entry, site)
        return entry

    # Blocks.

    def plan(self, keys: Sequence[BlockKey]) -> None:
        """Ask for all blocks now, so that what a later reuse would throw away need not run."""
        self._ordinary = {}
        self._plan = [DO_RECOMPUTE] * len(keys)
        for key in keys:
            if not key.asked:
                continue
            self._planning = key.site
            decision = self._policy.decide(self.state, self, key.site)
            self._planning = None
            self._plan[key.index] = decision
            if isinstance(decision, (Reuse, Forecast)):
                target = _through(decision) or key.site
                if self._cache.step_of(self.branch, target) is not None:
                    self._last_reused = max(self._last_reused, target.start)

    def visit(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execution has come to a wrapped module."""
        key = self._ordinary.get(slot)
        if key is None or key.index <= self._skip_to:
            return self._visit_other(slot, module, args, kwargs)
        site = key.site
        self.visited[key.index] = 1
        self._key = key
        self._args = args
        self._kwargs = kwargs
        self._streams = None
        row = self._next
        if row >= 0:
            self._row = row
            self._next = row + 1
            try:
                self._sites[row] = site
            except IndexError:
                self._lengthen()
                self._sites[row] = site
        decision = self._decide(self.state, self, site)
        if type(decision) is Recompute:
            entered = versions(self.input()) if key.residual else ()
            if self._within:
                outer, self.block = self.block, (key, args, kwargs)
            # As `slot.call`.
            original = slot.original
            output = type(module).forward(module, *args, **kwargs) if original is None else original(*args, **kwargs)
            if self._within:
                self.block = outer
            if decision.keep or self._observe is not None or self._open or not key.has_run:
                self._keep_output(key, row, args, kwargs, entered, output, decision.keep)
        elif (
            type(decision) is Reuse
            and decision.through is None
            and not key.residual
            and (entry := self.last(site)) is not None
        ):
            if row >= 0:
                self._decisions[row] = REUSE
                self._lags[row] = self.step.index - entry.step
            output = key.unpack(entry.value)
            if self._open:
                self._close_regions(key.index, entry.value)
        else:
            value = self._put_in_place(key, row, decision, slot, module, args, kwargs, self.input())
            output = key.unpack(value)
            if self._open:
                self._close_regions(key.index, value)
        # Or a block's input would live on, and its memory could not be used again.
        self._key = None
        self._args = ()
        self._kwargs = NO_ARGUMENTS
        self._streams = ()
        return output

    def _keep_output(
        self,
        key: BlockKey,
        row: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        entered: tuple[int, ...],
        output: Any,
        keep: bool,
    ) -> None:
        """A block ran: look at what it gave, let the policy observe it, store it."""
        value = key.pack(output)
        key.has_run = True
        streams = key.streams(args, kwargs) if key.residual else None
        if streams is not None:
            _check_unwritten(key.site, streams, entered)
        if self._observe is not None:
            # Sub-modules, or blocks inside this one, may have come by in the meantime.
            self._row, self._key, self._args, self._kwargs, self._streams = row, key, args, kwargs, None
            if self._observe(self.state, self, key.site, value, self.last(key.site)) is False:
                keep = False
        if keep:
            self.store(key.site, value, streams)
        if self._open:
            self._close_regions(key.index, value)

    def _visit_other(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What is not ordinary: sub-modules, regions, jumps, plans, blocks that are not asked about, visits that are timed."""
        key = self._slot_keys.get(slot)
        if key is None:  # wrapped for a session of another thread
            return slot.call(module, args, kwargs)
        if isinstance(key, PartKey):
            if self._suspended:
                return slot.call(module, args, kwargs)
            self.part = (module, args, kwargs)
            output = visit_part(self, key, slot, module, args, kwargs)
            self.part = None
            return output
        trace, first, started = self._trace, self._next, time.perf_counter()
        output = self._visit_block(key, slot, module, args, kwargs)
        self._key, self._args, self._kwargs, self._streams = None, (), NO_ARGUMENTS, ()
        if self.engine.timing and trace is not None:
            row = next(i for i in range(first, self._next) if trace.site[i] is key.site)
            trace.seconds[row] = time.perf_counter() - started
        return output

    def _visit_block(
        self, key: BlockKey, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        index = key.index
        self.visited[index] = 1
        streams = key.streams(args, kwargs)
        if index == 0 and self.engine.bound.has_concatenated:
            self.engine.bound.note_lengths(streams)
        self._key, self._args, self._kwargs = key, args, kwargs
        if index <= self._skip_to:
            self.begin_visit(key.site, streams, self._skip_code, self._skip_lag)
            return key.unpack(self._pass_over(index, streams))
        for region in key.regions:
            if self._ask_region(region, streams):
                self.begin_visit(key.site, streams, self._skip_code, self._skip_lag)
                return key.unpack(self._pass_over(index, streams))
        if index < self._last_reused:
            self._pass_dead(key, streams)
            return key.unpack(streams)
        row = self.begin_visit(key.site, streams, RECOMPUTE)
        if not key.asked:
            decision: Decision = DO_RECOMPUTE
        elif self._plan is not None:
            decision = self._plan[index]
        else:
            decision = self._decide(self.state, self, key.site)
        if type(decision) is Recompute:
            entered = versions(streams) if key.residual else None
            outer, self.block = self.block, (key, args, kwargs)
            output = slot.call(module, args, kwargs)
            self.block = outer
            self._key, self._args, self._kwargs = key, args, kwargs
            value = key.pack(output)
            if key.asked:
                if entered is not None:
                    _check_unwritten(key.site, streams, entered)
                self.end_visit(row, key.site, streams, value, decision.keep)
        else:
            value = self._put_in_place(key, row, decision, slot, module, args, kwargs, streams)
            output = key.unpack(value)
        if self._open:
            self._close_regions(index, value)
        return output

    def _pass_dead(self, key: BlockKey, streams: State) -> None:
        """A later reuse throws this block's result away: it is neither run nor restored."""
        assert self._plan is not None
        decision = self._plan[key.index]
        wanted = isinstance(decision, (Reuse, Forecast))
        computed_at = self._cache.step_of(self.branch, key.site) if wanted else None
        if computed_at is None:
            self.begin_visit(key.site, streams, ELIMINATED)
        else:
            code = REUSE if isinstance(decision, Reuse) else FORECAST
            self.begin_visit(key.site, streams, code, self.step.index - computed_at)

    def _put_in_place(
        self,
        key: BlockKey,
        row: int,
        decision: Decision,
        slot: Slot,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        streams: State,
    ) -> State:
        """Carry out a decision other than Recompute."""
        site = key.site
        if type(decision) is Reuse:
            entry = self.last(decision.through or site)
            if entry is not None:
                self.amend(row, REUSE, self.step.index - entry.step)
                if decision.through is None:
                    return self._value(site, entry, streams)
                return self._jump(key.index, site, decision.through, REUSE, entry.step, entry.value, streams)
        elif isinstance(decision, Forecast):
            through = _through(decision)
            history = self.history(through or site)
            if history:
                self.amend(row, FORECAST, self.step.index - history[-1].step)
                forecast = decision.fn(history, self.step)
                if through is not None:
                    return self._jump(key.index, site, through, FORECAST, history[-1].step, forecast, streams)
                residual = site in self._residual_sites
                return tuple(x + r for x, r in zip(streams, forecast)) if residual else forecast
        elif isinstance(decision, Partial):
            facts = key.bound.facts
            check_partial(facts, site, type(self._policy).__name__)
            entry = self.last(site)
            if entry is not None:
                few = (take_tokens(streams[0], decision.index), *streams[1:])
                where = self.engine.block_positions(key.index)
                args, kwargs = cut_tables(
                    args, kwargs, where, facts.token_inputs, decision.index, streams[0].shape[1], site
                )
                self._suspended = True  # sub-modules see some tokens only: nothing of it may enter their caches
                fresh = key.pack(slot.call(module, *key.replace(args, kwargs, few)))
                self._suspended = False
                value = (put_tokens(self._value(site, entry, streams)[0], fresh[0], decision.index), *fresh[1:])
                share = decision.index.shape[-1] / streams[0].shape[1]
                self.amend(row, PARTIAL, self.step.index - entry.step, share)
                self.store(site, value, streams)
                return value
        elif not isinstance(decision, Blend):
            raise wrong_decision(
                self._policy, site, decision, "a block", "Recompute, Reuse, Forecast, Blend or Partial"
            )
        entry = self.last(site)
        if not isinstance(decision, Blend):
            self.force(row)
        outer, self.block = self.block, (key, args, kwargs)
        fresh = key.pack(slot.call(module, args, kwargs))
        self.block = outer
        self._key, self._args, self._kwargs = key, args, kwargs
        if not isinstance(decision, Blend):
            self.end_visit(row, site, streams, fresh, keep=True)
            return fresh
        self.amend(row, BLEND, 0)
        self.end_visit(row, site, streams, fresh, keep=decision.keep or entry is None)
        if entry is None:
            return fresh
        old = self._value(site, entry, streams)
        return tuple(decision.weight * f + (1 - decision.weight) * o for f, o in zip(fresh, old))

    def _value(self, site: Site, entry: Entry, streams: State) -> State:
        if site not in self._residual_sites:
            return entry.value
        return tuple([x + r for x, r in zip(streams, entry.value)])

    # Regions and jumps: pass over several blocks, then put a value in place at the last.

    def _ask_region(self, region: Site, streams: State) -> bool:
        """Ask about a TRUNK or SPAN that starts here. True: its blocks are passed over from now on."""
        bound, last = self.engine.bound, region.stop - 1
        entered = bound.to_canonical(region.start, streams)
        row = self.begin_visit(region, entered, RECOMPUTE)
        decision = self._policy.decide(self.state, self, region)
        if isinstance(decision, Recompute):
            self._open.append((region, row, entered, versions(entered), decision.keep))
            return False
        if not isinstance(decision, (Reuse, Forecast)) or decision.through is not None:
            raise wrong_decision(self._policy, region, decision, "a region", "Recompute, Reuse or Forecast")
        history = self.history(region)
        if not history:
            self.force(row)
            self._open.append((region, row, entered, versions(entered), True))
            return False
        entry = history[-1]
        if isinstance(decision, Reuse):
            code, value = REUSE, entry.value
        else:
            code, value = FORECAST, decision.fn(history, self.step)
        lag = self.step.index - entry.step
        self.amend(row, code, lag)
        if region in self._residual_sites:
            value = tuple(x + r for x, r in zip(entered, value))
        value = bound.from_canonical(last, value)
        self._skip_to, self._skip_code, self._skip_lag, self._restored = last, code, lag, value
        return True

    def _jump(
        self, index: int, site: Site, target: Site, code: int, computed_at: int, value: State, streams: State
    ) -> State:
        name = type(self._policy).__name__
        if target in self._residual_sites:
            raise ValueError(f"{name} jumps from {site} through {target}; a jump needs storage='output'")
        if target.part is not Part.BLOCK or target.start < site.start:
            raise ValueError(f"{name} jumps from {site} through {target}; a jump ends at a block at or after its start")
        if target.start > index:
            self.engine.bound.check_passable(index, target.start + 1, name)
        self._skip_to, self._skip_code, self._restored = target.start, code, value
        self._skip_lag = self.step.index - computed_at
        return self._pass_over(index, streams)

    def _pass_over(self, index: int, streams: State) -> State:
        """The value of a block that is passed over: its input, or at the end what is restored."""
        if index < self._skip_to:
            return streams
        value, self._restored, self._skip_to = self._restored, (), -1
        if self._open:
            self._close_regions(index, value)
        return value

    def check_restored(self) -> None:
        """At the end of the model's forward: whatever was passed over must have been put in place."""
        if self._skip_to >= 0:
            site = self.engine.bound.block_site(self._skip_to)
            raise RuntimeError(
                f"blocks were passed over up to {site}, but the model did not come to that block, so nothing was put in "
                f"place. The model skips blocks of its own accord; leave those out of the policy's range."
            )

    def _close_regions(self, index: int, value: State) -> None:
        """Observe and store the regions that end with block `index`; forget those a jump went beyond."""
        bound = self.engine.bound
        while self._open and self._open[-1][0].stop <= index + 1:
            region, row, entered, unwritten, keep = self._open.pop()
            if region.stop <= index:
                continue
            if region in self._residual_sites:
                _check_unwritten(region, entered, unwritten)
            self.end_visit(row, region, entered, bound.to_canonical(index, value), keep)


def _through(decision: Decision) -> Site | None:
    """The block that a decision jumps to, if any."""
    return decision.through if isinstance(decision, (Reuse, Forecast)) else None


def _check_unwritten(site: Site, streams: State, before: tuple[int, ...]) -> None:
    """Raise if a site's input was written to while it ran: its residual would be taken from the wrong tensor."""
    if versions(streams) != before:
        raise RuntimeError(
            f"the input of site {site} was modified in place while it ran, so its residual can not be taken. The model "
            f"writes into a block's input; clone it there, or store outputs (storage='output')."
        )
