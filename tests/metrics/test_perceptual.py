"""GMSD, HaarPSI, MDSI and VSI: what they have in common, and numbers by hand and by independent implementations."""

import pytest
import torch
from clips import blurred, noisy, waves

from fsframework.metrics import GMSD, MDSI, VSI, HaarPSI, images
from fsframework.metrics.haarpsi import _haar
from fsframework.metrics.images import PREWITT, SCHARR, gradient_magnitude, shrink, similarity
from fsframework.metrics.vsi import _lab

METRICS = [HaarPSI(), GMSD(), MDSI(), VSI()]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
CLIP = waves()


def value(metric, video, reference) -> float:
    return metric(video, reference, "")[metric.name]


@every_metric
@pytest.mark.parametrize("clip", [CLIP, CLIP * 0, CLIP * 0 + 1], ids=["waves", "black", "white"])
def test_identical_videos_are_perfect_even_without_any_structure(metric, clip):
    assert value(metric, clip, clip.clone()) == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-9)


@every_metric
def test_more_noise_is_worse(metric):
    values = [value(metric, noisy(CLIP, amount), CLIP) for amount in (0.01, 0.05, 0.1, 0.3)]
    assert values == sorted(values, reverse=metric.higher_is_better)
    assert len(set(values)) == 4


@pytest.mark.parametrize("metric", [HaarPSI(), GMSD(), VSI()], ids=lambda m: m.name)
def test_video_and_reference_may_change_places(metric):
    assert value(metric, noisy(CLIP, 0.1), CLIP) == pytest.approx(value(metric, CLIP, noisy(CLIP, 0.1)), rel=1e-12)


PIQ = {  # piq 0.8.0 on the same clips
    "haarpsi": (0.8265450, 0.9915646, 0.7694633),
    "gmsd": (0.0456067, 0.0050036, 0.0745309),
    "mdsi": (0.3769063, 0.2259403, 0.4790633),
    "vsi": (0.9275811, 0.9979076, 0.9607188),
}
TOLERANCE = {"haarpsi": 1e-3, "gmsd": 1e-3, "mdsi": 2e-5, "vsi": 2e-4}
"""Relative. piq's YIQ matrix has one digit more, its deviation divides by n, not n - 1, its L*a*b* white differs."""


@every_metric
def test_agrees_with_an_independent_implementation(metric):
    distorted = (noisy(CLIP, 0.1), blurred(CLIP), CLIP.flip(-1))
    values = [value(metric, video, CLIP) for video in distorted]
    assert values == pytest.approx(PIQ[metric.name], rel=TOLERANCE[metric.name])


@every_metric
def test_long_videos_are_compared_a_few_frames_at_a_time_with_the_same_result(metric, monkeypatch):
    clip = waves(32, 5)
    whole = value(metric, noisy(clip, 0.1), clip)
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 2 * 32 * 32)
    assert value(metric, noisy(clip, 0.1), clip) == pytest.approx(whole, rel=1e-12)


@every_metric
def test_half_precision_and_double_are_taken_and_the_mean_is_over_frames(metric):
    a, b = noisy(CLIP, 0.1)[:1], noisy(CLIP, 0.2)[1:]
    both = value(metric, torch.cat([a, b]), CLIP)
    alone = [value(metric, a.double(), CLIP[:1].double()), value(metric, b, CLIP[1:])]
    assert both == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert value(metric, CLIP.half(), CLIP.half()) == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-9)


@every_metric
def test_what_can_not_be_compared_is_refused_with_the_reason(metric):
    with pytest.raises(ValueError, match="full-compute video"):
        metric(CLIP, None, "")
    with pytest.raises(ValueError, match=r"\(2, 64, 64, 3\) and \(1, 64, 64, 3\)"):
        metric(CLIP, CLIP[:1], "")
    with pytest.raises(ValueError, match="Divide 8-bit frames by 255"):
        metric(CLIP * 255, CLIP, "")
    with pytest.raises(ValueError, match=r"must be float \[frames, height, width, 3\]; got torch\.uint8"):
        metric((CLIP * 255).to(torch.uint8), CLIP, "")
    with pytest.raises(ValueError, match=rf"{metric.name} needs frames of at least .* these are 4 x 64"):
        metric(CLIP[:, :4], CLIP[:, :4], "")


@pytest.mark.parametrize("kernel", [PREWITT, SCHARR])
def test_gradient_of_a_ramp_is_twice_its_slope(kernel):
    # Central difference over two pixels, summed over weights that add to 1: 2 x 3 across, 2 x 4 down, 10 together.
    ramp = 3 * torch.arange(8.0)[None, :] + 4 * torch.arange(8.0)[:, None]
    inside = gradient_magnitude(ramp[None, None].double(), kernel)[0, 0, 1:-1, 1:-1]
    assert torch.allclose(inside, torch.full_like(inside, 10.0), rtol=1e-6)


def test_haar_coefficients_of_an_upright_edge():
    # 0 | 100: one half of a square of side 2^s less the other is 100 x 4^s / 2, times 2^-s: 100 x 2^s / 2.
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 8:] = 100.0
    for scale in (1, 2, 3):
        assert _haar(edge, scale, upright=True)[0, 0, 8].max() == 100 * 2**scale / 2
        assert _haar(edge, scale, upright=False)[0, 0, 8].max() == 0  # the halves above and below are equal


def test_similarity_by_hand_and_shrinking_to_near_256():
    a, b = torch.tensor([1.0]), torch.tensor([3.0])
    assert similarity(a, b, 2.0).item() == pytest.approx(8 / 12)  # (2*1*3 + 2) / (1 + 9 + 2)
    assert shrink(torch.rand(1, 3, 480, 720)).shape[-2:] == (240, 360)  # round(480 / 256) = 2
    assert shrink(torch.rand(1, 3, 300, 300)).shape[-2:] == (300, 300)


def test_red_in_cie_lab():
    # The textbook value of sRGB red under D65.
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert _lab(red).flatten().tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.02)


def test_gmsd_and_mdsi_hardly_mind_a_constant_and_mind_damage_in_one_place():
    brighter, spotted = CLIP * 0.8 + 0.1, CLIP * 0.8 + 0.1
    spotted = spotted.clone()
    spotted[:, 16:32, 16:32] = 0.5
    for metric in (GMSD(), MDSI()):
        assert value(metric, brighter, CLIP * 0.8) < 0.5 * value(metric, spotted, CLIP * 0.8)
