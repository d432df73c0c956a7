"""Types of a policy's options, for those given in Python; a config's are checked when it is read."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(policy: Any, owner: str) -> None:
    """Check the options of a dataclass against their annotations: numbers, flags, strings, lists and mappings of them, or None.

    `ReusePolicy` does it for every policy, before its own `__post_init__`, so that the comparisons there make sense. NumPy's
    numbers are numbers, and become Python's, for whether a number is a float tells fractions from counts. True is none. A
    tuple or a range is a list as well, a string is not. Only the elements that are numbers or strings themselves are looked
    at, and what is annotated otherwise (`Any`, a class) passes.

    Raises:
        ValueError: an option has another type; says which, what was given and what is allowed.
    """
    policy_class: Any = type(policy)
    for name, allowed in _allowed(policy_class).items():
        value = getattr(policy, name)
        if not any(_is(value, annotation) for annotation in allowed):
            words = dict.fromkeys(_words(annotation) for annotation in allowed)
            raise ValueError(f"{owner}: {name}={value!r} must be {' or '.join(words)}")
        if isinstance(value, Real) and not isinstance(value, (int, float)):
            object.__setattr__(policy, name, int(value) if isinstance(value, Integral) else float(value))


_PLAIN: dict[Any, tuple[str, str, type]] = {
    float: ("a number", "numbers", Real),
    int: ("a whole number", "whole numbers", Integral),
    bool: ("True or False", "flags", bool),
    str: ("a string", "strings", str),
    type(None): ("none", "nothing", type(None)),
}
"""What an annotation is called, one and several, and the type that it takes."""


@cache
def _allowed(policy_class: Any) -> dict[str, tuple[Any, ...]]:
    """The annotations to check, by option: the members of a union apart. `float | int` is one, a number."""
    out: dict[str, tuple[Any, ...]] = {}
    for option in fields(policy_class):
        owner = next(base for base in policy_class.__mro__ if option.name in inspect.get_annotations(base))
        holder = types.SimpleNamespace(__annotations__={option.name: option.type})
        try:
            annotation = get_type_hints(holder, vars(sys.modules[owner.__module__]))[option.name]
        except NameError:  # a type known to type checkers only, or local to a function
            continue
        union = get_origin(annotation) in (Union, types.UnionType)
        members = list(get_args(annotation)) if union else [annotation]
        if float in members and int in members:
            members.remove(int)
        if all(member in _PLAIN or _kind(member) is not None for member in members):
            out[option.name] = tuple(members)
    return out


def _kind(annotation: Any) -> type | None:
    """What an annotation with parameters asks of a value itself: a string, a sequence, a mapping. None: it is not checked."""
    origin = get_origin(annotation)
    if origin is Literal:
        return str if all(isinstance(choice, str) for choice in get_args(annotation)) else None
    if not isinstance(origin, type):
        return None
    return next((kind for kind in (Mapping, Sequence) if issubclass(origin, kind)), None)


def _element(annotation: Any) -> Any:
    """The type of a sequence's elements, where that is one plain type; else None."""
    found = set(get_args(annotation)) - {...}
    element = found.pop() if len(found) == 1 else None
    return element if element in _PLAIN else None


def _words(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation][0]
    kind, element = _kind(annotation), _element(annotation)
    if kind is str:
        return f"one of {', '.join(get_args(annotation))}"
    if kind is Mapping:
        return "a mapping"
    return "a list" if element is None else f"a list of {_PLAIN[element][1]}"


def _is(value: Any, annotation: Any) -> bool:
    if annotation in _PLAIN:
        kind = _PLAIN[annotation][2]
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    kind_of_many = _kind(annotation)
    assert kind_of_many is not None
    if kind_of_many is not Sequence:
        return isinstance(value, kind_of_many)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    element = _element(annotation)
    return element is None or all(_is(one, element) for one in value)
