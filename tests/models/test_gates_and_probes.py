"""Gates and probes that adapters state, against what blocks really do: random tiny transformers of every family.

A gate is checked by doubling what the sub-module returns, with the sub-modules after it made silent: the block's output
must change by exactly gate * output. `modulated` is checked against what the first attention received.
"""

import inspect

import pytest
import torch

import fsframework.models  # noqa: F401  (registers every family)
from fsframework.core import ADAPTERS, Kind, Part
from tests.toys import tiny_transformer

PARTS = (Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP)


VARIANTS = {
    "cogvideox 1.5": dict(
        patch_size_t=2, sample_frames=5, patch_bias=False, use_rotary_positional_embeddings=True, ofs_embed_dim=8
    ),
    "hunyuan-video token_replace": dict(image_condition_type="token_replace"),
    "sana guidance": dict(guidance_embeds=True),
}
"""Published configurations of some families that modulate in another way than the tiny one."""


class Family:
    """A family's random tiny transformer after one forward of two samples, and what each block was called with."""

    def __init__(self, name):
        self.full_name = name
        self.name, _, self.variant = name.partition(" ")
        self.adapter = dict(ADAPTERS.items())[self.name]()
        if self.variant:
            own = {**self.adapter.tiny_config, **VARIANTS[name]}
            self.adapter = type("Variant", (type(self.adapter),), {"tiny_config": own})()
        self.model = tiny_transformer(self.adapter)
        self.blocks = self.adapter.bind(self.model).blocks
        self.inputs = self.adapter.example_inputs(self.model, 2, torch.Generator().manual_seed(1))
        self.inputs[self.adapter.timestep_input] = torch.tensor([700.0, 300.0])
        if self.variant == "1.5":
            self.inputs["hidden_states"] = self.inputs["hidden_states"][:, [0, 1, 2, 2]]
            self.inputs["image_rotary_emb"] = (torch.rand(32, 8), torch.rand(32, 8))
            self.inputs["ofs"] = torch.tensor([2.0])
        if self.variant == "guidance":
            self.inputs["guidance"] = torch.tensor([4.5, 3.0])
        self.calls = {}
        noting = [
            block.module.register_forward_pre_hook(self._note(index), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        with torch.no_grad():
            self.model(**self.inputs)
        for handle in noting:
            handle.remove()

    def _note(self, index):
        def note(module, args, kwargs):
            self.calls[index] = (args, kwargs)

        return note

    def arguments(self, index):
        """One block's, by name."""
        args, kwargs = self.calls[index]
        names = list(inspect.signature(type(self.blocks[index].module).forward).parameters)[1:]
        return {**dict(zip(names, args)), **kwargs}

    def run(self, index):
        """One block alone, called as it was: its streams by name."""
        args, kwargs = self.calls[index]
        with torch.no_grad():
            output = self.blocks[index].module(*args, **kwargs)
        output = output if isinstance(output, (tuple, list)) else (output,)
        return dict(zip(self.blocks[index].facts.returns, output))

    def probe(self, name):
        """At the first block."""
        with torch.no_grad():
            return self.adapter.probe(name, self.model, self.inputs, self.arguments(0))


@pytest.fixture(scope="module", params=[*[name for name, _ in ADAPTERS.items()], *VARIANTS])
def family(request):
    return Family(request.param)


def scale_output(module, factor, seen=None):
    """Make `module` return `factor` times its output, which is added to `seen`; gives the hook's handle."""

    def hook(module, args, output):
        if seen is not None:
            seen.append(output)
        return tuple(factor * o for o in output) if isinstance(output, tuple) else factor * output

    return module.register_forward_hook(hook)


def silence(family, index, but):
    """Zero what every other attention and MLP of a block returns, so that only `but` can change its output."""
    block = family.blocks[index].module
    names = ("attn", "ff", "mlp", "feed")
    found = [
        child
        for name, child in block.named_modules()
        if any(word in name.split(".")[-1] for word in names) and "norm" not in name.split(".")[-1]
    ]
    inside = [m for child in found for m in child.modules() if m is not child]
    others = [m for m in found if m is not but and not any(m is i for i in [*inside, *but.modules()])]
    return [scale_output(m, 0.0) for m in others]


def run_to_second_norm(family):
    """AuraFlow takes the attention's sum as the MLP's input only: it is seen there."""

    def run(index):
        block = family.blocks[index].module
        norms = {"hidden_states": "norm2", "encoder_hidden_states": "norm2_context"}
        present = dict(block.named_children())
        seen = {}

        def note_as(name):
            return lambda module, args: seen.update({name: args[0]})

        handles = [
            present[norm].register_forward_pre_hook(note_as(name)) for name, norm in norms.items() if norm in present
        ]
        family.run(index)
        for handle in handles:
            handle.remove()
        return seen

    return run


def change_when_doubled(family, index, part):
    """What a sub-module gives, and how much its block's streams change when that is doubled, by name."""
    block = family.blocks[index]
    module = block.module.get_submodule(block.facts.submodule(part))
    seen = []
    handles = silence(family, index, module)
    handles.append(scale_output(module, 1.0, seen))
    run = family.run
    if family.name == "aura-flow" and part is Part.ATTENTION:
        run = run_to_second_norm(family)
    before = run(index)
    handles.append(scale_output(module, 2.0))
    after = run(index)
    for handle in handles:
        handle.remove()
    output = seen[0] if isinstance(seen[0], tuple) else (seen[0],)
    return output, {name: after[name] - before[name] for name in before if before[name] is not None}


def as_streams(family, index, part, values):
    """Gated outputs of a sub-module as changes of the block's streams, by name."""
    facts, arguments = family.blocks[index].facts, family.arguments(index)
    video = arguments[facts.streams[0]]
    first = values[0]
    if facts.kind is Kind.CONTROL:  # the block's other stream is a hint made from this one
        return {"control_hidden_states": first}
    if family.name == "sana" and part is Part.MLP:
        first = first.flatten(2).transpose(1, 2)
    if family.name == "sana-video" and part is Part.MLP:
        first = first.flatten(1, 3)
    if family.name == "opensora" and part is Part.ATTENTION:
        first = first.unflatten(0, (2, -1))
        first = (first.transpose(1, 2) if facts.kind is Kind.TEMPORAL else first).flatten(1, 2)
    if first.shape[1] > video.shape[1]:
        text, first = first.split([first.shape[1] - video.shape[1], video.shape[1]], dim=1)
        return {facts.streams[0]: first, facts.streams[1]: text}
    return dict(zip(facts.streams, (first, *values[1:])))


WITHOUT = {
    *(
        (name, kind, part) for name in ("mochi", "lumina2", "z-image") for kind in Kind for part in PARTS
    ),  # a norm follows
    *(
        (name, Kind.SINGLE, Part.ATTENTION)  # its output is projected together with the MLP's
        for name in ("flux", "bria", "chroma", "hunyuan-video", "hunyuan-video-framepack")
    ),
}
"""Sub-modules without a factor of their own between output and sum."""


def gated_parts(family):
    """(block index, part) for the first and the last block of every list and every sub-module with a stated gate."""
    for facts in family.adapter.blocks:
        own = [i for i, block in enumerate(family.blocks) if block.facts is facts]
        for part in PARTS:
            if facts.submodule(part) is not None and (family.name, facts.kind, part) not in WITHOUT:
                yield from ((i, part) for i in sorted({own[0], own[-1]}))


def test_a_sub_modules_output_enters_the_block_times_its_gate(family):
    for index, part in gated_parts(family):
        block = family.blocks[index]
        with torch.no_grad():
            gates = family.adapter.gate(part, block.module, family.arguments(index))
        output, change = change_when_doubled(family, index, part)
        gates = gates or [None] * len(output)
        gated = [o if g is None else g * o for o, g in zip(output, gates)]
        assert [g.shape for g in gated] == [o.shape for o in output[: len(gated)]]
        for name, expected in as_streams(family, index, part, gated).items():
            if name in change:
                scale = float(expected.abs().max())
                assert scale > 1e-4, (index, part, name)
                torch.testing.assert_close(change[name], expected, atol=1e-4 * scale + 1e-6, rtol=1e-4)


def test_where_no_gate_is_stated_the_error_says_so(family):
    for index, block in enumerate(family.blocks):
        for part in PARTS:
            if (family.name, block.facts.kind, part) in WITHOUT and block.facts.submodule(part) is not None:
                with pytest.raises(ValueError, match="gate='pre'"):
                    family.adapter.gate(part, block.module, family.arguments(index))


def test_modulated_is_what_the_first_attention_gets(family):
    if "modulated" not in family.adapter.block_probes:
        pytest.skip("not stated")
    block = family.blocks[0]
    seen = []

    def note(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = block.module.get_submodule(block.facts.attention).register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        family.model(**family.inputs)
    handle.remove()
    assert torch.equal(family.probe("modulated"), seen[0])


def test_block_probes_are_refused_before_the_first_block(family):
    for name in family.adapter.block_probes:
        with pytest.raises(ValueError, match=f"{name!r} from the first block's arguments; ask for it in `decide`"):
            family.adapter.probe(name, family.model, family.inputs, {})


def test_an_unknown_probe_lists_those_there_are(family):
    known = sorted(["latent", "prompt_norm", *family.adapter.probes, *family.adapter.block_probes])
    with pytest.raises(ValueError, match=f"has no probe 'tmb'.*Known: {', '.join(known)}"):
        family.adapter.probe("tmb", family.model, family.inputs, {})


EMBEDDERS = {
    "allegro": "adaln_single.emb",
    "aura-flow": "time_step_proj",
    "bria": "time_embed",
    "cogvideox": "time_embedding",
    "cogvideox 1.5": "time_embedding+ofs_embedding",
    "cogview3-plus": "time_condition_embed",
    "cogview4": "time_condition_embed",
    "cosmos": "time_embed.norm",
    "dit": "transformer_blocks.0.norm1.emb",
    "easyanimate": "time_embedding",
    "flux": "time_text_embed",
    "hidream": "t_embedder+p_embedder",
    "hunyuan-dit": "time_extra_emb",
    "hunyuan-video": "time_text_embed",
    "hunyuan-video token_replace": "time_text_embed",
    "hunyuan-video-1.5": "time_embed",
    "hunyuan-video-framepack": "time_text_embed",
    "latte": "adaln_single.emb",
    "ltx-2": "time_embed.emb",
    "ltx-video": "time_embed.emb",
    "lumina2": "time_caption_embed",
    "mochi": "time_embed",
    "opensora": "<t_block",
    "pixart": "adaln_single.emb",
    "qwen-image": "time_text_embed",
    "sana": "time_embed.emb",
    "sana guidance": "time_embed.timestep_embedder+time_embed.guidance_embedder",
    "sana-video": "time_embed.emb",
    "sd3": "time_text_embed",
    "skyreels-v2": "condition_embedder.time_embedder",
    "wan": "condition_embedder.time_embedder",
    "wan-vace": "condition_embedder.time_embedder",
    "z-image": "t_embedder",
}
"""The module that gives the time embedding; "<": that is given it; "+": several whose outputs are added."""


def test_temb_is_the_vector_that_the_model_embeds_the_timestep_to(family):
    if "temb" not in {**family.adapter.probes, **family.adapter.block_probes}:
        assert family.full_name not in EMBEDDERS
        pytest.skip("not stated")
    path = EMBEDDERS[family.full_name]
    seen = {}

    def note(module, args, output):
        value = args[0] if path.startswith("<") else output
        seen.setdefault(module, value[0] if isinstance(value, tuple) else value)

    handles = [family.model.get_submodule(p).register_forward_hook(note) for p in path.strip("<").split("+")]
    with torch.no_grad():
        family.model(**family.inputs)
    for handle in handles:
        handle.remove()
    temb = family.probe("temb")
    assert temb.shape[0] == 2
    assert temb.ndim == 2
    expected = sum(seen.values())
    if family.name == "cogview4":
        expected = torch.nn.functional.silu(expected)  # its blocks do not apply it themselves
    assert torch.equal(temb, expected)
    assert not torch.allclose(temb[0], temb[1])


FRAMES = {
    "allegro": 2, "cogvideox": 3, "cosmos": 2, "easyanimate": 2, "hunyuan-video": 2, "hunyuan-video-1.5": 2, "latte": 4,
    "ltx-2": 2, "ltx-video": 2, "mochi": 2, "opensora": 4, "sana-video": 2, "skyreels-v2": 2, "wan": 2, "wan-vace": 2,
    "cogvideox 1.5": 2, "hunyuan-video token_replace": 2,
}  # fmt: skip
"""Of the family's example inputs; other families are for images."""


def test_num_frames_divides_the_video_tokens_of_the_first_block(family):
    if family.name == "hunyuan-video-framepack":
        with pytest.raises(ValueError, match="not whole frames"):
            family.adapter.num_frames(family.model, family.inputs)
        return
    num_frames = family.adapter.num_frames(family.model, family.inputs)
    assert num_frames == FRAMES.get(family.full_name, 1)
    facts = family.blocks[0].facts
    video = family.arguments(0)[facts.streams[0]]
    num_tokens = video.shape[1] if facts.fold is None else video.shape[0] * video.shape[1] // 2
    assert num_tokens % num_frames == 0
