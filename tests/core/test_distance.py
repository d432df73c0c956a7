import math

import pytest
import torch

from fsframework.core.distance import DISTANCES, cosine, mse, relative_l1

ONES, THREES = torch.ones(2, 3, 4), torch.full((2, 3, 4), 3.0)


def test_hand_values():
    assert mse(THREES, ONES).item() == 4.0
    assert relative_l1(THREES, ONES).item() == 2.0
    assert relative_l1(ONES, THREES).item() == pytest.approx(2 / 3)
    assert cosine(THREES, ONES).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine(-THREES, ONES).item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_equal_tensors_are_at_distance_zero_and_per_sample_gives_one_each(name):
    x = torch.randn(2, 3, 4)
    assert DISTANCES[name](x, x).item() == pytest.approx(0.0, abs=1e-6)
    assert DISTANCES[name](x, x, per_sample=True).shape == (2,)


def test_zero_over_zero_is_zero():
    zeros = torch.zeros(1, 2, 2)
    assert relative_l1(zeros, zeros).item() == 0.0


def test_half_precision_activations_do_not_overflow():
    big = torch.full((1, 4, 4), 1000.0, dtype=torch.float16)
    assert mse(big, torch.zeros_like(big)).item() == 1e6  # float16 ends at 65504
    assert mse(big, torch.zeros_like(big)).dtype == torch.float32


def test_inputs_are_not_written_to():
    a, b = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    before = a.clone(), b.clone()
    for distance in DISTANCES.values():
        distance(a, b)
        distance(a, b, per_sample=True)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_a_stride_compares_every_so_manyth_token():
    a, b = torch.zeros(1, 8, 2), torch.zeros(1, 8, 2)
    a[:, 1::2] = 100.0
    assert mse(a, b, stride=2).item() == 0.0
    assert mse(a, b).item() == 5000.0


def test_a_stride_of_four_is_within_three_percent_on_a_smooth_field():
    t = torch.linspace(0, 2 * math.pi, 256)[None, :, None]
    a, b = torch.sin(t), torch.sin(t + 0.1)
    assert mse(a, b, stride=4).item() == pytest.approx(mse(a, b).item(), rel=0.03)


def test_two_shapes_are_an_error_that_gives_both():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), cached \(1, 3, 4\)"):
        mse(ONES, ONES[:1])
