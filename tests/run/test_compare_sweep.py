"""Lines through a sweep's own settings, with numbers to check by hand."""

import math

import numpy as np
import pytest

from fsframework.metrics import METRICS
from fsframework.run.compare_quality import baseline_table, quality_table
from fsframework.run.compare_sweep import MOST_DB, Sweep, crossing, curve, read_off, scale_of
from fsframework.run.compare_tables import compute_table, prompts_table, spread_table


def sweep(name, fraction, psnr, time=None, prompts=None, reference_seconds=None):
    """Rows are videos; by default each has a prompt of its own and takes as much time as it computes."""
    fraction = np.array(fraction, dtype=float)
    psnr = np.array(psnr, dtype=float)
    n, num_settings = psnr.shape
    fraction = np.broadcast_to(fraction, psnr.shape).copy()
    prompts = prompts or [f"prompt {i}" for i in range(n)]
    return Sweep(
        name,
        [f"k={k}" for k in range(num_settings)],
        [(prompt, seed) for seed, prompt in enumerate(prompts)],
        fraction,
        fraction.copy() if time is None else np.broadcast_to(np.array(time, dtype=float), psnr.shape).copy(),
        np.full(n, 2.0) if reference_seconds is None else np.array(reference_seconds, dtype=float),
        {"psnr": psnr},
    )


def test_halfway_between_two_settings_are_the_means_of_decibels_and_of_seconds():
    one = sweep("a", [0.4, 0.6], [[30, 40]], time=[0.5, 0.7])
    reading = read_off(one, [0.5])
    assert reading.quality["psnr"][0, 0] == pytest.approx(35)
    assert reading.time[0, 0] == pytest.approx(0.6)
    assert reading.beyond[0, 0] == 0


def test_each_video_is_read_off_between_its_own_settings():
    # At 0.5: the first is a quarter of the way from 0.45 to 0.65, the second at its own setting.
    one = sweep("a", [[0.45, 0.65, 0.9], [0.3, 0.5, 0.7]], [[30, 34, 50], [20, 28, 40]])
    assert read_off(one, [0.5]).quality["psnr"][:, 0] == pytest.approx([31, 28])


def test_a_line_is_followed_by_the_reach_and_no_further_and_that_is_known():
    one = sweep("a", [0.4, 0.6], [[30, 40]])
    reading = read_off(one, [0.64, 0.66], reach=0.05)
    assert reading.quality["psnr"][0, 0] == pytest.approx(42)
    assert reading.beyond[0, 0] == pytest.approx(0.04)
    assert math.isnan(reading.quality["psnr"][0, 1])
    assert np.isnan(read_off(one, [0.61], reach=0.0).quality["psnr"]).all()


def test_a_line_through_two_neighbouring_settings_is_not_followed_farther_than_they_lie_apart():
    one = sweep("a", [0.50, 0.51], [[30, 40]])  # 1000 dB per unit of compute
    assert read_off(one, [0.52]).quality["psnr"][0, 0] == pytest.approx(50)
    assert np.isnan(read_off(one, [0.54]).quality["psnr"]).all()


def test_settings_of_equal_compute_count_once_and_a_single_one_is_no_line():
    one = sweep("a", [0.4, 0.4, 0.6], [[30, 34, 40]])
    assert read_off(one, [0.4]).quality["psnr"][0, 0] == pytest.approx(32)
    assert np.isnan(read_off(sweep("a", [0.5], [[30]]), [0.5]).quality["psnr"]).all()


def test_identical_videos_end_a_line_at_a_finite_quality():
    one = sweep("a", [0.4, 0.6], [[30, math.inf]])
    assert read_off(one, [0.5]).quality["psnr"][0, 0] == pytest.approx((30 + MOST_DB) / 2)


def test_psnr_at_equal_compute_is_pooled_as_the_metric_pools_it():
    one = sweep("a", [0.4, 0.6], [[20, 30], [40, 50], [30, 36]])
    cell = compute_table([one], 0.5, ["psnr"], None).rows[0].cells[0]
    assert cell.value == pytest.approx(METRICS["psnr"]().aggregate([25, 45, 33]).mean)
    assert cell.value == pytest.approx(-10 * math.log10((10**-2.5 + 10**-4.5 + 10**-3.3) / 3))
    assert (cell.num_videos, cell.num_prompts) == (3, 3)


def test_speedup_at_equal_compute_is_a_ratio_of_totals_of_the_videos_that_were_timed():
    # Seconds at 0.5: 10 x 0.6 and 30 x 0.5; the third was not timed. 40 / 21.
    one = sweep(
        "a", [0.4, 0.6], [[30, 40]] * 3, time=[[0.5, 0.7], [0.4, 0.6], [math.nan] * 2], reference_seconds=[10, 30, 5]
    )
    cell = compute_table([one], 0.5, ["psnr"], None).rows[0].cells[1]
    assert cell.value == pytest.approx(40 / 21)
    assert cell.num_videos == 2


