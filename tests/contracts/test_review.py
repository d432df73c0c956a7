"""What is said of a video in which nothing was reused: how near it came, wherever the policy measures."""

import math
import warnings
from dataclasses import dataclass

import pytest
from toys import run_scripted

from fsframework.core import Part, Recompute, Reuse, ReusePolicy, ReuseWarning
from fsframework.policies import Combined, ForecastReuse, FullCompute, MagCache, StaticReuse, TGate


@dataclass(frozen=True)
class Measures(ReusePolicy):
    """Logs (distance, threshold) pairs at its sites, in turn, and recomputes everything."""

    pairs: tuple = ()
    part: Part = Part.BLOCK
    plan: list | None = None

    @property
    def parts(self):
        return frozenset({self.part})

    def spans(self, num_blocks):
        return ((0, num_blocks),)

    def start(self, run):
        return list(self.pairs)

    def decide(self, state, call, site):
        if state:
            distance, threshold = state.pop(0)
            call.log(distance=distance, threshold=threshold)
        return Recompute()

    def schedule(self, run):
        return self.plan


def said_of(policy, num_steps=2):
    with pytest.warns(ReuseWarning) as found:
        run_scripted(policy, lambda block, t: 1.0, num_steps=num_steps, num_blocks=2)
    return [str(w.message) for w in found]


@pytest.mark.parametrize("part", [Part.BLOCK, Part.SPAN, Part.TRUNK, Part.MODEL])
def test_the_smallest_distance_and_the_threshold_are_named_whatever_part_they_are_of(part):
    said = said_of(Measures(pairs=((0.5, 0.2), (0.25, 0.2)), part=part))
    assert said == ["Measures reused nothing in 2 steps. Smallest distance 0.25, largest threshold 0.2."]


def test_an_accumulated_distance_is_named_by_its_smallest_sum():
    sums = ((0.3, 0.2), (0.6, 0.2), (0.9, 0.2))
    (said,) = said_of(Measures(pairs=sums, part=Part.TRUNK), num_steps=3)
    assert said == "Measures reused nothing in 3 steps. Smallest distance 0.3, largest threshold 0.2."


def test_with_thresholds_of_their_own_the_site_that_came_nearest_is_named():
    # The smallest distance is below the largest threshold, but of another block: 1.8 is 2 times its own, 0.5 is 5 times.
    (said,) = said_of(Measures(pairs=((0.5, 0.1), (1.8, 0.9))))
    assert said == (
        "Measures reused nothing in 2 steps. Smallest distance 0.5, largest threshold 0.9. Nearest to its threshold: "
        "joint.1 at step 0, 1.8 against 0.9."
    )


def test_a_policy_that_measured_nothing_is_said_to_have_measured_nothing():
    assert said_of(Measures()) == ["Measures reused nothing in 2 steps. No distance was logged."]


def test_distances_that_are_not_finite_are_a_warning_of_their_own_and_not_the_smallest():
    said = said_of(Measures(pairs=((math.inf, 0.1), (math.nan, 0.1), (2.0, 0.1))))
    assert said[0].startswith("2 of 3 distances are not finite; first: inf at joint.0, step 0.")
    assert said[1] == "Measures reused nothing in 2 steps. Smallest distance 2, largest threshold 0.1."


def test_a_schedule_without_reuse_is_what_was_asked_for(recwarn):
    run_scripted(Measures(plan=[True, True]), lambda block, t: 1.0, num_steps=2)
    assert not recwarn.list


def test_a_schedule_with_reuse_that_did_not_happen_is_a_warning():
    assert "reused nothing" in said_of(Measures(plan=[True, False]))[0]


@pytest.mark.parametrize(
    ("policy", "num_steps"),
    [
        (StaticReuse(warmup=4), 4),
        (MagCache(ratios=[0.5]), 6),
        (TGate(gate_step=10, warmup=6, drop_branch=False), 6),
        (ForecastReuse(base=StaticReuse(warmup=4)), 4),
    ],
)
def test_a_plan_that_never_reuses_is_said_to_be_one(policy, num_steps):
    (said,) = said_of(policy, num_steps)
    assert said == (
        f"{type(policy).__name__} reused nothing: its plan for these {num_steps} steps recomputes every one. See its warmup, "
        f"interval, window or threshold."
    )


def test_a_policy_inside_a_combination_that_reused_nothing_is_named():
    # The outer one reuses the trunk every second step; the inner one measures 0.5 and 0.25 against 0.2, and never reuses.
    @dataclass(frozen=True)
    class Outer(ReusePolicy):
        parts = frozenset({Part.TRUNK})

        def decide(self, state, call, site):
            return Reuse() if call.step.index % 2 else Recompute()

    blocks = Measures(pairs=((0.5, 0.2), (0.25, 0.2)))
    never = Combined([Measures(plan=[True] * 4), Outer()])  # states no reuse beforehand: asked for
    for policy, name in (
        (Combined([Outer(), blocks]), "In Combined, Measures"),
        (Combined([Combined([blocks, Outer()])]), "In Combined, Measures"),
        (ForecastReuse(base=Combined([Outer(), blocks])), "In ForecastReuse, Measures"),
    ):
        # Blocks that the trunk passed over stand in the trace as reused, but it was not the block policy that did so.
        assert said_of(policy, num_steps=4) == [
            f"{name} reused nothing in the 2 of 4 steps it was asked in. Smallest distance 0.25, largest threshold 0.2."
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReuseWarning)
        run_scripted(never, lambda block, t: 1.0, num_steps=4, num_blocks=2)


@pytest.mark.parametrize("policy", [FullCompute(), StaticReuse(interval=1), ForecastReuse(base=FullCompute())])
def test_what_was_asked_for_needs_no_warning(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReuseWarning)
        run_scripted(policy, lambda block, t: 1.0, num_steps=3, num_blocks=2)
