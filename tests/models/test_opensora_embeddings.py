"""The pieces of STDiT3 where an order or a place is easily got wrong, with numbers one can check by hand."""

import math

import pytest
import torch
from torch import nn

from fsframework.models.opensora_1_2.block import HeadNorm, STDiT3Block
from fsframework.models.opensora_1_2.embeddings import Rotary, ScalarEmbedder, rotate, spatial_positions
from fsframework.models.opensora_1_2.transformer import FinalLayer


def test_a_timestep_has_its_cosines_first():
    embedder = ScalarEmbedder(8, num_frequencies=4)
    embedder.mlp = nn.Identity()
    (row,) = embedder(torch.tensor([2.0]), torch.float32)
    slow = 2 * math.exp(-math.log(10000) / 2)  # the second of two frequencies
    assert row.tolist() == pytest.approx([math.cos(2), math.cos(slow), math.sin(2), math.sin(slow)])


def test_a_patch_has_its_columns_sines_and_cosines_and_then_its_rows():
    place = spatial_positions(2, 4, 8, torch.tensor(0.5), 3, torch.float32)
    assert place.shape == (2, 4, 8)
    row, column = 1 / 0.5 * 3 / 2, 3 / 0.5 * 3 / 4  # place 1 of 2 and 3 of 4, on an axis of 3 / 0.5
    expected = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos) for frequency in (1, 0.01)]
    assert place[1, 3].tolist() == pytest.approx(expected, abs=1e-6)


def test_neighbouring_channels_are_turned_by_the_frame_number():
    cos, sin = Rotary(4)(3)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(3, 4)
    turned = rotate(x, (cos, sin))
    assert turned[0].tolist() == [1, 0, 0, 1]
    slow = 2 * 0.01
    assert turned[2].tolist() == pytest.approx([math.cos(2), math.sin(2), -math.sin(slow), math.cos(slow)])


def test_the_weight_of_a_head_norm_comes_last():
    norm = HeadNorm(2)
    norm.weight.data = torch.tensor([1.0, 10.0])
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([3 / 12.5**0.5, 40 / 12.5**0.5], rel=1e-5)


@torch.no_grad()
def test_attention_to_text_has_no_gate_and_no_norm():
    block = STDiT3Block(8, 2, 2.0, "spatial", True)
    block.scale_shift_table.zero_()
    tokens, text = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    out = block(tokens, text, torch.zeros(1, 1, 6, 8), 2)  # every gate is zero
    assert torch.allclose(out, tokens + block.cross_attn(tokens, text), atol=1e-6)


@torch.no_grad()
def test_blocks_attend_within_a_frame_or_along_a_patch():
    tokens, text = torch.randn(1, 6, 8), torch.zeros(1, 1, 8)  # 2 frames of 3 patches
    changed = tokens.clone()
    changed[0, 0, 0] += 1
    touched = {}
    for axis in ("spatial", "temporal"):
        block = STDiT3Block(8, 2, 2.0, axis, True)
        difference = block(changed, text, torch.ones(1, 1, 6, 8), 2) - block(tokens, text, torch.ones(1, 1, 6, 8), 2)
        touched[axis] = difference.abs().amax(-1)[0].gt(1e-6).nonzero().flatten().tolist()
    assert touched == {"spatial": [0, 1, 2], "temporal": [0, 3]}


@torch.no_grad()
def test_a_given_frame_is_modulated_twice_before_the_last_projection():
    layer = FinalLayer(4, 4)
    layer.linear = nn.Identity()
    layer.scale_shift_table.zero_()
    x, t, zero = torch.randn(1, 2, 3, 4), torch.full((1, 4), 2.0), torch.full((1, 4), 5.0)
    out = layer(x, t, zero, torch.tensor([[True, False]]))
    once = 3 * layer.norm_final(x) + 2
    assert torch.allclose(out[:, 0], once[:, 0], atol=1e-5)
    assert torch.allclose(out[:, 1], 6 * layer.norm_final(once)[:, 1] + 5, atol=1e-5)
