"""Types of a policy's options, for those given in Python; a config's are checked when it is read."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any


def check_types(policy: Any, owner: str) -> None:
    """Check the options of a dataclass that are annotated as numbers, flags or strings, or None besides; others pass.

    Called first in `__post_init__`, so that the comparisons after it make sense. NumPy's numbers are numbers; True is not.

    Raises:
        ValueError: an option has another type.
    """
    for option in fields(policy):
        annotation = option.type.__name__ if isinstance(option.type, type) else str(option.type)
        names = [name for name in annotation.split(" | ") if name != "int" or "float" not in annotation]
        if not set(names) <= set(_KINDS):
            continue
        value = getattr(policy, option.name)
        kinds = [_KINDS[name] for name in names]
        if not any(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for _, kind in kinds):
            wanted = " or ".join(words for words, _ in kinds)
            raise ValueError(f"{owner}: {option.name}={value!r} must be {wanted}")


_KINDS: dict[str, tuple[str, type]] = {
    "float": ("a number", Real),
    "int": ("a whole number", Integral),
    "bool": ("True or False", bool),
    "str": ("a string", str),
    "None": ("none", type(None)),
}
"""What an annotation takes, in words and types."""
