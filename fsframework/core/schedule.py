"""Arithmetic of warmup, cycles and plans, shared by every policy that has them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from fsframework.core.decision import DISCARD, RECOMPUTE, REUSE, Decision


def warmup_steps(warmup: float | int, num_steps: int, minimum: int, owner: str) -> int:
    """Number of leading steps that are always recomputed.

    A float is a fraction of the run, rounded half up (0.15 of 50 is 8, of 30 is 5) and at least `minimum`; an int is a
    number of steps, taken as it is.

    Raises:
        ValueError: fewer than `minimum` steps asked for, or more than the run has.
    """
    if isinstance(warmup, float) and not 0.0 <= warmup <= 1.0:
        raise ValueError(
            f"{owner}: warmup={warmup} as a float is a fraction of the steps, 0.0 to 1.0; for a number of steps write "
            f"an integer (warmup={warmup:.0f})"
        )
    steps = max(count_of(warmup, num_steps), minimum) if isinstance(warmup, float) else int(warmup)
    if steps < minimum:
        raise ValueError(
            f"{owner} needs a warmup of at least {minimum} steps; warmup={warmup} of {num_steps} steps gives {steps}. "
            f"Raise policy.warmup or the number of steps."
        )
    if steps > num_steps:
        raise ValueError(
            f"{owner}: a warmup of {steps} steps (warmup={warmup}) is longer than the run of {num_steps} steps, so nothing "
            f"could be reused. Lower policy.warmup or raise the number of steps."
        )
    return steps


def count_of(value: float | int, total: int) -> int:
    """A number of steps, blocks or tokens: a float is a fraction of `total`, rounded half up; an int is the number."""
    return int(value * total + 0.5) if isinstance(value, float) else value


def is_reuse_step(step: int, warmup: int, every: int, phase: int = 0, reuse_steps: int | None = None) -> bool:
    """Whether a step may reuse: after the warmup W, iff (step - W + phase) % every < N.

    N is `reuse_steps`, by default every - 1. So with `phase=0` the warmup's last step serves as the first cycle's
    recompute: N reuse steps follow it, then every - N recomputes, and so on. `every=1` never reuses.
    """
    limit = every - 1 if reuse_steps is None else reuse_steps
    return step >= warmup and (step - warmup + phase) % every < limit


def plan(recompute: Sequence[bool], depth: int = 1) -> list[Decision]:
    """What to do with a site at each step, where it is known beforehand which steps recompute it.

    A step that does not is `REUSE`. One that does is `RECOMPUTE`, its value kept, if it is among the newest `depth`
    recomputed steps before some reuse; else `DISCARD`. With depth 1, C C R C R is DISCARD RECOMPUTE REUSE RECOMPUTE REUSE.
    """
    done: list[int] = []
    decisions: list[Decision] = []
    for step, recomputed in enumerate(recompute):
        if recomputed:
            done.append(step)
            decisions.append(DISCARD)
            continue
        decisions.append(REUSE)
        for needed in done[-depth:]:
            decisions[needed] = RECOMPUTE
    return decisions


def most_kept(recompute: Sequence[bool], depth: int = 1) -> int:
    """How many values of a site are cached at once, at most, where `plan` says what is kept: 0 if nothing is reused."""
    return min(plan(recompute, depth).count(RECOMPUTE), depth)


def check_every(every: int, name: str, owner: str) -> None:
    """Raise ValueError unless `every` is a whole number of steps >= 1."""
    if not isinstance(every, Integral) or isinstance(every, bool):
        raise ValueError(f"{owner}: {name}={every!r} must be a whole number of steps")
    if every < 1:
        raise ValueError(f"{owner}: {name}={every} must be at least 1 (1 recomputes every step, 2 every second, ...)")
