import math

import numpy as np
import pytest

from fsframework.metrics import bootstrap, ratio, wilson
from fsframework.metrics.statistics import cluster_means, spread_within_and_between


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


# Resampling prompts with all their seeds.


def columns(*lists):
    return np.array(lists, dtype=float).T


def test_seeds_that_agree_within_every_prompt_add_no_certainty():
    prompt_values = [1.0, 2.0, 4.0, 8.0, 9.0]
    videos = [value for value in prompt_values for _ in range(6)]
    prompts = [name for name in "abcde" for _ in range(6)]
    clustered = cluster_means(columns(videos), prompts).interval()
    by_prompt = bootstrap(prompt_values)
    assert (clustered.mean, clustered.low, clustered.high) == pytest.approx(
        (by_prompt.mean, by_prompt.low, by_prompt.high)
    )
    assert (clustered.n, clustered.num_clusters) == (30, 5)
    # Taking the 30 videos for independent would make the interval less than half as wide.
    alone = bootstrap(videos)
    assert alone.high - alone.low < 0.5 * (clustered.high - clustered.low)


def test_two_prompts_give_the_interval_from_one_to_the_other():
    # Drawn are a a (1/4), a b (1/2), b b (1/4): the 2.5 % and 97.5 % points are the prompts' own means, 1 and 5.
    interval = cluster_means(columns([0, 2, 4, 6]), ["a", "a", "b", "b"]).interval()
    assert (interval.mean, interval.low, interval.high) == (3.0, 1.0, 5.0)


def test_a_prompt_with_more_videos_weighs_more():
    assert cluster_means(columns([0, 0, 0, 4]), ["a", "a", "a", "b"]).interval().mean == 1.0


def test_columns_share_their_draws_so_a_constant_difference_has_no_width():
    means = cluster_means(columns([1, 5, 9], [3, 7, 11]), ["a", "b", "c"])
    interval = means.interval(lambda m: m[..., 1] - m[..., 0])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, 2.0, 2.0))
    first = means.interval()
    assert first.high - first.low > 2


def test_a_video_that_lacks_one_value_is_left_out_of_both_columns():
    means = cluster_means(columns([1, math.nan, 3], [10, 20, 30]), ["a", "b", "c"])
    assert (means.n, means.num_clusters, means.centre.tolist()) == (2, 2, [2.0, 20.0])


def test_one_prompt_has_no_interval_and_none_no_mean():
    one = cluster_means(columns([1, 3]), ["a", "a"]).interval()
    assert (one.mean, one.n, one.num_clusters) == (2.0, 2, 1)
    assert math.isnan(one.low)
    none = cluster_means(columns([math.nan]), ["a"]).interval()
    assert (none.n, none.num_clusters) == (0, 0)
    assert math.isnan(none.mean)


def test_infinite_values_and_missing_clusters_are_refused():
    with pytest.raises(ValueError, match="finite"):
        cluster_means(columns([1.0, math.inf]), ["a", "b"])
    with pytest.raises(ValueError, match="2 rows, 1 clusters"):
        cluster_means(columns([1.0, 2.0]), ["a"])


def test_spread_between_prompts_and_between_seeds_is_the_hand_computed_one():
    # Means 2 and 6: deviation sqrt((4 + 4) / 1). Within: squares 1 + 1 + 4 + 4 over 2 degrees of freedom.
    between, within = spread_within_and_between([1, 3, 4, 8], ["a", "a", "b", "b"])
    assert between == pytest.approx(math.sqrt(8))
    assert within == pytest.approx(math.sqrt(5))
    one_seed = spread_within_and_between([1, 3], ["a", "b"])
    assert one_seed[0] == pytest.approx(math.sqrt(2))
    assert math.isnan(one_seed[1])
