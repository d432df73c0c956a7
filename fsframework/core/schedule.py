"""Arithmetic of warmup and cycles, shared by every policy that has them."""

from __future__ import annotations


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


def check_every(every: int, name: str, owner: str) -> None:
    """Raise ValueError unless `every` is a whole number of steps >= 1."""
    if every < 1:
        raise ValueError(f"{owner}: {name}={every} must be at least 1 (1 recomputes every step, 2 every second, ...)")
