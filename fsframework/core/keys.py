"""What the wrapper of a block or sub-module knows about it, worked out once at the session's start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsframework.core.bound import BoundBlock
from fsframework.core.site import Site, State


class BlockKey:
    """A block: its sites, and how to take its streams from its arguments and put them into its return value."""

    __slots__ = (
        "alone", "asked", "bare", "bound", "has_run", "in_tuple", "index", "plain", "positions", "regions", "residual",
        "same_order", "single", "site",
    )  # fmt: skip

    def __init__(
        self,
        bound: BoundBlock,
        index: int,
        site: Site,
        asked: bool,
        regions: tuple[Site, ...],
        pos: Mapping[str, int],
        residual: bool,
        has_part_sites: bool,
    ) -> None:
        facts = bound.facts
        self.bound = bound
        self.index = index
        self.site = site
        self.asked = asked
        self.regions = regions
        self.residual = residual
        """Its output minus its input is cached."""
        self.plain = not residual and not has_part_sites
        """Nothing about its arguments matters while it runs."""
        self.has_run = False
        """Its return value was looked at once."""
        self.positions = tuple((name, pos[name]) for name in facts.streams)
        self.alone = self.positions[0] if len(self.positions) == 1 else None
        """The one stream's, where there is one."""
        self.single = len(facts.returns) == 1
        self.in_tuple = False
        """The one stream comes back in a tuple, as seen when the block ran."""
        self.bare = self.single
        """The one stream comes back as it is."""
        self.same_order = facts.returns == facts.streams

    def streams(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> State:
        """The block's token streams, video first."""
        if self.alone is not None:
            name, i = self.alone
            return (kwargs[name] if name in kwargs else args[i],)
        return tuple([kwargs[name] if name in kwargs else args[i] for name, i in self.positions])

    def pack(self, output: Any) -> State:
        """A return value as a State, video first, without streams that end here (the last block of SD3 gives no text)."""
        self.has_run = True
        if self.single:
            if not isinstance(output, tuple):
                return (output,)
            self.in_tuple, self.bare = True, False
            self._check(output)
            return (output[0],)
        if not isinstance(output, (tuple, list)) or len(output) != len(self.positions):
            self._check(output)
        if self.same_order:
            value = tuple(output)
        else:
            returns = self.bound.facts.returns
            value = tuple([output[returns.index(name)] for name in self.bound.facts.streams])
        return value if value[-1] is not None else tuple([t for t in value if t is not None])

    def unpack(self, value: tuple[Tensor | None, ...]) -> Any:
        """A State as the block would return it."""
        if self.single:
            return (value[0],) if self.in_tuple else value[0]
        if missing := len(self.positions) - len(value):
            value = (*value, *[None] * missing)
        if self.same_order:
            return value
        streams = self.bound.facts.streams
        return tuple(value[streams.index(name)] for name in self.bound.facts.returns)

    def _check(self, output: Any) -> None:
        """Raise if the block does not give back as many streams as its adapter says."""
        returns = self.bound.facts.returns
        found = len(output) if isinstance(output, (tuple, list)) else 1
        if found != len(returns):
            raise ValueError(
                f"{self.bound.facts.path}.{self.bound.ordinal}, a {type(self.bound.module).__name__}, returned {found} "
                f"values, but its adapter says that it returns {returns}. Name all of them in BlockList.returns."
            )

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
    """A sub-module: its site, and its block for the gate."""

    __slots__ = ("block", "site")

    def __init__(self, block: BlockKey, site: Site) -> None:
        self.block = block
        self.site = site
