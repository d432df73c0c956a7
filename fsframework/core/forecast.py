"""Forecasts: a site's value at a step, extrapolated from what it gave at earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from fsframework.core.decision import Forecast
from fsframework.core.site import Run, Site, State, Step

if TYPE_CHECKING:
    from fsframework.core.cache import Entry

Spacing = Literal["step", "timestep"]
"""What a forecast takes as the abscissa: the step's index, or the scheduler's timestep."""


def forecast(
    run: Run, order: int = 1, spacing: Spacing = "step", damping: float = 1.0, through: Site | None = None
) -> Forecast:
    """The decision to put `extrapolate` of the site's history in place. One object serves all steps and sites of a run.

    Args:
        run: the run, for its timesteps.
        order, damping: see `extrapolate`.
        spacing: see `Spacing`.
        through: a later block: pass over everything up to it and put the forecast of its output in place.
    """
    fn = partial(extrapolate, order=order, times=times_of(run, spacing), damping=damping)
    return Forecast(fn, through)


def times_of(run: Run, spacing: Spacing) -> Sequence[float] | None:
    """The `times` of `extrapolate` for a run: None in step indices, else its timesteps."""
    return run.timesteps if spacing == "timestep" else None


def extrapolate(
    history: Sequence[Entry],
    step: Step,
    order: int = 1,
    times: Sequence[float] | None = None,
    damping: float = 1.0,
) -> State:
    """The value at `step` of the polynomial through the newest `order + 1` entries: Newton's divided differences

        P(x) = y_0 + (x - x_0) [y_0, y_1] + (x - x_0)(x - x_1) [y_0, y_1, y_2] + ...,   newest entry first,

    which are right also where the entries are unevenly far apart; on even spacing and for order <= 1 this is TaylorSeer's
    formula. It is evaluated as y_0 + sum of w_i (y_i - y_0) with weights worked out on the host, so a history that stands
    still gives exactly its value, and no tensor waits for the host.

    Args:
        history: oldest to newest, at least one entry, all streams of one shape.
        step: the step to forecast.
        order: degree of the polynomial, >= 0; 0 is a copy of the newest. A shorter history lowers it.
        times: abscissa of each step index (the run's timesteps); None takes the index itself. Of entries at one abscissa
            only the newest counts; at the newest one's own the forecast is a copy.
        damping: d of y_0 + d (P(x) - y_0): 1 is P, 0 a copy.

    Returns:
        A new State in the streams' dtypes, accumulated in float32; the newest value itself where the forecast is a copy.
    """
    newest = history[-1]
    where = [float(e.step if times is None else times[e.step]) for e in history]
    now = float(step.index if times is None else times[step.index])
    chosen: list[int] = []
    for i in reversed(range(len(history))):
        if len(chosen) <= order and where[i] not in [where[j] for j in chosen]:
            chosen.append(i)
    weights = polynomial_weights([where[i] for i in chosen], now)
    pairs = [(history[i].value, damping * w) for i, w in zip(chosen[1:], weights[1:]) if damping * w != 0]
    return _combined(newest.value, pairs)


def polynomial_weights(where: Sequence[float], x: float) -> list[float]:
    """Weights w_i with sum of w_i y_i = P(x), for the polynomial P of degree n - 1 through n points (where[i], y_i).

    They add up to 1. At 0, 1 and x = 3 they are -2 and 3: a line through 5 and 6 reaches 8 there.
    """
    weights = []
    for i, own in enumerate(where):
        w = 1.0
        for j, other in enumerate(where):
            if j != i:
                w *= (x - other) / (own - other)
        weights.append(w)
    return weights


def carry_on(history: Sequence[Entry], weight: float) -> State:
    """A_1 + weight * (A_1 - A_0), A_1 the newest entry and A_0 the one before: FasterCache's attention outputs
    (arXiv:2410.19355). How many steps lie between or behind them does not enter. One entry is copied."""
    newest = history[-1].value
    return _combined(newest, [(history[-2].value, -weight)] if len(history) > 1 and weight else [])


def carry_on_forecast(weight: float) -> Forecast:
    """The decision to put `carry_on` of the site's history in place."""
    return Forecast(lambda history, step: carry_on(history, weight))


def _combined(newest: State, older: Sequence[tuple[State, float]]) -> State:
    """newest + sum of weight * (value - newest), in float32."""
    if not older:
        return newest
    out: list[Tensor] = []
    for i, stream in enumerate(newest):
        base = stream.float()
        total = base.clone()
        for value, weight in older:
            total.add_(value[i].float() - base, alpha=weight)
        out.append(total.to(stream.dtype))
    return tuple(out)


def check_forecast(order: int, spacing: str, owner: str, damping: float = 1.0) -> None:
    """Raise ValueError unless the options of a forecast make sense."""
    if order < 0:
        raise ValueError(f"{owner}: order={order} must be a whole number >= 0 (0 copies, 1 is a line, 2 a parabola)")
    if spacing not in get_args(Spacing):
        raise ValueError(f"{owner}: spacing={spacing!r} must be one of {', '.join(get_args(Spacing))}")
    if not 0.0 <= damping <= 1.0:
        raise ValueError(f"{owner}: damping={damping} must be 0.0 (a copy) to 1.0 (the whole forecast)")
