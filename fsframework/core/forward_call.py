"""`ForwardCall`: one forward of the model as a policy sees it, and as it is written down: rows of the trace, the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.cache import Entry
from fsframework.core.keys import BlockKey
from fsframework.core.meter import Meter
from fsframework.core.part_visit import video_tokens_at
from fsframework.core.site import Branch, Part, Run, Site, State, Step
from fsframework.core.wrap import positions

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine


class ForwardCall:
    """One forward of the model in one guidance branch: the `Call` of policies. What runs and what does not is decided above.

    A visit begins a row of the trace, and ends, if the site really ran, with the policy observing it and the cache storing it.
    """

    __slots__ = (
        "_args", "_cache", "_held", "_key", "_kwargs", "_next", "_observe", "_planning", "_policy", "_residual_sites", "_row",
        "_streams", "_trace", "arguments", "block", "branch", "engine", "meter", "num_samples", "part", "run",
        "state", "step",
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
        self.block: tuple[BlockKey, tuple[Any, ...], dict[str, Any]] | None = None
        """The block being run, with its arguments: for the gates of its sub-modules. Only where there are such sites."""
        self.part: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
        """The sub-module being visited, with its arguments: for its probes."""
        self.arguments = arguments
        """The model's, by name; only one half of the batch where that half is run alone."""
        # The block that execution has come to, and its arguments; these are None between blocks, or what they hold would
        # live on, and its memory could not be used again.
        self._key: BlockKey | None = None
        self._args: tuple[Any, ...] | None = None
        self._kwargs: dict[str, Any] | None = None
        latent = arguments[engine.bound.adapter.latent_input]
        self._streams: State | None = (latent,) if isinstance(latent, Tensor) else tuple(latent)
        """The streams entering the site that is asked about; None: the block's, to be taken from its arguments when needed."""
        self._policy = engine.policy
        self._observe = engine.observe
        self._cache = engine.cache
        self._residual_sites = engine.residual_sites
        self._held: dict[Site, list[tuple[str, Tensor | float]]] = {}
        self._planning: Site | None = None
        # `_next` is the number of the next row; the trace's columns are long enough already.
        trace = self._trace = engine.recording
        self._row = -1
        self._next = -1 if trace is None else trace.begin(step.index, branch, engine.rows_per_forward)

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
        if self._streams is not None:
            return self._streams
        if self._args is None or self._key is None or self._kwargs is None:  # between blocks
            return ()
        return self._key.streams(self._args, self._kwargs)

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
        if (key := self._key) is not None and self._args is not None and self._kwargs is not None:
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
        self._trace.begin(self.step.index, self.branch, self.engine.rows_per_forward)

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
        return self._cache.last(self.branch, site)
