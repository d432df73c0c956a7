"""`Lifetime`: until when what a branch caches can still be read, where the policy's schedule tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsframework.core.policy import ReusePolicy
from fsframework.core.site import Part, Run, Site


class Lifetime:
    """Whether a value that is cached at one step may be read at a later one.

    Known for policies with a `schedule` that compare nothing with what is cached (no `observe`). They read at the steps that
    are not fully recomputed, and there the newest `depth` values. So a value is dead as soon as `depth` full recomputes come
    before the next reuse, or none comes any more; it need not be stored at all if that is known when it is computed. With
    one reuse in four, C C C R, the first two are not stored, and the value is freed when its R is over.

    Any other policy may read whatever is cached in every step: it decides, or compares, by what it finds. So may one that
    makes branches of guidance from each other, in an order that is not its run's. Of policies side by side (`divides`) each
    is looked at by itself; one whose sites lie within another's may not be asked where it planned to recompute, and then
    reads what its schedule calls dead, so nothing is known of it.
    """

    def __init__(self, policy: ReusePolicy[Any], run: Run) -> None:
        makes_branches = Part.MODEL in policy.parts
        # Sites whose reads are known: after which steps what is cached for them may be read.
        scheduled: list[tuple[frozenset[Site], list[bool]]] = []
        for one, own in _side_by_side(policy, run):
            compares = type(one).observe is not ReusePolicy.observe
            schedule = None if compares or makes_branches else one.schedule(own)
            if schedule is None:
                continue
            depth = max((policy.depth_of(site) for site in own.sites), default=1)
            needed = [False in schedule[step + 1 : step + 1 + depth] for step in range(run.num_steps)]
            scheduled.append((frozenset(own.sites), needed))
        self._unread = [  # by step; worked out once, and not in every forward
            frozenset().union(*(sites for sites, needed in scheduled if not needed[step]))
            for step in range(run.num_steps)
        ]

    def unread_after(self, step: int) -> frozenset[Site]:
        """Sites of which nothing that is cached when `step` is over will be read."""
        return self._unread[step] if step >= 0 else frozenset()


def _side_by_side(policy: ReusePolicy[Any], run: Run) -> list[tuple[ReusePolicy[Any], Run]]:
    if not policy.divides:
        return [(policy, run)]
    held = [one for name in policy.policy_fields for one in getattr(policy, name)]
    # What is further inside may be read by the policy around it in a way of its own (a forecast that is judged).
    found = [(one, own) for _, one, own in policy.inner(run) if any(one is it for it in held)]
    return [
        (one, own)
        for one, own in found
        if not any(_lie_within(own.sites, other.sites) for _, other in found if other is not own)
    ]


def _lie_within(sites: Sequence[Site], others: Sequence[Site]) -> bool:
    """Whether any of `sites` is run by another's."""
    around = [other for other in others if not other.part.inside_block]
    return any(o.start <= s.start and s.stop <= o.stop for s in sites for o in around)
