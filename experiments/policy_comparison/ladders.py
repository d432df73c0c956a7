"""The methods that are compared, and the knob by which each goes from little reuse to much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep import Ladder

SLOW, FAST = (0.75,), (0.5, 0.33)
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
            {"interval": 6},
        ),
    ),
)

CALIBRATED = "runs/policy_comparison"
"""Folder of the artifacts for this number of steps; the README has the commands."""
MODELS = ("tiny-latte", "tiny-cogvideox", "tiny-opensora")


def knob(name: str, option: str, low: float, high: float, **options: Any) -> tuple[Ladder, ...]:
    """One policy with a continuous knob."""
    return (Ladder({"name": name, **options}, option, (low, high)),)


def values(name: str, *settings: Mapping[str, Any], **options: Any) -> tuple[Ladder, ...]:
    """One policy whose settings are counted out."""
    return (Ladder({"name": name, **options}, values=settings),)


def calibrated(name: str, option: str, low: float, high: float, **options: Any) -> tuple[Ladder, ...]:
    """One policy with an artifact per model."""
    per_model = {model: {"artifact": f"{CALIBRATED}/{model}/{name}.json"} for model in MODELS}
    return (Ladder({"name": name, **options}, option, (low, high), per_model=per_model),)


def intervals(*which: int) -> list[dict[str, Any]]:
    """Settings of an `interval`."""
    return [{"interval": n} for n in which]


LATE = {"interval": 2, "first_steps": 15}
"""TaylorSeer from the middle on, for a point with little reuse."""

LADDERS: dict[str, tuple[Ladder, ...]] = {
    "static": STATIC,
    "static, residuals": tuple(Ladder({**one.policy, "storage": "residual"}, values=one.values) for one in STATIC),
    "static, forecast": forecast(
        tuple(Ladder({**one.policy, "storage": "residual"}, values=one.values) for one in STATIC)
    ),
    "foresight": foresight(),
    # The leads, one at a time, then together.
    "foresight, lag corrected": foresight(lag_correction=True),
    "foresight, residuals": foresight(storage="residual"),
    "foresight, dead not run": foresight(eliminate_dead=True),
    "foresight, forecast": forecast(foresight()),
    "foresight, forecast judged": forecast(foresight(), judge="forecast"),
    "foresight, residuals, lag": foresight(storage="residual", lag_correction=True),
    "foresight, residuals, lag, forecast": forecast(foresight(storage="residual", lag_correction=True)),
    "foresight_release": (
        Ladder({"name": "foresight_release", "warmup": 5}, "gamma", (0.02, 50.0), targets=SLOW),
        Ladder({"name": "foresight_release", "warmup": 5, "recompute_every": 6}, "gamma", (0.02, 500.0), targets=FAST),
    ),
    # Step and table policies.
    "fora": values("fora", *intervals(2, 3, 4, 6)),
    "pab": values(
        "pab",
        {},
        {"joint": 2, "spatial": 2, "temporal": 4, "cross_attention": 6, "window_low": 20, "window_high": 980},
        {"joint": 4, "spatial": 4, "temporal": 4, "cross_attention": 6, "window_low": 20, "window_high": 980},
    ),
    "tgate": values("tgate", {"gate_step": 0.7}, {"gate_step": 0.5}, {"gate_step": 0.3}, {"gate_step": 0.15}),
    "delta_dit": values("delta_dit", *intervals(2, 3, 4, 8), num_blocks=0.5),
    "blockdance": values(
        "blockdance",
        *intervals(2, 4),
        {"interval": 3, "window_start": 0.15, "window_stop": 1.0},
        {"interval": 8, "window_start": 0.15, "window_stop": 1.0, "blocks": 1.0},
    ),
    "bwcache": (
        Ladder({"name": "bwcache", "reuse_steps": 1}, "threshold", (0.005, 3.0), targets=SLOW),
        Ladder({"name": "bwcache", "reuse_steps": 4}, "threshold", (0.005, 3.0), targets=FAST),
    ),
    "adacache": values("adacache", {"speed": "slow"}, {"speed": "fast"}),
    "smoothcache": calibrated("smoothcache", "alpha", 0.002, 3.0),
    "magcache": calibrated("magcache", "threshold", 0.002, 5.0, max_consecutive=6),
    "lemica": calibrated("lemica", "budget", 0.9, 0.2),
    # Adaptive in the same step.
    "teacache": calibrated("teacache", "threshold", 0.005, 5.0),
    "first_block_cache": knob("first_block_cache", "threshold", 0.005, 3.0),
    "dbcache": knob("dbcache", "threshold", 0.005, 3.0, first_blocks=0.25, warmup=0.15),
    "dbcache, taylorseer": knob(
        "dbcache", "threshold", 0.005, 3.0, first_blocks=0.25, warmup=0.15, calibrator="taylorseer"
    ),
    "dbprune": knob("dbprune", "threshold", 0.005, 3.0, first_blocks=1, warmup=0.15),
    "easycache": knob("easycache", "threshold", 0.005, 3.0, warmup=0.15),
    # Forecasts, tokens, branches.
    "taylorseer": values("taylorseer", LATE, *intervals(2, 3, 6)),
    "taylorseer, blocks": values("taylorseer", LATE, *intervals(2, 3, 6), part="block"),
    "taylorseer, trunk": values("taylorseer", LATE, *intervals(2, 3, 6), part="trunk"),
    "fastercache": values(
        "fastercache", {"guidance_interval": 1}, {}, {"guidance_interval": 10, "guidance_start": 0.2}
    ),
    "toca": values("toca", *({"attention_interval": n, "cross_interval": n, "mlp_interval": n} for n in (2, 3, 6))),
    "duca": values("duca", *({"attention_interval": n, "cross_interval": n, "mlp_interval": n} for n in (2, 3, 6))),
}
"""Name -> its ladders, each for a part of the range."""
