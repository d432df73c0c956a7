"""The cache's bytes over the steps, as the trace records them."""

import math

import pytest
import torch
from toys import Loop, SmoothDiT, run_scripted, tiny_transformer, toy_session

import fsframework as fsf
from fsframework.core import Recompute, ReusePolicy
from fsframework.models.opensora import OpenSora
from fsframework.policies import Foresight, StaticReuse

NUM_BYTES = 1 * 4 * 2 * 4
"""Of a scripted block's output [1, 4, 2] in float32."""


def steady(block, timestep):
    return 1.0


def test_static_reuse_of_three_blocks_holds_the_last_ones_output_while_a_reuse_is_to_come():
    """C C R C R C: the outputs of steps 0 and 5 will never be read, those of 1 and 3 until the reuse after them is over."""
    session, _, _ = run_scripted(StaticReuse(interval=2, warmup=2), steady, 6, num_blocks=3)
    curves = session.trace.cache_bytes()
    assert session.trace.decisions("joint.2") == "CCRCRC"
    assert curves.held == [0, 32, 32, 32, 32, 0]
    assert curves.most == [0, 32, 32, 32, 32, 0]
    assert (curves.peak, curves.peak_step) == (32, 1)


def test_static_reuse_of_residuals_holds_one_for_each_of_three_blocks():
    session, _, _ = run_scripted(StaticReuse(interval=2, warmup=2, storage="residual"), steady, 6, num_blocks=3)
    curves = session.trace.cache_bytes()
    assert curves.held == [0, 3 * 32, 3 * 32, 3 * 32, 3 * 32, 0]


def test_foresight_holds_an_output_of_every_block_from_the_first_step_on():
    session, _, _ = run_scripted(Foresight(warmup=3, gamma=0.5), steady, 6, num_blocks=3)
    assert session.trace.cache_bytes().held == [3 * NUM_BYTES] * 6


def test_foresight_holds_two_entries_per_pair_of_a_spatial_and_a_temporal_block():
    model = tiny_transformer(OpenSora())
    loop, outputs = Loop(OpenSora(), model), []
    hook = model.spatial_blocks[0].register_forward_hook(lambda block, args, output: outputs.append(output))
    with fsf.reuse(model, Foresight(warmup=3, gamma=0.5), scheduler=loop.scheduler) as session:
        loop(5)
    hook.remove()
    hidden_state = outputs[0].numel() * 4
    curves = session.trace.cache_bytes()
    assert curves.held == [2 * len(model.spatial_blocks) * hidden_state] * 5
    assert curves.peak == session.cache.peak_bytes


def test_what_is_held_within_a_step_only_shows_in_the_most_and_not_at_the_end():
    class Brief(ReusePolicy[None]):
        """Keeps 48 bytes while a forward runs, in step 1 only, and puts 16 in their place at its end."""

        def begin_forward(self, state, call):
            if call.step.index == 1:
                call.keep("note", (torch.zeros(12),))

        def decide(self, state, call, site):
            return Recompute(keep=False)

        def end_forward(self, state, call):
            if call.step.index == 1:
                call.keep("note", (torch.zeros(4),))

    session, _, _ = run_scripted(Brief(), steady, 3)
    curves = session.trace.cache_bytes()
    assert curves.held == [0, 16, 16]
    assert curves.most == [0, 48, 16]
    assert (curves.peak, curves.peak_step) == (48, 1)
    assert session.summary()["cache_bytes_peak"] == 48


def test_forwards_of_two_branches_in_a_step_make_one_value_of_both():
    model = SmoothDiT(num_blocks=3)
    each = 3 * 6 * 8 * 4
    with torch.no_grad(), toy_session(model, Foresight(warmup=2), 2) as session:
        for step in range(2):
            for branch in ("cond", "uncond"):
                with session.branch(branch):
                    model(torch.ones(1, 6, 8), torch.tensor([float(step)]))
    assert session.trace.cache_bytes().held == [2 * each] * 2


def test_every_row_of_a_step_says_its_bytes_and_a_step_that_failed_says_none():
    class Fails(Foresight):
        def decide(self, state, call, site):
            if call.step.index == 2:
                raise RuntimeError("here")
            return super().decide(state, call, site)

    model = SmoothDiT(num_blocks=2)
    with torch.no_grad(), toy_session(model, Fails(warmup=2), 4) as session:
        for step in range(2):
            model(torch.ones(1, 6, 8), torch.tensor([float(step)]))
        with pytest.raises(RuntimeError, match="here"):
            model(torch.ones(1, 6, 8), torch.tensor([2.0]))
        rows = session.trace.rows()
    assert [row["cache_bytes"] for row in rows[:4]] == [2 * 6 * 8 * 4.0] * 4
    assert [row["cache_bytes_peak"] for row in rows[:4]] == [2 * 6 * 8 * 4.0] * 4
    assert [(row["step"], math.isnan(row["cache_bytes"])) for row in rows[4:]] == [(2, True)]
    curves = session.trace.cache_bytes()
    assert (curves.peak, curves.peak_step) == (2 * 6 * 8 * 4, 0)
