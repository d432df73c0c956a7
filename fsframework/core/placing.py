"""`Placing`: what takes the place of blocks that are not run, or not wholly: one block's value, or that of several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fsframework.core.cache import Entry, versions
from fsframework.core.decision import Blend, Decision, Forecast, Partial, Recompute, Reuse, wrong_decision
from fsframework.core.forward_call import ForwardCall
from fsframework.core.keys import BlockKey
from fsframework.core.site import Part, Run, Site, State, Step
from fsframework.core.tokens import check_partial, cut_tables, put_tokens, take_tokens
from fsframework.core.trace import BLEND, FORECAST, PARTIAL, RECOMPUTE, REUSE
from fsframework.core.wrap import Slot

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine


class Placing(ForwardCall):
    """Carries out what a policy answers about blocks and regions of blocks, other than to recompute."""

    __slots__ = ("_attentive", "_open", "_restored", "_skip_code", "_skip_lag", "_skip_to", "_suspended")

    def __init__(
        self, engine: ReuseEngine, run: Run, step: Step, branch: str, state: Any, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(engine, run, step, branch, state, arguments)
        # Passing over blocks, up to and including _skip_to, where _restored is put in place; with the row of each.
        self._skip_to = -1
        self._skip_code: int
        self._skip_lag: int
        self._restored: State
        self._open: list[tuple[Site, int, State, tuple[int, ...], bool]] = []
        """Regions that are being run: with row, what entered, its in-place counters, and whether to keep the result."""
        self._attentive = self._observe is not None or engine.installed.has_unseen_returns()
        """Whether what a block returns is looked at although it is not kept."""
        self._suspended = False

    # One block.

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
            through = jump_target(decision)
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
            self._enter(region, row, entered, decision.keep)
            return False
        if not isinstance(decision, (Reuse, Forecast)) or decision.through is not None:
            raise wrong_decision(self._policy, region, decision, "a region", "Recompute, Reuse or Forecast")
        history = self.history(region)
        if not history:
            self.force(row)
            self._enter(region, row, entered, True)
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

    def _enter(self, region: Site, row: int, entered: State, keep: bool) -> None:
        """A region is run: it ends with its last block."""
        self._open.append((region, row, entered, versions(entered), keep))
        self._attentive = True

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
                check_unwritten(region, entered, unwritten)
            self.end_visit(row, region, entered, bound.to_canonical(index, value), keep)
            self._streams = None


def jump_target(decision: Decision) -> Site | None:
    """The block that a decision jumps to, if any."""
    return decision.through if isinstance(decision, (Reuse, Forecast)) else None


def check_unwritten(site: Site, streams: State, before: tuple[int, ...]) -> None:
    """Raise if a site's input was written to while it ran: its residual would be taken from the wrong tensor."""
    if versions(streams) != before:
        raise RuntimeError(
            f"the input of site {site} was modified in place while it ran, so its residual can not be taken. The model "
            f"writes into a block's input; clone it there, or store outputs (storage='output')."
        )
