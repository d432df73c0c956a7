"""`BoundModel`: a transformer with its blocks numbered in execution order; makes the sites of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fsframework.core.site import Kind, Part, Site, State

if TYPE_CHECKING:
    from fsframework.core.adapter import BlockList, ModelAdapter
    from fsframework.core.policy import ReusePolicy


@dataclass(frozen=True)
class BoundBlock:
    """A block, the facts of its list and its index there."""

    facts: BlockList
    module: nn.Module
    ordinal: int


@dataclass
class BoundModel:
    """A transformer with its blocks in execution order; makes the sites of a run."""

    adapter: ModelAdapter
    transformer: nn.Module
    blocks: list[BoundBlock]
    denoiser: str = ""
    num_samples: int = field(default=1, init=False)

    lengths: dict[str, int] = field(default_factory=dict, init=False)
    """Tokens of each stream of the first block in the forward now, to take concatenated streams apart."""

    def __post_init__(self) -> None:
        self.has_concatenated = any(block.facts.concatenated for block in self.blocks)
        self.keeps_aside = any(block.facts.kept_aside for block in self.blocks)

    def note_lengths(self, streams: State) -> None:
        """Remember the token counts of the streams [B, N, C] that enter the first block."""
        self.lengths = {name: t.shape[1] for name, t in zip(self.blocks[0].facts.streams, streams)}

    def model_site(self) -> Site:
        """The MODEL site: everything."""
        return self._region(Part.MODEL, 0, len(self.blocks))

    def block_site(self, index: int) -> Site:
        """The BLOCK site at an execution index."""
        block = self.blocks[index]
        return Site(Part.BLOCK, block.facts.kind, index, index + 1, block.ordinal, self.denoiser)

    def part_sites(self, index: int, parts: frozenset[Part]) -> list[Site]:
        """The sub-module sites of one block among `parts`, in execution order."""
        block = self.blocks[index]
        return [
            Site(part, block.facts.kind, index, index + 1, block.ordinal, self.denoiser)
            for part in (Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP)
            if part in parts and block.facts.submodule(part) is not None
        ]

    def _region(self, part: Part, start: int, stop: int) -> Site:
        kinds = {block.facts.kind for block in self.blocks[start:stop]}
        return Site(part, kinds.pop() if len(kinds) == 1 else Kind.MIXED, start, stop, denoiser=self.denoiser)

    def sites(self, policy: ReusePolicy[Any]) -> list[Site]:
        """Every site `policy` asks about, outer before inner, in execution order. None at all is an error."""
        n = len(self.blocks)
        sites: list[Site] = []
        name = type(policy).__name__
        if Part.TRUNK in policy.parts or policy.jumps:
            self.check_passable(0, n, name)
        if Part.MODEL in policy.parts:
            sites.append(self.model_site())
        if Part.TRUNK in policy.parts:
            sites.append(self._region(Part.TRUNK, 0, n))
        spans: list[Site] = []
        if Part.SPAN in policy.parts:
            for start, stop in policy.spans(n):
                if not 0 <= start < stop <= n:
                    raise ValueError(
                        f"{name} asks about blocks {start}..{stop}, but "
                        f"{type(self.transformer).__name__} has {n} blocks"
                    )
                self.check_passable(start, stop, name)
                spans.append(self._region(Part.SPAN, start, stop))
        for index in range(n):
            sites += [span for span in spans if span.start == index]
            if Part.BLOCK in policy.parts:
                sites.append(self.block_site(index))
            sites += self.part_sites(index, policy.parts)
        if not sites:
            asked = ", ".join(sorted(part.value for part in policy.parts))
            raise ValueError(
                f"{name} asks about {asked or 'no part'}, and "
                f"{type(self.adapter).__name__} found no such site in {type(self.transformer).__name__}"
            )
        return sites

    def check_passable(self, start: int, stop: int, policy: str) -> None:
        """Raise if blocks start..stop-1 can not be passed over as a whole, because the model keeps outputs of theirs."""
        for block in self.blocks[start:stop] if stop - start > 1 else ():
            if block.facts.kept_aside and not (block.facts.kept_aside == "blocks" and stop == len(self.blocks)):
                raise ValueError(
                    f"{policy} passes over several blocks at once, but {type(self.transformer).__name__} also keeps the "
                    f"outputs of {block.facts.path!r} for later, so what it would read there is wrong. Use a policy that "
                    f"reuses block by block (static: storage='residual')."
                )

    def to_canonical(self, index: int, value: State) -> State:
        """Streams of block `index` as those of any other: a folded axis brought out, [B, F, N, C], and joined streams
        taken apart, so that blocks can be compared."""
        facts = self.blocks[index].facts
        fold = facts.fold
        if facts.concatenated and len(value) == 1:
            parts = dict(zip(facts.concatenated, value[0].split([self.lengths[n] for n in facts.concatenated], dim=1)))
            return tuple(parts[name] for name in self.blocks[0].facts.streams)
        if fold is None:
            return value
        unfolded = tuple(t.unflatten(0, (self.num_samples, -1)) for t in value)
        return unfolded if fold == "frames" else tuple(t.transpose(1, 2) for t in unfolded)

    def from_canonical(self, index: int, value: State) -> State:
        """The inverse of `to_canonical`, in the layout of block `index`."""
        facts = self.blocks[index].facts
        fold = facts.fold
        if facts.concatenated and len(value) > 1:
            parts = dict(zip(self.blocks[0].facts.streams, value))
            return (torch.cat([parts[name] for name in facts.concatenated], dim=1),)
        if fold is None:
            return value
        if fold == "tokens":
            value = tuple(t.transpose(1, 2) for t in value)
        return tuple(t.flatten(0, 1) for t in value)
