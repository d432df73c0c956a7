"""What `check_adapter` says of right and of wrong facts."""

import pytest
import torch
from torch import nn

from fsframework.core import ADAPTERS, BlockList, Kind, ModelAdapter
from fsframework.models import Latte
from fsframework.run.check_adapter import check_adapter

QUICK = ("latte", "cogvideox", "chroma")


class Add(nn.Module):
    def forward(self, hidden_states, other, timestep):
        return hidden_states * timestep[:, None, None] + other, other + hidden_states


class TwoStreams(nn.Module):
    """Two blocks, each with two streams of one shape, so that nothing but their order tells them apart."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Add(), Add()])

    def forward(self, hidden_states, other, timestep, return_dict=True):
        for block in self.blocks:
            hidden_states, other = block(hidden_states, other, timestep / 1000)
        return (hidden_states - 2 * other,)


class TwoStreamsAdapter(ModelAdapter):
    transformer_classes = ("TwoStreams",)
    blocks = (
        BlockList(
            "blocks", Kind.JOINT, ("hidden_states", "other"), ("hidden_states", "other"), attention=None, mlp=None
        ),
    )
    batched_inputs = ("hidden_states", "other", "timestep")

    def example_inputs(self, transformer, batch, generator):
        shape = (batch, 3, 2)
        return {name: torch.randn(shape, generator=generator) for name in ("hidden_states", "other")}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ADAPTERS])
def test_the_facts_of_every_family_hold(name):
    lines = check_adapter(ADAPTERS[name]())
    assert len(lines) == 5
    assert "blocks: " in lines[0]


def test_the_lines_name_the_blocks_and_what_holds():
    assert check_adapter(TwoStreamsAdapter(), TwoStreams())[:2] == [
        "2 blocks: joint.0, joint.1",
        "a policy that recomputes everything changes no bit, and nothing of it is left on the model",
    ]


def test_lists_that_run_in_turns_and_are_not_said_to_are_found():
    class InSequence(Latte):
        interleaved = False

    with pytest.raises(ValueError, match=r"They ran as spatial\.0, temporal\.0, .*; stated is spatial\.0, spatial\.1"):
        check_adapter(InSequence())


def test_an_argument_with_a_row_per_sample_that_is_not_stated_is_found():
    class Forgetful(TwoStreamsAdapter):
        batched_inputs = ("hidden_states", "timestep")

    with pytest.raises(ValueError, match=r"the arguments with a row per sample are those that are stated: no\."):
        check_adapter(Forgetful(), TwoStreams())


def test_a_stream_that_is_not_stated_is_found():
    class OneStream(TwoStreamsAdapter):
        blocks = (BlockList("blocks", Kind.JOINT, attention=None, mlp=None),)

    with pytest.raises(ValueError, match="putting every block's output back .*: no"):
        check_adapter(OneStream(), TwoStreams())


class Aside(Add):
    last = 0.0

    def forward(self, hidden_states, other, timestep):
        self.last = hidden_states.mean(dim=(1, 2), keepdim=True)
        return super().forward(hidden_states, other, timestep)


def test_a_block_that_does_more_than_it_returns_is_found():
    class Leaky(TwoStreams):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Aside(), Aside()])

        def forward(self, hidden_states, other, timestep, return_dict=True):
            return (super().forward(hidden_states, other, timestep)[0] + self.blocks[0].last,)

    with pytest.raises(ValueError, match=r"They differ by up to .*: see `streams`, `returns`, `kept_aside`"):
        check_adapter(TwoStreamsAdapter(), Leaky())


def test_all_that_is_wrong_is_said_at_once():
    class Both(TwoStreamsAdapter):
        blocks = (BlockList("blocks", Kind.JOINT, attention=None, mlp=None),)
        batched_inputs = ("hidden_states", "timestep")

    with pytest.raises(ValueError) as caught:
        check_adapter(Both(), TwoStreams())
    # The stream that is not stated stops both checks with a session, the argument that is not stated the last one.
    assert str(caught.value).count("\n  - ") == 3
