"""`ForwardRecord`: one forward of the model; what happens when execution comes to a block or a sub-module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fsframework.core.cache import versions
from fsframework.core.decision import RECOMPUTE as DO_RECOMPUTE
from fsframework.core.decision import Decision, Forecast, Recompute, Reuse
from fsframework.core.keys import BlockKey, PartKey
from fsframework.core.part_visit import visit_part
from fsframework.core.placing import Placing, check_unwritten, jump_target
from fsframework.core.site import Run, State, Step
from fsframework.core.trace import ELIMINATED, FORECAST, RECOMPUTE, REUSE
from fsframework.core.wrap import Slot

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine


class ForwardRecord(Placing):
    """One forward of the model in one guidance branch: what the wrappers of blocks and sub-modules call.

    `visit` is the hot path: what a block costs when nothing is reused is what it does there. So it is written out, does
    not build what nobody asks for, and leaves whatever is not an ordinary recompute or reuse of one block to others.
    `tests/core/test_cost.py` counts its instructions.
    """

    __slots__ = (
        "_decide", "_decisions", "_lags", "_last_reused", "_ordinary", "_plan", "_sites", "_slot_keys", "visited",
    )  # fmt: skip

    def __init__(
        self, engine: ReuseEngine, run: Run, step: Step, branch: str, state: Any, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(engine, run, step, branch, state, arguments)
        self.visited = bytearray(len(engine.bound.blocks))
        """1 for each block that came by."""
        self._slot_keys = engine.installed.of_slot
        self._ordinary = engine.installed.ordinary if engine.has_ordinary_visits else {}
        """The blocks that `visit` deals with itself."""
        self._decide = self._policy.decide
        trace = self._trace
        if trace is not None:
            self._sites, self._decisions, self._lags = trace.site, trace.decision, trace.lag
        self._plan: list[Decision] | None = None
        self._last_reused = -1

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
                target = jump_target(decision) or key.site
                if self._cache.step_of(self.branch, target) is not None:
                    self._last_reused = max(self._last_reused, target.start)

    def enter_blocks(self) -> None:
        """The model runs from here on: what enters a site is what enters its block."""
        self._streams = None

    # Ordinary blocks. `_streams` is None at the beginning and at the end of each of these visits.

    def visit(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execution has come to a wrapped module."""
        key = self._ordinary.get(slot)
        if key is None:
            return self._visit_other(slot, module, args, kwargs)
        index = key.index
        if index <= self._skip_to:
            return self._visit_passed(key, args, kwargs)
        site = key.site
        self.visited[index] = 1
        self._key = key
        self._args = args
        self._kwargs = kwargs
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
            if key.plain:
                # As `slot.call`.
                original = slot.original
                output = (
                    type(module).forward(module, *args, **kwargs) if original is None else original(*args, **kwargs)
                )
                if decision.keep or self._attentive:
                    self._keep_output(key, row, args, kwargs, output, decision.keep)
            else:
                output = self._run_watched(key, row, slot, module, args, kwargs, decision.keep)
        elif (
            type(decision) is Reuse
            and decision.through is None
            and not key.residual
            and (entry := self._cache.last(self.branch, site)) is not None
        ):
            if row >= 0:
                self._decisions[row] = REUSE
                self._lags[row] = self.step.index - entry.step
            value = entry.value
            output = value[0] if key.bare else key.unpack(value)
            if self._open:
                self._close_regions(index, value)
        else:
            value = self._put_in_place(key, row, decision, slot, module, args, kwargs, self.input())
            self._streams = None
            output = key.unpack(value)
            if self._open:
                self._close_regions(index, value)
        self._args = self._kwargs = None
        return output

    def _run_watched(
        self,
        key: BlockKey,
        row: int,
        slot: Slot,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: bool,
    ) -> Any:
        """Run a block with sub-modules that are asked about, or whose residual may be taken."""
        entered = versions(key.streams(args, kwargs)) if key.residual else ()
        outer, self.block = self.block, (key, args, kwargs)
        output = slot.call(module, args, kwargs)
        self.block = outer
        if key.residual and (keep or self._observe is not None):
            check_unwritten(key.site, key.streams(args, kwargs), entered)
        self._keep_output(key, row, args, kwargs, output, keep)
        return output

    def _keep_output(
        self, key: BlockKey, row: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, keep: bool
    ) -> None:
        """A block ran: look at what it gave, let the policy observe it, store it."""
        value = key.pack(output)
        self._streams = None
        if self._observe is not None:
            # Sub-modules, or blocks inside this one, may have come by in the meantime.
            self._row, self._key, self._args, self._kwargs = row, key, args, kwargs
            if self._observe(self.state, self, key.site, value, self._cache.last(self.branch, key.site)) is False:
                keep = False
        if keep:
            self.store(key.site, value, key.streams(args, kwargs) if key.residual else None)
        if self._open:
            self._close_regions(key.index, value)

    def _visit_passed(self, key: BlockKey, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block on the way of a jump, or at its end. Nobody is asked."""
        index = key.index
        self.visited[index] = 1
        row = self._next
        if row >= 0:
            self._next = row + 1
            try:
                self._sites[row] = key.site
            except IndexError:
                self._lengthen()
                self._sites[row] = key.site
            self._decisions[row] = self._skip_code
            self._lags[row] = self._skip_lag
        streams = key.streams(args, kwargs)
        return key.unpack(streams if index < self._skip_to else self._pass_over(index, streams))

    # Everything else.

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
        self._args = self._kwargs = self._streams = None
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
                    check_unwritten(key.site, streams, entered)
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
