"""Drafts for models without an adapter: what they say, and that they work when pasted."""

import pytest
import torch
from torch import nn
from toys import Loop, Mix, SmoothDiT, tiny_transformer

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS, Kind, ReuseEngine
from fsframework.core.discovery import draft_adapter, find_block_lists
from fsframework.core.registry import Registry
from fsframework.policies import FullCompute, StaticReuse


def run_draft(code):
    """The adapter class a draft defines, entered in a registry of its own."""
    scope = {"ADAPTERS": Registry("model family")}
    exec(code.replace("import ADAPTERS, BlockList", "import BlockList"), scope)
    return next(adapter for _, adapter in scope["ADAPTERS"].items())


SAME = sorted(set(ADAPTERS) - {"hidream", "wan-vace"})
"""Families whose draft needs no correction in paths, streams and returns. HiDream hides its attention in an inner block;
VACE's control blocks return names that are none of their arguments."""


@pytest.mark.parametrize("name", SAME)
def test_a_draft_finds_the_block_lists_and_streams_of_a_known_family(name):
    adapter = ADAPTERS[name]()
    drafted = {facts.path: facts for facts in run_draft(draft_adapter(tiny_transformer(adapter))).blocks}
    for facts in adapter.blocks:
        assert (drafted[facts.path].streams, drafted[facts.path].returns) == (facts.streams, facts.returns)


@pytest.mark.parametrize("name", ["latte", "cogvideox"])
def test_a_pasted_draft_runs(name):
    known = ADAPTERS[name]()
    adapter = run_draft(draft_adapter(tiny_transformer(known)))()
    loop = Loop(known, tiny_transformer(known))
    bare = loop()
    with ReuseEngine(adapter.bind(loop.model), FullCompute(), scheduler=loop.scheduler):
        assert torch.equal(loop(), bare)
    with ReuseEngine(adapter.bind(loop.model), StaticReuse(interval=2, warmup=2), scheduler=loop.scheduler) as session:
        loop()
    assert {session.trace.decisions(site) for site in session.sites} == {"CCRCRCRC"}


class CausalBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.feed_forward, self.norm = Mix(8), nn.Sequential(nn.Linear(8, 8)), nn.LayerNorm(8)

    def forward(self, x, context, t_emb):
        x = x + self.self_attn(self.norm(x))
        return context, x + self.feed_forward(x)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([CausalBlock() for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(3)])

    def forward(self, x, t, context):
        for layer in self.layers:
            context, x = layer(x, context, t)
        return x


def test_a_draft_of_an_unknown_model_says_what_was_found():
    code = draft_adapter(Unknown())
    assert 'transformer_classes = ("Unknown",)' in code
    assert "# 3 x CausalBlock(x, context, t_emb)" in code
    assert 'latent_input = "x"' in code
    assert 'timestep_input = "t"' in code
    assert 'batched_inputs = ("x", "t", "context")' in code
    (found,) = find_block_lists(Unknown())
    assert (found.path, found.num_blocks, found.attention, found.mlp) == ("layers", 3, "self_attn", "feed_forward")


def test_streams_are_the_arguments_a_block_gives_back():
    (found,) = find_block_lists(Unknown())
    assert (found.streams, found.returns) == (("x", "context"), ("context", "x"))
    (smooth,) = find_block_lists(SmoothDiT())
    assert (smooth.streams, smooth.attention, smooth.mlp) == (("hidden_states",), "attn1", "ff")
    assert run_draft(draft_adapter(SmoothDiT())).blocks[0].kind is Kind.JOINT
