"""How a forward is intercepted: per instance, removable, invisible to state_dict, deepcopy and offload hooks.

A module-level function is bound to the module as its `forward`; what it needs lies in a `Slot` beside it. The session
is found through a ContextVar, so threads that share a model stay apart. Mechanisms tried and why this one was kept:
see docs/explanation/design.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

if TYPE_CHECKING:
    from fsframework.core.engine import ReuseEngine

_SLOT = "_fsf_slot"
_LOCK = Lock()
Active: TypeAlias = "ContextVar[tuple[ReuseEngine, ...]]"


class Slot:
    """What the wrapper of one method needs: the method it replaced, and the sessions in this context.

    Sessions in several threads may share a slot; what each wants to know about it, it keeps itself.
    """

    __slots__ = ("active", "method", "original", "users")

    def __init__(self, method: str, active: Active, original: Callable[..., Any] | None) -> None:
        self.method = method
        self.active = active
        self.original = original
        self.users = 0

    def call(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What would have run without us. Looked up on the class, so that a copied module runs its own weights."""
        if self.original is not None:
            return self.original(*args, **kwargs)
        return getattr(type(owner), self.method)(owner, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        """A copy of a wrapped module belongs to no session."""
        import copy

        return Slot(self.method, ContextVar("fsf_copy", default=()), copy.deepcopy(self.original, memo))

    def __reduce__(self) -> Any:
        raise TypeError("a module inside a reuse session can not be pickled; leave the session first")


def _slots(owner: Any) -> dict[str, Slot]:
    slots: dict[str, Slot] = owner.__dict__.get(_SLOT) or {}
    return slots


def _block_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = module.__dict__[_SLOT]["forward"]
    for engine in slot.active.get():
        forward = engine.forward_record
        if forward is not None:
            return forward.visit(slot, module, args, kwargs)
    return slot.call(module, args, kwargs)


def _compiled_block(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = module.__dict__[_SLOT]["_compiled_call_impl"]
    for engine in slot.active.get():
        forward = engine.forward_record
        if forward is not None:
            return forward.visit(slot, module, args, kwargs)
    return slot.call(module, args, kwargs)


def _model_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = module.__dict__[_SLOT]["forward"]
    for engine in slot.active.get():
        return engine.model_forward(slot, module, args, kwargs)
    return slot.call(module, args, kwargs)


@contextmanager
def _cache_context(module: nn.Module, name: str, **kwargs: Any) -> Iterator[None]:
    slot: Slot = module.__dict__[_SLOT]["cache_context"]
    engines = slot.active.get()
    for engine in engines:
        engine.enter_context(name)
    try:
        with slot.call(module, (name,), kwargs):
            yield
    finally:
        for engine in engines:
            engine.leave_context()


def _set_timesteps(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = scheduler.__dict__[_SLOT]["set_timesteps"]
    result = slot.call(scheduler, args, kwargs)
    for engine in slot.active.get():
        engine.on_set_timesteps()
    return result


def _scheduler_step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = scheduler.__dict__[_SLOT]["step"]
    result = slot.call(scheduler, args, kwargs)
    for engine in slot.active.get():
        engine.on_scheduler_step()
    return result


BLOCK, COMPILED_BLOCK, MODEL, CONTEXT, SET_TIMESTEPS, STEP = (
    ("forward", _block_forward),
    ("_compiled_call_impl", _compiled_block),
    ("forward", _model_forward),
    ("cache_context", _cache_context),
    ("set_timesteps", _set_timesteps),
    ("step", _scheduler_step),
)
"""What can be wrapped: the method's name and its replacement."""


def block_wrapper(module: nn.Module) -> tuple[str, Callable[..., Any]]:
    """How to wrap a block: its forward, or if it was compiled (`block.compile()`) the compiled call.

    So the decision stays outside the graph, which is compiled once for all blocks and never because of us.
    """
    return BLOCK if module.__dict__.get("_compiled_call_impl") is None else COMPILED_BLOCK


def install(owner: Any, what: tuple[str, Callable[..., Any]], active: Active) -> Slot:
    """Replace one method of one object. A second session on the same object shares the wrapper."""
    method, function = what
    with _LOCK:
        slots = owner.__dict__.get(_SLOT)
        if slots is None:
            slots = {}
            object.__setattr__(owner, _SLOT, slots)
        current = owner.__dict__.get(method)
        slot = slots.get(method)
        bare = current is None or getattr(current, "__func__", current) is getattr(type(owner), method)
        if slot is not None and not bare:  # ours, alone or under a hook that was put on top of it
            slot.users += 1
            if slot.users == 1:
                slot.active = active
            return slot
        slot = slots[method] = Slot(method, active, None if bare else current)
        slot.users = 1
        object.__setattr__(owner, method, MethodType(function, owner))
        return slot


def uninstall(owner: Any, method: str) -> None:
    """Undo `install` once; the last user puts the original back."""
    with _LOCK:
        slots = owner.__dict__.get(_SLOT)
        slot = None if slots is None else slots.get(method)
        if slot is None:
            return
        slot.users -= 1
        if slot.users > 0:
            return
        current = owner.__dict__.get(method)
        if getattr(current, "__func__", None) not in _OURS:
            return  # a hook was put on top of ours: stay under it, idle, or its removal would bring us back
        if slot.original is None:
            owner.__dict__.pop(method, None)
        else:
            object.__setattr__(owner, method, slot.original)
        slots.pop(method)
        if not slots:
            owner.__dict__.pop(_SLOT, None)


_OURS = (_block_forward, _compiled_block, _model_forward, _cache_context, _set_timesteps, _scheduler_step)


def shared_active(owner: Any, method: str) -> Active:
    """The ContextVar of an object that is already wrapped, or a new one."""
    slot = _slots(owner).get(method)
    if slot is not None and slot.users > 0:
        return slot.active
    return ContextVar(f"fsf_{method}", default=())


def positions(module: nn.Module) -> dict[str, int]:
    """Argument name -> position in the class's forward, without self."""
    return {name: i for i, name in enumerate(list(inspect.signature(type(module).forward).parameters)[1:])}
