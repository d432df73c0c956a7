"""Plans that differ from site to site: what follows from which sites are computed at which steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fsframework.core.decision import DISCARD, RECOMPUTE, REUSE, Decision
from fsframework.core.schedule import plan
from fsframework.core.site import Site

Computed = Mapping[Site, Sequence[bool]]
"""Site, in execution order -> per step, whether it is computed."""


def closed(computed: Mapping[Site, list[bool]]) -> dict[Site, list[bool]]:
    """Plans as they are carried out where outputs are stored: what a later reuse throws away is not computed."""
    out: dict[Site, list[bool]] = {}
    alive: list[bool] | None = None
    for site in reversed(list(computed)):
        alive = [a and b for a, b in zip(computed[site], alive)] if alive is not None else computed[site]
        out[site] = alive
    return dict(reversed(out.items()))


def decisions(computed: Computed, depth: int, is_nested: bool) -> dict[Site, list[Decision]]:
    """What to do with each site at each step. A value that no step puts in place is not stored.

    `is_nested`: outputs are stored, so of the sites reused at a step only the last is put in place; those before it are
    answered `DISCARD`, which the engine does not run.
    """
    if not is_nested:
        return {site: plan(steps, depth) for site, steps in computed.items()}
    out: dict[Site, list[Decision]] = {}
    sites = list(computed)
    for site, following in zip(sites, [*sites[1:], None]):
        answers: list[Decision] = []
        done: list[int] = []
        for step, is_computed in enumerate(computed[site]):
            is_last = following is None or computed[following][step]
            answers.append(DISCARD if is_computed or not is_last else REUSE)
            if is_computed:
                done.append(step)
            elif is_last:
                for needed in done[-depth:]:
                    answers[needed] = RECOMPUTE
        out[site] = answers
    return out


def num_cached(decided: Mapping[Site, Sequence[Decision]], depth: int) -> int:
    """How many values are cached at once, at most."""
    return sum(min(list(answers).count(RECOMPUTE), depth) for answers in decided.values())


def carried_over(computed: Sequence[bool], num_steps: int) -> list[bool]:
    """A site's plan for another number of steps: as large a share is computed, and distances grow in proportion.

    With computed steps p_0 = 0, ..., p_(n-1) of S and n' = round(n S' / S), the k-th of n' is where the plan has come to its
    computed step k n / n', linear in between. C R C R C C R R of 8 steps becomes C R C R C R C R C C C R R C R R of 16.
    """
    old = len(computed)
    if num_steps == old:
        return list(computed)
    places = [step for step, is_computed in enumerate(computed) if is_computed] + [old]
    count = len(places) - 1
    new = min(num_steps, max(1, math.floor(count * num_steps / old + 0.5)))
    chosen: list[int] = []
    for k in range(new):
        whole, part = divmod(k * count, new)
        place = places[whole] + (places[whole + 1] - places[whole]) * part / new
        step = math.floor(place * num_steps / old + 0.5)
        chosen.append(min(max(step, chosen[-1] + 1 if chosen else 0), num_steps - (new - k)))
    return [step in set(chosen) for step in range(num_steps)]


def units_of(sites: Sequence[Site], units: int) -> list[list[Site]]:
    """The sites of each part in so many runs of neighbours, as equal as can be; fewer where there are fewer sites."""
    out: list[list[Site]] = []
    for part in dict.fromkeys(site.part for site in sites):
        own = [site for site in sites if site.part is part]
        count = min(units, len(own))
        out += [own[i * len(own) // count : (i + 1) * len(own) // count] for i in range(count)]
    return out
