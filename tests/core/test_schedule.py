import pytest

from fsframework.core import DISCARD, RECOMPUTE, REUSE
from fsframework.core.schedule import check_every, is_reuse_step, most_kept, plan, warmup_steps


@pytest.mark.parametrize(
    ("warmup", "num_steps", "expected"),
    [(0.15, 50, 8), (0.15, 30, 5), (0.15, 4, 2), (0.0, 50, 2), (1.0, 50, 50), (8, 50, 8), (2, 50, 2)],
)
def test_a_fraction_rounds_half_up_to_at_least_the_minimum_and_a_number_is_taken_as_it_is(warmup, num_steps, expected):
    assert warmup_steps(warmup, num_steps, 2, "p") == expected


@pytest.mark.parametrize(
    ("warmup", "message"),
    [(1, "at least 2 steps"), (51, "longer than the run of 50 steps"), (1.5, "write an integer"), (-0.1, "fraction")],
)
def test_a_warmup_that_does_not_fit_says_what_to_do(warmup, message):
    with pytest.raises(ValueError, match=message):
        warmup_steps(warmup, 50, 2, "p")


def test_the_cycle_starts_with_reuse_after_the_warmup_and_a_phase_shifts_it():
    def letters(every, phase=0):
        return "".join("R" if is_reuse_step(s, 2, every, phase) else "C" for s in range(9))

    assert letters(2) == "CCRCRCRCR"
    assert letters(3) == "CCRRCRRCR"
    assert letters(2, phase=1) == "CCCRCRCRC"
    assert letters(1) == "CCCCCCCCC"


def test_a_cycle_of_no_steps_is_an_error():
    with pytest.raises(ValueError, match="interval=0 must be at least 1"):
        check_every(0, "interval", "static")


@pytest.mark.parametrize("every", [2.5, 2.0, True, "2", None])
def test_a_cycle_is_a_whole_number_of_steps(every):
    with pytest.raises(ValueError, match=r"static: interval=.* must be a whole number of steps"):
        check_every(every, "interval", "static")


@pytest.mark.parametrize(
    ("steps", "depth", "expected"),
    [
        ("CCRCR", 1, "dKRKR"),
        ("CCCRRCCR", 1, "ddKRRdKR"),  # the newest value before each stretch of reuses
        ("CCCRRCCR", 2, "dKKRRKKR"),  # the newest two
        ("CRCRCC", 2, "KRKRdd"),  # step 0's also serves the reuse at step 3; nothing after it is needed
        ("CRRCR", 3, "KRRKR"),
        ("CCCC", 2, "dddd"),
        ("RCR", 1, "RKR"),  # nothing is there to reuse at first: the engine recomputes it
        ("", 1, ""),
    ],
)
def test_a_plan_keeps_the_newest_values_before_a_reuse_and_no_others(steps, depth, expected):
    names = {DISCARD: "d", RECOMPUTE: "K", REUSE: "R"}
    assert "".join(names[decision] for decision in plan([step == "C" for step in steps], depth)) == expected


def test_most_kept_is_what_the_plan_keeps_and_the_depth_holds():
    reuse_once, reuse_twice, never = ([c == "C" for c in steps] for steps in ("CRCC", "CCRCRC", "CCCC"))
    assert [most_kept(never, depth) for depth in (1, 3)] == [0, 0]
    assert [most_kept(reuse_once, depth) for depth in (1, 2)] == [1, 1]
    assert [most_kept(reuse_twice, depth) for depth in (1, 2, 3, 9)] == [1, 2, 3, 3]
