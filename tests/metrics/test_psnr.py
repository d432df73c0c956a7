import math

import pytest
import torch

from fsframework.metrics import PSNR

GREY = torch.full((4, 32, 32, 3), 0.5)


def test_constant_error_of_a_tenth_is_twenty_decibels():
    assert PSNR()(GREY + 0.1, GREY, "")["psnr"] == pytest.approx(20.0, abs=1e-5)


def test_identical_videos_are_infinitely_good():
    assert PSNR()(GREY, GREY.clone(), "") == {"psnr": math.inf}


def test_errors_are_pooled_over_the_clip_not_averaged_per_frame():
    video = GREY.clone()
    video[0] += 0.2  # one frame of four: MSE 0.04 / 4 = 0.01
    assert PSNR()(video, GREY, "")["psnr"] == pytest.approx(20.0, abs=1e-5)


def test_clips_are_pooled_by_squared_error():
    # 20 dB is MSE 0.01, inf is 0: the mean 0.005 is 23.01 dB, where a mean of decibels would be infinite
    pooled = PSNR().aggregate([20.0, math.inf])
    assert pooled.mean == pytest.approx(23.0103, abs=1e-4)
    assert pooled.low == pytest.approx(20.0)
    assert pooled.high == math.inf
    assert pooled.n == 2


def test_interval_ends_are_in_order():
    pooled = PSNR().aggregate([20.0, 25.0, 30.0, 32.0])
    assert pooled.low < pooled.mean < pooled.high


def test_all_identical_is_infinite_without_nan():
    pooled = PSNR().aggregate([math.inf, math.inf])
    assert (pooled.mean, pooled.low, pooled.high) == (math.inf,) * 3


def test_eight_bit_pixels_another_shape_and_no_reference_are_clear_errors():
    with pytest.raises(ValueError, match="Divide 8-bit frames by 255"):
        PSNR()(GREY * 255, GREY, "")
    with pytest.raises(ValueError, match=r"\(4, 32, 32, 3\) and \(2, 32, 32, 3\)"):
        PSNR()(GREY, GREY[:2], "")
    with pytest.raises(ValueError, match="full-compute video"):
        PSNR()(GREY, None, "")
    with pytest.raises(ValueError, match="pixels in"):
        PSNR()(GREY * math.nan, GREY, "")
