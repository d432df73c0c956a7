import pytest
import torch

from fsframework.metrics import SSIM, MultiScaleSSIM


def noise(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(3, side, side, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", [SSIM(), MultiScaleSSIM()])
def test_identical_is_one_and_independent_noise_is_near_zero(metric):
    assert metric(noise(0), noise(0), "")[metric.name] == pytest.approx(1.0, abs=1e-9)
    assert abs(metric(noise(0), noise(1), "")[metric.name]) < 0.2


@pytest.mark.parametrize("metric", [SSIM(), MultiScaleSSIM()])
def test_more_noise_is_less_similar(metric):
    values = [metric((noise(0) * (1 - a) + noise(1) * a), noise(0), "")[metric.name] for a in (0.1, 0.3, 0.6)]
    assert values[0] > values[1] > values[2]


def test_flat_frames_differ_by_luminance_alone():
    # (2 * 0.5 * 0.6 + 0.0001) / (0.25 + 0.36 + 0.0001) = 0.98361
    a, b = torch.full((2, 32, 32, 3), 0.5), torch.full((2, 32, 32, 3), 0.6)
    assert SSIM()(a, b, "")["ssim"] == pytest.approx(0.6001 / 0.6101, abs=1e-6)


def test_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = noise(0)
    b = (a + 0.1 * (noise(1) - 0.5)).clamp(0, 1)
    want = functional.structural_similarity_index_measure(
        a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), data_range=1.0, gaussian_kernel=True, sigma=1.5
    )
    assert SSIM()(a, b, "")["ssim"] == pytest.approx(float(want), abs=1e-4)


def test_multi_scale_agrees_with_torchmetrics_where_all_five_scales_fit():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = noise(0, 192)[:1]
    b = (a + 0.3 * (noise(1, 192)[:1] - 0.5)).clamp(0, 1)
    want = functional.multiscale_structural_similarity_index_measure(
        a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), data_range=1.0, normalize=None
    )
    assert MultiScaleSSIM()(a, b, "")["ms_ssim"] == pytest.approx(float(want), abs=5e-3)


@pytest.mark.parametrize("metric", [SSIM(), MultiScaleSSIM()])
def test_frames_below_the_window_are_a_clear_error(metric):
    with pytest.raises(ValueError, match="at least 11 x 11 pixels; these are 8 x 8"):
        metric(noise(0, 8), noise(0, 8), "")