def test_differences_to_the_baseline_are_paired_so_what_both_share_has_no_width():
    levels = [[20, 30], [30, 40], [40, 50]]  # videos differ by 20 dB, methods always by 3
    base, other = sweep("base", [0.4, 0.6], levels), sweep("other", [0.4, 0.6], np.array(levels) + 3)
    table = compute_table([base, other], 0.5, ["psnr"], base)
    best = table.rows[0]
    difference = best.cells[2]
    assert (best.label, table.columns[2]) == ("other", "psnr dB minus base")
    assert (difference.value, difference.low, difference.high) == pytest.approx((3, 3, 3))
    assert best.cells[0].high - best.cells[0].low > 3
    assert best.cells[3].value == pytest.approx(1)


def test_a_video_out_of_reach_is_left_out_of_n_and_said():
    base = sweep("base", [0.4, 0.6], [[30, 40]] * 3)
    other = sweep("other", [[0.4, 0.6], [0.47, 0.6], [0.7, 0.9]], [[30, 40]] * 3)
    table = compute_table([base, other], 0.45, ["psnr"], base)
    row = next(row for row in table.rows if row.label == "other")
    assert row.cells[0].num_videos == row.cells[2].num_videos == 2
    assert any("other: 2 of 3 videos reach 0.45" in note for note in table.notes)
    assert any("other: 1 of 2 videos were read up to 0.020 beyond" in note for note in table.notes)


def test_seeds_of_one_prompt_do_not_narrow_the_interval():
    few = sweep("a", [0.4, 0.6], [[20, 30], [30, 40], [40, 50]], prompts=["x", "y", "z"])
    many = sweep("a", [0.4, 0.6], [[20, 30], [30, 40], [40, 50]] * 4, prompts=["x", "y", "z"] * 4)
    a, b = (compute_table([s], 0.5, ["psnr"], None).rows[0].cells[0] for s in (few, many))
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))
    assert (b.num_videos, b.num_prompts) == (12, 3)


# Equal quality.


def test_the_crossing_is_the_least_compute_that_comes_up_to_the_level():
    at = np.array([0.2, 0.4, 0.6, 0.8])
    quality = np.array([10.0, 30.0, 20.0, 40.0])  # reaches 25 at 0.35, falls below it, reaches it again
    assert crossing(at, quality, 25.0, True) == pytest.approx(0.35)
    assert crossing(at, quality, 50.0, True) == math.inf
    assert crossing(at, quality, 5.0, True) == -math.inf
    assert crossing(at, -quality, -25.0, False) == pytest.approx(0.35)
    two = crossing(at, np.stack([quality, quality + 10]), np.array([25.0, 25.0]), True)
    assert two == pytest.approx([0.35, 0.25])


def test_at_equal_quality_one_method_takes_the_share_where_its_own_line_has_it():
    # 35 dB at 0.5 and at 0.45: 2 and 2.22 times fewer FLOPs; seconds are 0.1 more than that.
    slow = sweep("slow", [0.4, 0.6], [[30, 40]] * 2, time=[0.5, 0.7])
    fast = sweep("fast", [0.35, 0.55], [[30, 40]] * 2, time=[0.45, 0.65])
    table = quality_table([slow, fast], "psnr", 35.0, slow)
    first, second = table.rows
    assert (first.label, second.label) == ("fast", "slow")
    assert [first.cells[i].value for i in range(3)] == pytest.approx([0.45, 1 / 0.45, 1 / 0.55], rel=1e-3)
    assert [second.cells[i].value for i in range(3)] == pytest.approx([0.5, 2.0, 1 / 0.6], rel=1e-3)
    assert [first.cells[i].value for i in (3, 4)] == pytest.approx([0.5 / 0.45, 0.6 / 0.55], rel=1e-3)


def test_equal_quality_inverts_equal_compute():
    rng = np.random.default_rng(2)
    one = sweep("a", [0.3, 0.5, 0.7], 20 + 30 * np.array([0.3, 0.5, 0.7]) + rng.normal(0, 3, (6, 1)))
    quality = compute_table([one], 0.42, ["psnr"], None).rows[0].cells[0].value
    assert quality_table([one], "psnr", quality).rows[0].cells[0].value == pytest.approx(0.42, abs=1e-4)


