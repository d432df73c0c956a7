import math

import numpy as np
import pytest

from fsframework.metrics import bootstrap, ratio, wilson


def test_wilson_of_eight_of_ten_is_the_textbook_interval():
    interval = wilson([1] * 8 + [0] * 2)
    assert (interval.mean, interval.n) == (0.8, 10)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.490, 0.943)


def test_wilson_stays_open_when_all_values_agree():
    # z^2 / (n + z^2) is what is left out at the other end: 3.8415 / 9.8415 = 0.390
    interval = wilson([1.0] * 6)
    assert interval.high == 1
    assert interval.low == pytest.approx(1 - 0.3903, abs=1e-4)
    assert wilson([0.0] * 6).high == pytest.approx(0.3903, abs=1e-4)


def test_wilson_refuses_values_that_are_no_counts():
    with pytest.raises(ValueError, match=r"0\.5.*bootstrap"):
        wilson([0.0, 0.5])


def test_bootstrap_interval_holds_the_mean_and_shrinks_with_n():
    values = np.random.default_rng(3).normal(10, 2, 400)
    few, many = bootstrap(values[:16]), bootstrap(values)
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    # the normal theory's width is 2 * 1.96 * 2 / sqrt(400) = 0.392
    assert many.high - many.low == pytest.approx(0.392, rel=0.12)


def test_bootstrap_gives_the_same_interval_every_time():
    assert bootstrap([1, 2, 4, 8]) == bootstrap([1, 2, 4, 8])


def test_one_value_has_no_interval_and_none_has_no_mean():
    one, none = bootstrap([3.0]), bootstrap([])
    assert (one.mean, one.n) == (3.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert none.n == 0
    assert math.isnan(none.mean)


def test_values_not_measured_are_left_out_and_n_says_so():
    interval = bootstrap([1.0, math.nan, 3.0])
    assert (interval.mean, interval.n) == (2.0, 2)
    assert wilson([1.0, math.nan]).n == 1


def test_infinite_values_do_not_break_the_interval():
    interval = bootstrap([1.0, math.inf])
    assert interval.mean == math.inf
    assert interval.low == 1.0


def test_speedup_is_the_ratio_of_the_sums():
    # 30 s of reference over 20 s of method, not the mean of 1.0 and 2.0
    interval = ratio([10, 20], [10, 10])
    assert interval.mean == 1.5
    assert interval.low >= 1.0
    assert interval.high <= 2.0


def test_a_pair_with_a_missing_time_is_left_out():
    assert ratio([10, 20, math.nan], [5, 0, 1]) == ratio([10], [5])
    with pytest.raises(ValueError, match="2 numerators and 1 denominators"):
        ratio([1, 2], [1])


def test_an_entry_has_the_keys_of_metrics_json():
    entry = wilson([1, 0]).entry("", "higher")
    assert list(entry) == ["mean", "low", "high", "n", "unit", "better"]
