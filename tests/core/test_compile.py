"""Compiled blocks: the decision stays outside the graph, so graphs are neither built anew nor broken by a session."""

from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from toys import Gated, Loop, SmoothDiT, run_smooth, tiny_transformer, toy_session

import fsframework as fsf
from fsframework.models.wan import Wan
from fsframework.policies import Fora, Foresight, StaticReuse


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Backend:
    """Counts the graphs it is given and how often each is called; runs them as they are."""

    def __init__(self):
        self.graphs, self.calls = 0, 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def assert_unbroken(backend, num_graphs):
    assert backend.graphs == num_graphs
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert counters["graph_break"] == Counter()


def wan():
    adapter = Wan()
    return adapter, tiny_transformer(adapter)


FORESIGHT, STATIC = Foresight(gamma=2.0, warmup=3), StaticReuse(warmup=2)


@pytest.mark.parametrize(
    ("policy", "when"),
    [
        pytest.param(FORESIGHT, "before", id="foresight-before"),
        pytest.param(STATIC, "after", id="static-after"),
        pytest.param(FORESIGHT, "after", id="foresight-after", marks=pytest.mark.slow),
        pytest.param(STATIC, "before", id="static-before", marks=pytest.mark.slow),
        pytest.param(FORESIGHT, "between videos", id="foresight-between", marks=pytest.mark.slow),
        pytest.param(STATIC, "between videos", id="static-between", marks=pytest.mark.slow),
    ],
)
def test_wan_compiled_by_diffusers_has_one_graph_for_all_blocks_and_videos(policy, when):
    """`compile_repeated_blocks` before the session is opened, inside it, or after its first video."""
    adapter, model = wan()
    loop = Loop(adapter, model)
    plain_session = fsf.reuse(model, policy, scheduler=loop.scheduler)
    with plain_session:
        expected = loop(8, session=plain_session, sequential=True)
        other = loop(8, seed=1, session=plain_session, sequential=True)
    backend = Backend()
    if when == "before":
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
    with fsf.reuse(model, policy, scheduler=loop.scheduler) as session:
        if when == "after":
            model.compile_repeated_blocks(backend=backend, fullgraph=True)
        if when == "between videos":
            loop(8, session=session, sequential=True)
            model.compile_repeated_blocks(backend=backend, fullgraph=True)
        found = loop(8, session=session, sequential=True)
        assert_unbroken(backend, 1)
        compiled = counters["frames"]["ok"]
        computed = session.trace.column("decision").count("recompute")
        assert 0 < computed < 8 * 2 * 3  # eight steps, two branches, three blocks
        assert backend.calls == computed  # every block that ran, ran its graph; none ran that was reused
        again = loop(8, seed=1, session=session, sequential=True)
        assert_unbroken(backend, 1)
        assert counters["frames"]["ok"] == compiled  # the second video compiled nothing
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, other)
    calls = backend.calls
    loop(2)
    assert backend.calls - calls == 2 * 3  # batched, out of the session: still compiled, and nothing is left behind
    assert "_fsf_slot" not in model.blocks[0].__dict__


def test_blocks_that_are_compiled_in_the_middle_of_a_video_are_followed_in_the_next_forward():
    model, backend = SmoothDiT(num_blocks=3), Backend()
    policy = StaticReuse(warmup=1, interval=2, storage="residual")
    with toy_session(model, policy, 8):
        expected = run_smooth(model, 8)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), toy_session(model, policy, 8) as session:
        found = []
        for step in range(8):
            if step == 3:
                for block in model.transformer_blocks:
                    block.compile(backend=backend)
            found.append(model(x * (1 + 0.1 * step), torch.full((1,), float(step)))[0])
    assert session.trace.decisions("joint.1") == "CRCRCRCR"
    assert_unbroken(backend, 1)
    assert backend.calls == 2 * 3  # steps 4 and 6
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_blocks_that_are_compiled_again_or_no_longer_are_followed():
    model, first, second = SmoothDiT(num_blocks=2), Backend(), Backend()
    with toy_session(model, StaticReuse(warmup=1), 4) as session:
        for block in model.transformer_blocks:
            block.compile(backend=first)
        run_smooth(model, 4)
        torch._dynamo.reset()
        for block in model.transformer_blocks:
            block.compile(backend=second)
        run_smooth(model, 4)
        assert session.trace.decisions("joint.0") == "CRCR"
        for block in model.transformer_blocks:
            block._compiled_call_impl = None
        run_smooth(model, 4)
        assert session.trace.decisions("joint.0") == "CRCR"
    assert (first.calls, second.calls) == (4, 4)
    assert model.transformer_blocks[0]._compiled_call_impl is None
    assert "forward" not in model.transformer_blocks[0].__dict__


