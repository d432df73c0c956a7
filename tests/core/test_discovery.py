"""Drafts for models without an adapter: what they say, and that they work when pasted."""

import importlib

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


def block_line(code, path):
    """The line of a draft that states a block list."""
    return next(line for line in code.splitlines() if f'BlockList("{path}"' in line)


def pipeline_of(adapter, transformer, held):
    """An empty object of the family's pipeline class, which has the transformer as its one component."""
    found = getattr(importlib.import_module(adapter.pipeline_module), adapter.pipeline_classes[0])
    return object.__new__(type(found.__name__, (found,), {"components": {held: transformer}}))


OTHER_STREAMS = {"wan-vace": "what its control blocks return first is made of the stream they return second"}
"""Families whose draft needs streams and returns corrected, and says so on the line of that list."""

OTHER_GUIDANCE = {"flux2": "its first pipeline has the scale as an input; another of its pipelines calls twice"}
"""Families whose draft states another guidance than the adapter, marked as all of them are."""


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_draft_of_a_known_family_binds_and_has_its_block_lists_in_order(name):
    adapter = ADAPTERS[name]()
    transformer = tiny_transformer(adapter)
    drafted = run_draft(draft_adapter(transformer))()
    drafted.bind(transformer)
    assert [facts.path for facts in drafted.blocks] == [facts.path for facts in adapter.blocks]
    assert drafted.interleaved == adapter.interleaved


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_streams_of_a_known_family_are_right_or_marked(name):
    adapter = ADAPTERS[name]()
    code = draft_adapter(tiny_transformer(adapter))
    drafted = {facts.path: facts for facts in run_draft(code).blocks}
    wrong = [
        facts.path
        for facts in adapter.blocks
        if (drafted[facts.path].streams, drafted[facts.path].returns) != (facts.streams, facts.returns)
    ]
    assert bool(wrong) == (name in OTHER_STREAMS)
    assert all("# check: could not read what the block returns" in block_line(code, path) for path in wrong)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_guidance_is_read_off_the_pipeline(name):
    adapter = ADAPTERS[name]()
    transformer = tiny_transformer(adapter)
    code = draft_adapter(transformer, pipeline_of(adapter, transformer, adapter.transformer_name))
    drafted = run_draft(code)
    same = (drafted.guidance, drafted.batch_order) == (adapter.guidance, adapter.batch_order)
    assert same == (name not in OTHER_GUIDANCE)
    assert any(
        n in line and "# check: " in line for line in code.splitlines() for n in ("guidance = ", "batch_order = ")
    )


BATCHED_BY_HAND = {"flux2": {"txt_ids", "img_ids"}, "opensora": {"fps", "height", "width"}}
"""Inputs with a row per sample that their names do not tell."""


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_draft_names_the_inputs_with_a_row_per_sample_and_asks_to_check_them(name):
    adapter = ADAPTERS[name]()
    code = draft_adapter(tiny_transformer(adapter))
    missing = set(adapter.batched_inputs) - set(run_draft(code).batched_inputs)
    assert missing == BATCHED_BY_HAND.get(name, set())
    (line,) = [line for line in code.splitlines() if "batched_inputs" in line]
    assert line.endswith("# check: what has a row per sample")


def test_smaller_lists_of_a_kind_are_comments():
    code = draft_adapter(tiny_transformer(ADAPTERS["lumina2"]()))
    assert '# also found: BlockList("context_refiner", Kind.JOINT' in code
    assert '# also found: BlockList("noise_refiner", Kind.JOINT' in code
    assert '        BlockList("layers", Kind.JOINT' in code


def test_control_blocks_have_a_kind_of_their_own():
    (control, trunk) = run_draft(draft_adapter(tiny_transformer(ADAPTERS["wan-vace"]()))).blocks
    assert (control.kind, trunk.kind) == (Kind.CONTROL, Kind.JOINT)


def test_a_wrapped_block_is_read_through_to_the_inner_one():
    double, single = find_block_lists(tiny_transformer(ADAPTERS["hidream"]()))
    assert double.streams == ("hidden_states", "encoder_hidden_states")
    assert single.streams == ("hidden_states",)
    assert {(found.attention, found.mlp) for found in (double, single)} == {("block.attn1", "block.ff_i")}


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


UNREADABLE = "could not read what the block returns"
THROUGH_NAMES = "streams were followed through local names"


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.attn_txt, self.mlp = Mix(8), Mix(8), nn.Linear(8, 8)


