import pytest

from fsframework.core.schedule import check_every, is_reuse_step, warmup_steps


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
