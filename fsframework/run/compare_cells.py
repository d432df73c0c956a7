"""A comparison's tables as data, before they become Markdown, CSV, LaTeX or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fsframework.metrics.statistics import ClusterInterval


@dataclass(frozen=True)
class Cell:
    """A number with its interval and n; or a word on why there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    num_videos: int = 0
    num_prompts: int = 0
    style: str = ".4g"
    """A format, to which `x` at the end adds the sign of a factor: `.2fx`."""
    text: str = ""
    """What stands beside the number, or in its place."""
    is_low_open: bool = False
    """The interval goes on below `low`, to where no setting was tried."""
    is_high_open: bool = False

    @property
    def number(self) -> str:
        """The value alone."""
        return styled(self.value, self.style)

    @property
    def spread(self) -> str:
        """`36.3 to 42.0`, or a word on why there is no interval."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "no interval"
        low, high = (styled(end, self.style).removesuffix("x") for end in (self.low, self.high))
        return f"{'<' if self.is_low_open else ''}{low} to {'>' if self.is_high_open else ''}{high}"

    @property
    def has_interval(self) -> bool:
        """Whether it is a mean, which never stands without its interval; a worst prompt's value has none."""
        return self.num_videos > 0


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    cells: Sequence[Cell]

    @property
    def n(self) -> tuple[int, int]:
        """Most prompts and videos any of its cells has; a cell with others says so itself."""
        return max((cell.num_prompts, cell.num_videos) for cell in self.cells) if self.cells else (0, 0)


@dataclass(frozen=True)
class Table:
    """One table of a comparison."""

    key: str
    """Of the kind: settings, spread, compute, quality, prompts."""
    title: str
    about: str
    """What its numbers are, in a sentence or two."""
    first: str
    """Header of the labels."""
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    is_best_marked: Sequence[int] = field(default_factory=tuple)
    """+1, -1 or 0 per column: whether the largest or the smallest value is set bold."""


def styled(value: float, style: str) -> str:
    """A number in a style; infinity is `identical` where it is a PSNR."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "identical" if value > 0 else "-inf"
    return f"{value:{style.removesuffix('x')}}{'x' if style.endswith('x') else ''}"


def cell(interval: ClusterInterval, style: str, text: str = "") -> Cell:
    """A cell of a mean; an empty one where nothing was measured."""
    if not interval.n or math.isnan(interval.mean):
        return Cell(text=text or "-")
    return Cell(
        interval.mean, interval.low, interval.high, interval.n, interval.num_clusters, style, text
    )  # fmt: skip
