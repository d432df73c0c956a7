"""The methods that are compared, and the knob by which each goes from little reuse to much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep import Ladder

SLOW, FAST = (0.80, 0.62), (0.42, 0.29)
"""Targets of methods whose cycle of two steps can not save more than half."""


def foresight(**options: Any) -> tuple[Ladder, ...]:
    """Foresight (N, R) = (1, 2) while that suffices, then five eligible steps in six."""
    return (
        Ladder({"name": "foresight", "recompute_every": 2, **options}, "gamma", (0.05, 20.0), targets=SLOW),
        Ladder({"name": "foresight", "recompute_every": 6, **options}, "gamma", (0.02, 200.0), targets=FAST),
    )


def forecast(ladders: tuple[Ladder, ...], **options: Any) -> tuple[Ladder, ...]:
    """The same methods with a forecast in place of the copy."""
    return tuple(
        Ladder(
            {"name": "forecast", "base": dict(one.policy), **options},
            f"base.{one.knob}" if one.knob else "",
            one.between,
            tuple({f"base.{k}": v for k, v in _options(one, value).items()} for value in one.values),
            one.targets,
            one.models,
        )
        for one in ladders
    )


def _options(ladder: Ladder, value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {ladder.knob: value}


STATIC = (
    Ladder(
        {"name": "static"},
        values=(
            {"interval": 4, "reuse_steps": 1},
            {"interval": 3, "reuse_steps": 1},
            {"interval": 2},
            {"interval": 3},
            {"interval": 5},
        ),
    ),
)

LADDERS: dict[str, tuple[Ladder, ...]] = {
    "static": STATIC,
    "foresight": foresight(),
    # The leads, one at a time, then together.
    "foresight, lag corrected": foresight(lag_correction=True),
    "foresight, residuals": foresight(storage="residual"),
    "foresight, dead not run": foresight(eliminate_dead=True),
    "foresight, forecast": forecast(foresight()),
    "foresight, forecast judged": forecast(foresight(), judge="forecast"),
    "foresight, residuals, lag": foresight(storage="residual", lag_correction=True),
    "foresight, residuals, lag, forecast": forecast(foresight(storage="residual", lag_correction=True)),
}
"""Name -> its ladders, each for a part of the range."""
