"""The order of full, aggressive and ToCa steps."""

import pytest
import torch
from toys import Loop, SmoothDiT, run_smooth, tiny_transformer, toy_session

from fsframework.core import ADAPTERS, ReuseEngine
from fsframework.policies.toca import DuCa

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


def decisions(part, num_steps=12, **options):
    model = SmoothDiT(num_blocks=1)
    with toy_session(model, DuCa(**{"ratio": 0.5, "warmup": 1, **options}), num_steps) as session:
        run_smooth(model, num_steps)
    return session.trace.decisions(f"joint.0.{part}")


@pytest.mark.parametrize(
    ("options", "mlp"),
    [
        ({}, "CRPCRPCRPCRP"),
        ({"first": "toca"}, "CPRCPRCPRCPR"),
        ({"warmup": 3}, "CCCCRPCRPCRP"),
        ({"attention_interval": 5, "mlp_interval": 5}, "CRPRPCRPRPCR"),
        ({"attention_interval": 2, "mlp_interval": 2}, "CRCRCRCRCRCR"),
        ({"attention_interval": 2, "mlp_interval": 2, "first": "toca"}, "CPCPCPCPCPCP"),
    ],
)
def test_aggressive_and_toca_steps_take_turns_between_full_ones(options, mlp):
    assert decisions("mlp", **options) == mlp
    assert decisions("attention", **options) == mlp.replace("P", "R")


def test_a_part_with_a_longer_interval_does_what_the_others_do_and_a_toca_step_in_their_full_ones():
    assert decisions("mlp", mlp_interval=6) == "CRPPRPCRPPRP"
    assert decisions("attention", mlp_interval=6) == "CRRCRRCRRCRR"


def test_a_part_that_always_runs_does_not_count():
    assert decisions("mlp", attention_interval=1, mlp_interval=4) == "CRPRCRPRCRPR"


def guided(family):
    adapter = ADAPTERS[family]()
    return Loop(adapter, tiny_transformer(adapter))


def test_open_sora_with_cross_attention_on_some_tokens():
    loop = guided("opensora")
    facts = {"family": "opensora"}
    policy = DuCa(cross_factor=0.6)
    with ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, facts=facts) as session:
        loop(num_steps=9)
    assert session.trace.decisions("temporal.0.mlp") == "CCCCRPCRP"
    assert session.trace.decisions("temporal.0.cross_attention") == "CCCPRPCRP"
    assert set(session.trace.share.values()) == {9 / 64, 3 / 64}


def test_both_guidance_branches_choose_the_same_tokens_in_one_batch_or_in_two_calls():
    loop, out = guided("latte"), []
    for sequential in (False, True):
        policy = DuCa(ratio=0.3, warmup=1)
        with ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler) as session:
            out.append(loop(num_steps=6, session=session, sequential=sequential))
    assert torch.allclose(out[0], out[1], rtol=1e-3, atol=1e-4 * float(out[0].abs().max()))


def test_an_order_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="duca: first='full' must be aggressive or toca"):
        DuCa(first="full")
    with pytest.raises(ValueError, match="duca: ratio=2 must be 0 to 1"):
        DuCa(ratio=2)
