import math

import pytest
import torch

from fsframework.metrics import Flicker


def blinking(amplitude: float) -> torch.Tensor:
    clip = torch.zeros(4, 16, 16, 3)
    clip[1::2] = amplitude
    return clip


def test_twice_the_change_from_frame_to_frame_is_two():
    assert Flicker()(blinking(0.4), blinking(0.2), "")["flicker"] == pytest.approx(2.0)


def test_the_reference_itself_is_one_and_a_frozen_video_zero():
    assert Flicker()(blinking(0.2), blinking(0.2), "")["flicker"] == pytest.approx(1.0)
    assert Flicker()(blinking(0.0), blinking(0.2), "")["flicker"] == 0.0


def test_a_frozen_reference_or_a_single_frame_is_not_measured():
    assert math.isnan(Flicker()(blinking(0.2), blinking(0.0), "")["flicker"])
    assert math.isnan(Flicker()(blinking(0.2)[:1], blinking(0.2)[:1], "")["flicker"])
