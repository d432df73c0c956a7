"""`Installed`: the wrappers of one session, put in, followed while blocks are compiled, and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fsframework.core import wrap
from fsframework.core.bound import BoundModel
from fsframework.core.keys import BlockKey, PartKey
from fsframework.core.site import Part, Site

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine


class Installed:
    """What a session has wrapped: the model, its blocks, their sub-modules that are asked about, the scheduler.

    Args:
        bound: the model.
        sites: what the policy is asked about.
        residual_sites: those of which residuals are cached.
        policy: the policy's name, for errors.
    """

    def __init__(self, bound: BoundModel, sites: Sequence[Site], residual_sites: set[Site], policy: str) -> None:
        self.keys: list[BlockKey] = []
        """Of each block, in execution order."""
        self.of_slot: dict[wrap.Slot, BlockKey | PartKey] = {}
        self.ordinary: dict[wrap.Slot, BlockKey] = {}
        """Of the blocks that the policy is asked about and at which no region begins."""
        self.positions: list[Mapping[str, int]] = [wrap.positions(block.module) for block in bound.blocks]
        """By block, argument name -> position."""
        self._bound = bound
        self._sites = sites
        self._residual_sites = residual_sites
        self._policy = policy
        self._all_seen = False
        self._installed: list[tuple[Any, tuple[str, Callable[..., Any]], wrap.Slot]] = []
        self._actives: list[wrap.Active] = []
        self._first = bound.blocks[0].module
        """The first block stands for all where it is asked whether they were compiled."""
        self._first_compiled: object = None
        """What it calls in place of its forward, if it was compiled."""

    def put_in(self, model_active: wrap.Active, scheduler: Any) -> None:
        """Wrap everything. What fails leaves nothing behind."""
        try:
            self._put_all_in(model_active, scheduler)
        except BaseException:
            self.take_out()
            raise

    def _put_all_in(self, active: wrap.Active, scheduler: Any) -> None:
        bound, model = self._bound, self._bound.transformer
        regions = [site for site in self._sites if site.part in (Part.TRUNK, Part.SPAN)]
        regions.sort(key=lambda site: -site.stop)
        inside = [site for site in self._sites if site.part.inside_block]
        asked = {site.start: site for site in self._sites if site.part is Part.BLOCK}
        self.keys, self.of_slot, self.ordinary = [], {}, {}
        self._actives, self._all_seen = [active], False
        self._put(model, wrap.MODEL, active)
        if hasattr(type(model), "cache_context"):
            self._put(model, wrap.CONTEXT, active)
        for index, block in enumerate(bound.blocks):
            site = asked.get(index, bound.block_site(index))
            here = tuple(s for s in regions if s.start == index)
            is_residual = site in self._residual_sites
            key = BlockKey(block, index, site, index in asked, here, self.positions[index], is_residual, bool(inside))
            self.keys.append(key)
            self._put(block.module, wrap.block_wrapper(block.module), active, key)
            for part_site in [s for s in inside if s.start == index]:
                name = block.facts.submodule(part_site.part)
                assert name is not None
                self._check_inside(block.module, part_site)
                part = block.module.get_submodule(name)
                self._put(part, wrap.block_wrapper(part), active, PartKey(key, part_site))
        self._first_compiled = wrap.compiled_call(self._first)
        if scheduler is not None:
            clock = wrap.shared_active(scheduler, "step")
            self._actives.append(clock)
            self._put(scheduler, wrap.SET_TIMESTEPS, clock)
            self._put(scheduler, wrap.STEP, clock)

    def _put(
        self,
        owner: Any,
        what: tuple[str, Callable[..., Any]],
        active: wrap.Active,
        key: BlockKey | PartKey | None = None,
    ) -> None:
        slot = wrap.install(owner, what, active)
        self._installed.append((owner, what, slot))
        if key is not None:
            self.of_slot[slot] = key
        if isinstance(key, BlockKey) and key.asked and not key.regions:
            self.ordinary[slot] = key

    def _check_inside(self, block: nn.Module, site: Site) -> None:
        """Raise if a sub-module site lies in a compiled block."""
        if wrap.compiled_call(block) is None:
            return
        kind = type(block).__name__
        raise ValueError(
            f"{self._policy} asks about {site}, inside a {kind} that is compiled, where nothing can be "
            f"intercepted. Compile the sub-modules that it asks about instead of the blocks ({site.part.value}: "
            f"`block.{self._bound.blocks[site.start].facts.submodule(site.part)}.compile()`), or use a policy about blocks."
        )

    def follow_compilation(self) -> None:
        """Blocks or sub-modules were compiled since they were wrapped, or are no longer: wrap what is called now.

        Otherwise a compiled block would have the wrapper inside its graph, which would then be another one per block.
        """
        for i, (owner, what, slot) in enumerate(self._installed):
            key = self.of_slot.get(slot)
            if key is None:
                continue
            if isinstance(key, PartKey):
                self._check_inside(key.block.bound.module, key.site)
            now = wrap.block_wrapper(owner)
            if now is what:
                wrap.restore_lost(owner, what, slot)
                continue
            wrap.uninstall(owner, what[0])
            moved = wrap.install(owner, now, slot.active)
            self._installed[i] = (owner, now, moved)
            self.of_slot[moved] = self.of_slot.pop(slot)
            if slot in self.ordinary:
                self.ordinary[moved] = self.ordinary.pop(slot)
        self._first_compiled = wrap.compiled_call(self._first)

    def is_compilation_known(self) -> bool:
        """Whether the first block still calls what it did when it was wrapped."""
        return wrap.compiled_call(self._first) is self._first_compiled

    def restore_lost(self) -> None:
        """Put back wrappers that were taken away.

        Pipelines with model offloading remove all hooks at the end of a call and set them anew, which takes along
        whatever was put over them.
        """
        for owner, what, slot in self._installed:
            wrap.restore_lost(owner, what, slot)

    def take_out(self) -> None:
        """Undo `put_in`."""
        while self._installed:
            owner, what, _ = self._installed.pop()
            wrap.uninstall(owner, what[0])

    def activate(self, engine: ReuseEngine) -> None:
        """From here on the wrappers find the session, in this context."""
        for var in self._actives:
            var.set((*var.get(), engine))

    def deactivate(self, engine: ReuseEngine) -> None:
        """Undo `activate`."""
        for var in self._actives:
            var.set(tuple(e for e in var.get() if e is not engine))

    def has_unseen_returns(self) -> bool:
        """Whether there are ordinary blocks of which it is not known yet how they return their streams."""
        if not self._all_seen:
            self._all_seen = all(key.has_run for key in self.ordinary.values())
        return not self._all_seen