class LocalNames(Base):
    def forward(self, x, context, temb):
        gate = self.mlp(temb)
        img = x + gate * self.attn(x)
        img = gate * self.mlp(img) + img
        txt = context + gate * self.attn_txt(context) + gate
        txt += gate
        return img, txt


class ByPosition(Base):
    def forward(self, x, context, temb):
        img, txt = self.attn(x, y=context)
        return txt, img


class OfNoArgument(Base):
    def forward(self, x, context, temb):
        img = x + self.attn(x)
        txt = self.make()
        return img, txt


class OfConditioning(Base):
    def forward(self, x, context, temb):
        img = x + self.attn(x)
        txt = self.mlp(temb) * self.attn_txt
        return img, txt


class TwiceTheSame(Base):
    def forward(self, x, context, temb):
        img = self.attn(x)
        txt = self.attn_txt(x)
        return img, txt


class TupleInAName(Base):
    def forward(self, x, context, temb):
        outputs = (context, x)
        return outputs


class Maybe(Base):
    def forward(self, x, context=None, temb=None):
        if context is None:
            return x
        return x, context


class TupleOfOne(Base):
    def forward(self, x, context, temb):
        return (x,)


class OutputObject(Base):
    def forward(self, x, context, temb):
        return dict(sample=x)


class Method(Base):
    def forward(self, x, context, temb):
        return self.inner(context, tokens=x)

    def inner(self, text, tokens):
        tokens = tokens + self.attn(tokens)
        return text, tokens


class OtherSelf(Base):
    def forward(this, x, context, temb):
        return x + this.attn(x)


class DocstringAtColumnZero(Base):
    def forward(self, x, context, temb):
        """Mixes.

        x: tokens
        """
        return context, x


class Lambda(Base):
    forward = (lambda self, x, context: (x + self.attn(x)),
               "a lambda's source is whatever line it stands in")[0]  # fmt: skip


class NoSource(Base):
    exec("def forward(self, x, context): return x, context")


@pytest.mark.parametrize(
    ("block", "returns", "remark"),
    [
        (LocalNames, ("x", "context"), THROUGH_NAMES),
        (ByPosition, ("context", "x"), THROUGH_NAMES),
        (OfNoArgument, ("x",), UNREADABLE),
        (OfConditioning, ("x",), UNREADABLE),
        (TwiceTheSame, ("x",), UNREADABLE),
        (TupleInAName, ("context", "x"), None),
        (Maybe, ("x", "context"), "the block has several returns"),
        (TupleOfOne, ("x",), "the block returns a tuple of one"),
        (OutputObject, ("x",), UNREADABLE),
        (Method, ("context", "x"), None),
        (OtherSelf, ("x",), None),
        (DocstringAtColumnZero, ("context", "x"), None),
        (Lambda, ("x",), UNREADABLE),
        (NoSource, ("x",), UNREADABLE),
    ],
)
def test_what_a_block_returns_is_traced_to_its_arguments_or_marked(block, returns, remark):
    model = Unknown()
    model.layers = nn.ModuleList([block(), block()])
    line = block_line(draft_adapter(model), "layers")
    drafted = run_draft(draft_adapter(model))()
    drafted.bind(model)
    (facts,) = drafted.blocks
    assert (facts.returns, set(facts.streams)) == (returns, set(returns))
    assert line.partition("  # check: ")[2] == (remark or "")


def test_a_compiled_model_is_drafted_as_the_model_itself():
    model = Unknown()
    assert draft_adapter(torch.compile(model)) == draft_adapter(model)
    model.layers[0] = torch.compile(model.layers[0])
    assert "# 3 x CausalBlock(x, context, t_emb)" in draft_adapter(model)


def test_lists_of_equal_length_and_one_kind_bind_too():
    model = Unknown()
    model.more = nn.ModuleList([CausalBlock() for _ in range(3)])
    code = draft_adapter(model)
    run_draft(code)().bind(model)
    assert '# also found: BlockList("more"' in code


class Doubled:
    """A pipeline whose loop is in a method that its call calls."""

    def __call__(self, latents, prompt_embeds, null_embeds):
        return self.denoise(latents, prompt_embeds, null_embeds)

    def denoise(self, latents, prompt_embeds, null_embeds):
        both = torch.cat([prompt_embeds, null_embeds])
        return self.unet(torch.cat([latents] * 2), both)


def test_a_loop_in_a_method_of_the_pipeline_is_read():
    pipe = Doubled()
    model = Unknown()
    pipe.components = {"unet": torch.compile(model)}
    code = draft_adapter(model, pipe)
    assert 'transformer_name = "unet"' in code
    assert 'batch_order = ("cond", "uncond")  # check: which half of the batch is which' in code
