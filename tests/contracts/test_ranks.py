"""Ranks that share one video must decide alike, or they hang in the next collective."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from rank_worker import script, work
from toys import ToyAdapter

from fsframework.core import ReuseEngine
from fsframework.policies import Foresight


def decisions_of_two_ranks(shared):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(work, args=(port, shared, queue), nprocs=2)
    return dict(queue.get() for _ in range(2))


class Halves(torch.nn.Module):
    """What both ranks compute, in one process: halves of the tokens, or of a guidance batch."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis
        self.attn1 = self.ff = torch.nn.Identity()

    def forward(self, hidden_states, timestep):
        out = hidden_states.clone()
        for rank, half in enumerate(out.chunk(2, dim=self.axis)):
            half.fill_(script(rank)(0, float(timestep[0])))
        return out


class Whole(torch.nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([Halves(axis)])

    def forward(self, hidden_states, timestep):
        return (self.transformer_blocks[0](hidden_states, timestep),)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_two_ranks_whose_halves_disagree_decide_as_one_process_with_both():
    """Halves of the tokens (context parallelism), or a guidance branch each (guidance parallelism): the mean is the same."""
    one_process = []
    for axis, shape in ((1, (1, 8, 2)), (0, (2, 4, 2))):
        model = Whole(axis)
        session = ReuseEngine(ToyAdapter().bind(model), Foresight(gamma=0.8, warmup=4), timesteps=list(range(12)))
        with torch.no_grad(), session:
            for step in range(12):
                model(torch.zeros(shape), torch.full((shape[0],), float(step)))
        one_process.append(session.trace.decisions("joint.0"))
    expected = one_process[0]
    assert one_process[1] == expected
    alone = decisions_of_two_ranks(shared=False)
    assert alone[0] != alone[1]  # without the all-reduce they would go apart
    together = decisions_of_two_ranks(shared=True)
    assert together == {0: expected, 1: expected}
    assert "R" in expected
