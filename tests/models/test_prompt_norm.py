"""The norm of a prompt's embedding, by hand and for every family."""

import math

import pytest
import torch

import fsframework.models  # noqa: F401  (registers every family)
from fsframework.core import ADAPTERS
from fsframework.core.prompt import prompt_norm
from tests.toys import tiny_transformer

CPU = torch.device("cpu")


def test_the_norm_is_the_root_of_the_mean_square_of_all_numbers():
    one = torch.tensor([[3.0, 4.0]])
    assert prompt_norm([one], CPU) == pytest.approx(math.sqrt(25 / 2))
    assert prompt_norm([[one, torch.zeros(2, 2)], None, torch.tensor([1.0, 1.0])], CPU) == pytest.approx(
        math.sqrt(27 / 8)
    )
    assert prompt_norm([None], CPU) == 1.0
    large = torch.full((100,), 1000.0, dtype=torch.float16)  # whose squares overflow
    found = prompt_norm([large], CPU)
    assert found.dtype == torch.float32
    assert found == pytest.approx(1000.0)


@pytest.mark.parametrize("name", [name for name, _ in ADAPTERS.items()])
def test_every_family_says_where_its_prompt_is(name):
    adapter = dict(ADAPTERS.items())[name]()
    transformer = tiny_transformer(adapter)
    inputs = adapter.example_inputs(transformer, 2, torch.Generator().manual_seed(1))
    norm = adapter.probe("prompt_norm", transformer, inputs, {})
    if name == "dit":  # a class label
        assert norm == 1.0
        return
    given = [inputs[text] for text in adapter.text_inputs]
    flat = [tensor for one in given for tensor in (one if isinstance(one, list) else [one])]
    numbers = torch.cat([tensor.flatten() for tensor in flat])
    assert norm == pytest.approx(float(numbers.square().mean().sqrt()), rel=1e-5)
    for text in adapter.text_inputs:
        doubled = {
            **inputs,
            text: [2 * one for one in inputs[text]] if isinstance(inputs[text], list) else 2 * inputs[text],
        }
        assert adapter.probe("prompt_norm", transformer, doubled, {}) > 1.01 * norm
