"""What follows from which sites are computed at which steps."""

import pytest

from fsframework.core import DISCARD, RECOMPUTE, REUSE, Kind, Part, Site
from fsframework.core.site_plan import carried_over, closed, decisions, num_cached, units_of

BLOCKS = [Site(Part.BLOCK, Kind.JOINT, i, i + 1, i) for i in range(5)]
LETTERS = {RECOMPUTE: "C", DISCARD: "D", REUSE: "R"}


def computed(*rows):
    return {site: [letter == "C" for letter in row] for site, row in zip(BLOCKS, rows)}


def text(steps):
    return "".join("C" if step else "R" for step in steps)


def answers(plans, depth=1, is_nested=False):
    return ["".join(LETTERS[answer] for answer in row) for row in decisions(plans, depth, is_nested).values()]


def test_a_value_that_no_later_step_puts_in_place_is_not_stored():
    plans = computed("CCRC", "CCCC")
    assert answers(plans) == ["DCRD", "DDDD"]
    assert answers(plans, depth=2) == ["CCRD", "DDDD"]
    assert num_cached(decisions(plans, 1, False), 1) == 1
    assert num_cached(decisions(plans, 2, False), 2) == 2


def test_of_stored_outputs_only_the_last_reused_blocks_is_put_in_place():
    plans = closed(computed("CCCC", "CCRC", "CRCR"))
    assert [text(row) for row in plans.values()] == ["CRRR", "CRRR", "CRCR"]
    # Step 1 and 3 put block 2 in place, step 2 block 1; what lies before is answered D and not run by the engine.
    assert answers(plans, is_nested=True) == ["DDDD", "CDRD", "CRCR"]
    assert num_cached(decisions(plans, 1, True), 1) == 2


@pytest.mark.parametrize(
    ("plan", "num_steps", "expected"),
    [
        ("CRCRCCRR", 8, "CRCRCCRR"),
        ("CRCRCCRR", 16, "CRCRCRCRCCCRRCRR"),
        ("CRRRCRRR", 4, "CRRR"),
        ("CRRCRRCRR", 6, "CRRCRR"),
        ("CCCC", 6, "CCCCCC"),
        ("CRRR", 2, "CR"),
    ],
)
def test_a_plan_for_another_number_of_steps_keeps_its_share_and_its_rhythm(plan, num_steps, expected):
    assert text(carried_over([letter == "C" for letter in plan], num_steps)) == expected


@pytest.mark.parametrize("num_steps", range(1, 40))
def test_a_plan_that_is_carried_over_begins_with_a_computed_step_and_has_the_right_number(num_steps):
    plan = [letter == "C" for letter in "CCRCRRCRRRCRCC"]  # 7 of 14
    found = carried_over(plan, num_steps)
    assert len(found) == num_steps
    assert found[0]
    assert sum(found) == max(1, int(num_steps / 2 + 0.5))


def test_units_are_neighbours_and_as_equal_as_can_be():
    assert [[site.ordinal for site in unit] for unit in units_of(BLOCKS, 2)] == [[0, 1], [2, 3, 4]]
    assert [[site.ordinal for site in unit] for unit in units_of(BLOCKS, 9)] == [[0], [1], [2], [3], [4]]
    parts = [Site(part, Kind.JOINT, i, i + 1, i) for i in range(4) for part in (Part.ATTENTION, Part.MLP)]
    names = [[site.name for site in unit] for unit in units_of(parts, 2)]
    assert names == [
        ["joint.0.attention", "joint.1.attention"], ["joint.2.attention", "joint.3.attention"],
        ["joint.0.mlp", "joint.1.mlp"], ["joint.2.mlp", "joint.3.mlp"],
    ]  # fmt: skip
