"""How a forward is intercepted: per instance, removable, invisible to state_dict, deepcopy and offload hooks.

A module-level function is bound to the module as its `forward`; what it needs lies in a `Slot` beside it. The session
is found through a ContextVar, so threads that share a model stay apart. Mechanisms tried and why this one was kept:
see docs/explanation/design.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from types import FunctionType, MethodType
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


def _block_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    slot: Slot = module._fsf_slot["forward"]
    for engine in slot.active.get():
        forward = engine.forward_record
        if forward is not None:
            return forward.visit(slot, module, args, kwargs)
    return slot.call(module, args, kwargs)


def _compiled_block(module: Any, *args: Any, **kwargs: Any) -> Any:
    # As above under another name; written out because a shared helper would cost each visit one more call.
    slot: Slot = module._fsf_slot["_compiled_call_impl"]
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


def compiled_call(module: nn.Module) -> object:
    """What a module calls in place of its forward since it was compiled (`module.compile()`), or None."""
    return module.__dict__.get("_compiled_call_impl")


def block_wrapper(module: nn.Module) -> tuple[str, Callable[..., Any]]:
    """How to wrap a block: its forward, or if it was compiled (`block.compile()`) the compiled call.

    So the decision stays outside the graph, which is compiled once for all blocks and never because of us.
    """
    return BLOCK if compiled_call(module) is None else COMPILED_BLOCK


def _wrapper(owner: Any, method: str, function: Callable[..., Any], original: Callable[..., Any] | None) -> Any:
    """`function` bound to `owner`, with the signature and documentation of what it replaces.

    Pipelines ask `inspect.signature(scheduler.step)` whether it takes `eta` or a generator; they must be told the truth.
    A copy of the function object rather than a decorator: no second call per visit.
    """
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    replaced = getattr(type(owner), method) if original is None else _with_self(original)
    if replaced is not None:
        copied.__doc__ = replaced.__doc__
        copied.__wrapped__ = replaced  # type: ignore[attr-defined]
    copied.__fsf__ = True  # type: ignore[attr-defined]
    return MethodType(copied, owner)


def _with_self(bound: Callable[..., Any]) -> Callable[..., Any]:
    """Something with the signature of `bound` and a first parameter for the binding to take off."""

    def unbound(self: Any, *args: Any, **kwargs: Any) -> Any:
        return bound(*args, **kwargs)

    unbound.__doc__ = bound.__doc__
    with suppress(TypeError, ValueError):
        signature = inspect.signature(bound)
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        named = [
            p.replace(kind=p.KEYWORD_ONLY) if p.kind is p.POSITIONAL_ONLY else p for p in signature.parameters.values()
        ]
        unbound.__signature__ = signature.replace(parameters=[first, *named])  # type: ignore[attr-defined]
    return unbound


def _is_ours(current: Any) -> bool:
    return getattr(getattr(current, "__func__", None), "__fsf__", False)


def _is_bare(owner: Any, method: str) -> bool:
    """Whether the class's own method would run: nothing set on the instance, or the class's method itself."""
    current = owner.__dict__.get(method)
    return current is None or getattr(current, "__func__", current) is getattr(type(owner), method)


def reaches(owner: Any, method: str) -> bool:
    """Whether calling `owner.method` comes to our wrapper, on top or under hooks (accelerate's, diffusers') put over it.

    Both kinds of hook keep what they replaced as `__wrapped__`. A hook that was there before us and is removed takes
    our wrapper along; then the answer is no.
    """
    current = owner.__dict__.get(method)
    for _ in range(32):
        if current is None:
            return False
        if _is_ours(current):
            return True
        current = getattr(current, "__wrapped__", None)
    return False


def _put(owner: Any, method: str, function: Callable[..., Any], slot: Slot) -> None:
    slot.original = None if _is_bare(owner, method) else owner.__dict__[method]
    owner.__dict__.setdefault(_SLOT, {})[method] = slot
    object.__setattr__(owner, method, _wrapper(owner, method, function, slot.original))


def install(owner: Any, what: tuple[str, Callable[..., Any]], active: Active) -> Slot:
    """Replace one method of one object. A second session on the same object shares the wrapper.

    Raises:
        ValueError: the object is in a session of another model (they share a block).
    """
    method, function = what
    with _LOCK:
        slot = _slots(owner).get(method)
        if slot is not None and reaches(owner, method):
            if slot.users > 0 and slot.active is not active:
                raise ValueError(
                    f"this {type(owner).__name__} is part of another model that is in a reuse session; leave that one "
                    f"first, or give each model its own blocks"
                )
            slot.active = active
        else:
            slot = Slot(method, active, None)
            _put(owner, method, function, slot)
        slot.users += 1
        return slot


def restore_lost(owner: Any, what: tuple[str, Callable[..., Any]], slot: Slot) -> None:
    """Put the wrapper back if something took it away, such as a pipeline that removes and sets its offload hooks anew."""
    with _LOCK:
        if not reaches(owner, what[0]):
            _put(owner, *what, slot)


def uninstall(owner: Any, method: str) -> None:
    """Undo `install` once; the last user puts the original back."""
    with _LOCK:
        slots = _slots(owner)
        slot = slots.get(method)
        if slot is None:
            return
        slot.users -= 1
        if slot.users > 0:
            return
        if _is_ours(owner.__dict__.get(method)):
            if slot.original is None:
                owner.__dict__.pop(method, None)
            else:
                object.__setattr__(owner, method, slot.original)
        elif reaches(owner, method):
            return  # a hook was put on top of ours: stay under it, idle, or its removal would bring us back
        slots.pop(method)
        if not slots:
            owner.__dict__.pop(_SLOT, None)


def shared_active(owner: Any, method: str) -> Active:
    """The ContextVar of an object that is already wrapped, or a new one."""
    slot = _slots(owner).get(method)
    if slot is not None and slot.users > 0:
        return slot.active
    return ContextVar(f"fsf_{method}", default=())


def positions(module: nn.Module) -> dict[str, int]:
    """Argument name -> position in the class's forward, without self."""
    return {name: i for i, name in enumerate(list(inspect.signature(type(module).forward).parameters)[1:])}