def test_another_size_compiles_once_more_and_then_no_more():
    """Shapes become dynamic at the second size; that is the compiler's doing and the same without a session."""
    model, backend = SmoothDiT(num_blocks=3), Backend()
    for block in model.transformer_blocks:
        block.compile(backend=backend)
    with toy_session(model, StaticReuse(warmup=1), 4):
        for tokens, graphs in ((6, 1), (9, 2), (12, 2), (6, 2)):
            run_smooth(model, 4, tokens=tokens)
            assert_unbroken(backend, graphs)


def test_sub_modules_of_compiled_blocks_can_not_be_asked_about_and_compiled_sub_modules_can():
    model, backend = SmoothDiT(num_blocks=2), Backend()
    policy = Fora(interval=2)
    with toy_session(model, policy, 4) as session:
        expected = run_smooth(model, 4)
        decisions = session.trace.decisions("joint.0.attention")
        assert decisions.count("R") == 1
    for block in model.transformer_blocks:
        block.compile(backend=backend)
    with pytest.raises(
        ValueError, match=r"joint.0.attention, inside a Gated that is compiled(.|\n)*block.attn1.compile()"
    ):
        toy_session(model, policy, 4).__enter__()
    for block in model.transformer_blocks:
        block._compiled_call_impl = None
        block.attn1.compile(backend=backend)
        block.ff.compile(backend=backend)
    with toy_session(model, policy, 4) as session:
        found = run_smooth(model, 4)
    assert session.trace.decisions("joint.0.attention") == decisions
    assert_unbroken(backend, 1)  # the attentions'; a bare nn.Sequential is not compiled by torch
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_a_block_that_was_replaced_by_its_compiled_module_is_refused_with_what_to_do():
    model = SmoothDiT(num_blocks=2)
    model.transformer_blocks[1] = torch.compile(model.transformer_blocks[1], backend="eager")
    model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], backend="eager")
    with pytest.raises(ValueError, match=r"compile blocks where they are, with block.compile\(\)"):
        toy_session(model, StaticReuse(), 4)


class Replayed(Gated):
    """Every call writes its result where the last one was, as a CUDA graph does."""

    def __init__(self, dim):
        super().__init__(dim)
        self.place = torch.zeros(1, 6, dim)

    def forward(self, hidden_states, timestep):
        return self.place.copy_(super().forward(hidden_states, timestep))


def test_a_model_that_writes_its_next_output_over_the_last_needs_copies():
    """Without copies a distance compares an output with itself, which is an error and not a reuse."""
    policy = Foresight(gamma=2.0, warmup=3)
    plain, replayed = SmoothDiT(num_blocks=2), SmoothDiT(num_blocks=2)
    for i, block in enumerate(plain.transformer_blocks):
        replayed.transformer_blocks[i] = Replayed(8)
        replayed.transformer_blocks[i].load_state_dict(block.state_dict())
    with toy_session(plain, policy, 8) as session:
        run_smooth(plain, 8)
        expected = session.trace.decisions("joint.0"), session.trace.column("distance")
    with toy_session(replayed, policy, 8), pytest.raises(RuntimeError, match="modified in place afterwards"):
        run_smooth(replayed, 8)
    with toy_session(replayed, policy, 8, cache_copy=True) as session:
        run_smooth(replayed, 8)
        assert session.trace.decisions("joint.0") == expected[0]
        assert "R" in expected[0]
        assert session.trace.column("distance") == pytest.approx(expected[1], nan_ok=True)
