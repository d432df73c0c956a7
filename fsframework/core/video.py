"""`VideoInProgress`: where a session is in the video it is making, and what it holds for that video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fsframework.core.flops import shapes
from fsframework.core.lifetime import Lifetime
from fsframework.core.site import Run
from fsframework.core.trace import Trace


class VideoInProgress:
    """The video in progress: where it is, and each branch's policy state."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.step = 0
        self.ran = False
        self.seen: set[str] = set()
        self.states: dict[str, Any] = {}
        self.shapes: dict[str, dict[str, Any]] = {}
        """By branch, the shapes of the last forward's inputs."""
        self.runs: dict[str, Run] = {}
        self.lifetimes: dict[str, Lifetime] = {}

    def changed_shapes(self, branch: str, names: Iterable[str], arguments: Mapping[str, Any]) -> list[str]:
        """Which of the named inputs have other shapes than in the branch's last forward, in words; none in its first."""
        found = {name: shapes(value) for name in names if (value := arguments.get(name)) is not None}
        known = self.shapes.get(branch)
        self.shapes[branch] = found
        if known is None or known == found:
            return []
        return [
            f"{name} from {known.get(name)} to {found.get(name)}"
            for name in names
            if known.get(name) != found.get(name)
        ]

    def go_to(self, step: int) -> None:
        """A new step begins: no branch has been called in it yet."""
        self.step = step
        self.ran = False
        self.seen.clear()
