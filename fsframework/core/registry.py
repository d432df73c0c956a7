"""Name -> class, with errors that name the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from fsframework.core.adapter import ModelAdapter
    from fsframework.core.policy import ReusePolicy

T = TypeVar("T")


FEW = 8
"""Names that an error still lists one by one."""


def nearest(name: str, known: list[str], listing: str = "") -> str:
    """`Did you mean 'x'?` or nothing, then what there is: the tail of every unknown-name error.

    Of more than `FEW` names only the nearest are shown, or the first where none is near, and how many more there are.

    Args:
        name: what was given.
        known: all there is.
        listing: the command that shows all, such as `fsf list policies`.
    """
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint, names = f"Did you mean {close[0]!r}? " if close else "", sorted(known)
    if len(names) <= FEW:
        return hint + f"Known: {', '.join(names) or 'none'}."
    shown = close or names[:3]
    where = f"; `{listing}` shows all" if listing else ""
    return hint + f"Known: {', '.join(shown)} and {len(names) - len(shown)} more{where}."


class Registry(Generic[T]):
    """Maps names to classes of one sort.

    A name is taken once: a second class under it is an error that names both. Registering the same class again (a
    plugin file loaded twice) replaces it.
    """

    def __init__(self, sort: str, listing: str = "") -> None:
        """`sort` is what an entry is called in errors, `listing` the command that shows all (see `nearest`)."""
        self.sort = sort
        self.listing = listing
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: `@POLICIES.register("foresight")`."""

        def add(entry: T) -> T:
            old: Any = self._entries.get(name)
            new: Any = entry
            if old is not None and (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
                raise ValueError(
                    f"{self.sort} {name!r} is already {old.__module__}.{old.__qualname__}; "
                    f"give {new.__module__}.{new.__qualname__} another name"
                )
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise ValueError(
                f"unknown {self.sort} {name!r}. {nearest(name, list(self._entries), self.listing)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def items(self) -> list[tuple[str, T]]:
        """Name and class, sorted by name."""
        return sorted(self._entries.items())

    def name_of(self, entry: object) -> str:
        """The name a class was registered under; its class name when it never was."""
        for name, known in self._entries.items():
            if known is entry:
                return name
        return getattr(entry, "__name__", str(entry))


POLICIES: Registry[type[ReusePolicy[Any]]] = Registry("policy", "fsf list policies")
ADAPTERS: Registry[type[ModelAdapter]] = Registry("model adapter", "fsf list models")