def test_the_quality_of_a_baseline_with_one_setting_is_a_level_for_the_others():
    one = sweep("one", [0.6], [[35], [35]])
    line = sweep("line", [0.4, 0.6], [[30, 40], [30, 40]])
    table = baseline_table([one, line], "psnr", one, 0)
    assert table.title == "At the psnr of one: k=0: 35.0 dB"
    row = next(row for row in table.rows if row.label == "line")
    assert row.cells[0].value == pytest.approx(0.5, abs=1e-3)
    assert row.cells[3].value == pytest.approx(0.6 / 0.5, rel=1e-3)  # FLOPs
    assert row.cells[4].value == pytest.approx(0.6 / 0.5, rel=1e-3)  # seconds


def test_what_is_not_reached_is_said_with_the_best_there_is_and_a_dip_is_said_too():
    one = sweep("one", [0.3, 0.5, 0.6, 0.8], [[20, 32, 28, 34]])
    low = quality_table([one], "psnr", 60.0, reach=0.0)
    assert low.rows[0].cells[0].text == "not reached; at best 34.0, at 0.800"
    dip = quality_table([one], "psnr", 30.0, reach=0.0)
    assert dip.rows[0].cells[0].value == pytest.approx(0.3 + 0.2 * 10 / 12, abs=1e-3)
    # On the lines from 0.55 to 0.667; said at the points of the curve within.
    assert dip.notes == ["one falls below it again between 0.553 and 0.665 of full compute."]
    always = quality_table([one], "psnr", 10.0, reach=0.0).rows[0].cells
    assert (always[0].text, always[0].value, always[0].is_low_open) == (
        "at most",
        0.3,
        False,
    )  # one prompt: no interval
    two = quality_table([sweep("two", [0.3, 0.5], [[20, 30], [22, 30]])], "psnr", 5.0, reach=0.0)
    assert two.rows[0].cells[0].spread == "<0.300 to 0.300"
    assert two.rows[0].cells[1].spread == "3.33 to >3.33"
    assert (always[1].text, always[1].value) == ("at least", pytest.approx(1 / 0.3))


def test_an_interval_that_leaves_the_settings_tried_is_cut_there_and_marked():
    # Alone the first prompt reaches 35 dB at 0.5; the second never does. Pooled they do at the upper end only.
    one = sweep("one", [0.4, 0.8], [[30, 50], [25, 33]])
    cell = quality_table([one], "psnr", 33.0, reach=0.0).rows[0].cells[0]
    assert cell.low == pytest.approx(0.46, abs=1e-3)
    assert cell.high == 0.8
    assert not cell.is_low_open
    assert cell.value < 0.8
    above = quality_table([one], "psnr", 34.0, reach=0.0).rows[0].cells[0]
    assert (above.high, above.is_high_open, above.spread) == (0.8, True, f"{above.low:.3f} to >0.800")


def test_a_curve_exists_only_where_all_videos_have_settings():
    apart = sweep("a", [[0.2, 0.3], [0.6, 0.7]], [[30, 40]] * 2)
    assert curve(apart, "psnr") is None
    assert quality_table([apart], "psnr", 35.0).rows[0].cells[0].text == "- (its videos share no range of compute)"
    shared = curve(sweep("a", [[0.2, 0.6], [0.4, 0.8]], [[30, 40]] * 2), "psnr", reach=0.0)
    assert (shared.at[0], shared.at[-1]) == (0.4, 0.6)


def test_lower_is_better_for_lpips_and_its_mean_is_plain():
    scale = scale_of("lpips")
    assert not scale.higher_is_better
    assert scale.from_mean(scale.to_mean(np.array([0.1, 0.3])).mean()) == pytest.approx(0.2)


# Spread.


def test_spread_names_the_worst_and_best_prompt_and_tells_prompts_from_seeds():
    values = np.array([30.0, 34.0, 40.0, 44.0, 35.0, 35.0])
    table = spread_table([("a", values, ["x", "x", "y", "y", "z", "z"])], "ssim", "t")
    worst, median, best, prompts, seeds, n = table.rows[0].cells
    assert (worst.value, worst.text, best.value, best.text) == (32, "x", 42, "y")
    assert median.value == 35
    assert prompts.value == pytest.approx(np.std([32, 42, 35], ddof=1))
    assert seeds.value == pytest.approx(math.sqrt((8 + 8 + 0) / 3))
    assert n.text == "6 (3)"


def test_by_prompt_the_worst_prompt_comes_first_with_the_interval_of_its_seeds():
    one = sweep("a", [0.4, 0.6], [[30, 40], [20, 30], [32, 42], [20, 30]], prompts=["x", "y", "x", "y"])
    table = prompts_table([one], "psnr", 0.5)
    assert [row.label for row in table.rows] == ["y", "x"]
    x = table.rows[1].cells[0]
    assert (x.num_videos, x.num_prompts) == (2, 1)
    assert (x.low, x.high) == pytest.approx((35, 37))
