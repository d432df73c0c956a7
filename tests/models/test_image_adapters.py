"""The image families at their published sizes, and what is particular to some of them."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch

import fsframework as fsf
import fsframework.models
from fsframework.core import ADAPTERS, Part, Recompute, Reuse, ReusePolicy
from fsframework.policies import FullCompute, StaticReuse

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")

# name, constructor arguments beside the class's defaults, blocks per kind, parameters in billions as published
PUBLISHED = [
    ("flux", dict(guidance_embeds=True), {"joint": 19, "single": 38}, 11.9),  # FLUX.1-dev
    ("flux2", dict(), {"joint": 8, "single": 48}, 32.2),  # FLUX.2-dev
    ("sd3", dict(num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192),
     {"joint": 24}, 2.0),  # 3 medium
    ("sd3", dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192,
                 qk_norm="rms_norm"), {"joint": 38}, 8.1),  # 3.5 large
    ("pixart", dict(caption_channels=4096), {"joint": 28}, 0.6),  # PixArt-XL-2
    ("dit", dict(out_channels=8), {"joint": 28}, 0.75),  # DiT-XL/2, here with a class embedding in every block
    ("qwen-image", dict(), {"joint": 60}, 20.4),
    ("chroma", dict(), {"joint": 19, "single": 38}, 8.9),  # Chroma1-HD
    ("sana", dict(), {"joint": 20}, 1.6),  # 1600M
    ("cogview4", dict(num_layers=28, num_attention_heads=32, attention_head_dim=128), {"joint": 28}, 6.4),  # 6B
    ("cogview3-plus", dict(), {"joint": 30}, 2.8),  # 3B
    ("lumina2", dict(cap_feat_dim=2304), {"single": 26}, 2.6),
    ("hidream", dict(patch_size=2, in_channels=16, caption_channels=[4096, 4096], axes_dims_rope=(64, 32, 32),
                     llama_layers=[*range(32), *[31] * 16]), {"joint": 16, "single": 32}, 17.1),
    ("aura-flow", dict(pos_embed_max_size=1024), {"joint": 4, "single": 32}, 6.8),
    ("hunyuan-dit", dict(num_layers=40, hidden_size=1408, in_channels=4, patch_size=2, mlp_ratio=4.3637),
     {"joint": 40}, 1.5),  # v1.2
    ("z-image", dict(), {"single": 30}, 6.15),  # Turbo
]  # fmt: skip


def pipes(name):
    """The module of a family's tiny pipeline."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "pipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "config", "blocks", "billions"), PUBLISHED)
def test_published_sizes_have_the_blocks_and_parameters_they_are_known_for(name, config, blocks, billions):
    adapter = ADAPTERS[name]()
    with torch.device("meta"):
        transformer = getattr(diffusers, adapter.transformer_classes[0])(**config)
    bound = adapter.bind(transformer)
    names = [bound.block_site(index).name for index in range(len(bound.blocks))]
    assert names == [f"{kind}.{i}" for kind, number in blocks.items() for i in range(number)]
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize("name", sorted({row[0] for row in PUBLISHED} | {"bria"}))
def test_every_pipeline_named_is_one_of_diffusers_with_this_transformer(name):
    adapter = ADAPTERS[name]
    for pipeline in adapter.pipeline_classes:
        expected = getattr(diffusers, pipeline).__init__.__annotations__[adapter.transformer_name]
        assert getattr(expected, "__name__", expected) in adapter.transformer_classes


class TestStableDiffusion3:
    @pytest.fixture(scope="class")
    def family(self):
        return pipes("sd3")

    @pytest.fixture(scope="class")
    def pipe(self, family):
        return family.build()

    @pytest.mark.parametrize("storage", ["output", "residual"])
    @pytest.mark.parametrize("part", [Part.BLOCK, Part.TRUNK])
    def test_the_last_block_gives_no_text_and_is_reused_all_the_same(self, family, pipe, part, storage):
        @dataclass(frozen=True)
        class Second(ReusePolicy):
            storage: str = "output"
            part: Part = Part.BLOCK

            @property
            def parts(self):
                return frozenset({self.part})

            def decide(self, state, call, site):
                return Reuse() if call.step.index == 1 else Recompute()

        with fsf.reuse(pipe, Second(storage, part)) as session:
            image = family.generate(pipe, num_steps=3)
        assert image.isfinite().all()
        assert {session.trace.decisions(site) for site in session.sites} == {"CRC"}

    def test_only_the_image_of_the_last_block_is_cached(self, family, pipe):
        streams = {}

        class Watch(FullCompute):
            def observe(self, state, call, site, fresh, cached):
                streams[site.name] = [tuple(t.shape) for t in fresh]

        with fsf.reuse(pipe, Watch()):
            family.generate(pipe, num_steps=1)
        both = [(2, 16, 16), (2, 5, 16)]  # two halves, 4 x 4 image tokens, 5 text tokens
        assert streams == {"joint.0": both, "joint.1": both, "joint.2": both[:1]}

    def test_skip_layer_guidance_is_a_branch_of_its_own_in_the_steps_that_have_it(self, family, pipe):
        skip = dict(skip_guidance_layers=[1], skip_layer_guidance_start=0.1, skip_layer_guidance_stop=0.6)
        bare = family.generate(pipe, num_steps=6, **skip)
        assert not torch.equal(bare, family.generate(pipe, num_steps=6))
        with fsf.reuse(pipe, FullCompute()) as session:
            assert torch.equal(bare, family.generate(pipe, num_steps=6, **skip))
        forwards = [(step, branch) for step, branch, *_ in session.trace.forwards]
        assert [s for s, branch in forwards if branch == "joint"] == [0, 1, 2, 3, 4, 5]
        assert [s for s, branch in forwards if branch == "skip_layers"] == [1, 2, 3]  # 0.6 < i < 3.6
        assert len(session.trace) == 6 * 3 + 3 * 2
        with fsf.reuse(pipe, StaticReuse(interval=2, warmup=1, storage="residual")) as session:
            assert family.generate(pipe, num_steps=6, **skip).isfinite().all()
        assert session.trace.decisions("joint.0", "joint") == "CRCRCR"
        assert session.trace.decisions("joint.0", "skip_layers").strip("-. ") == "CCR"  # nothing was cached at step 1


def test_flux_without_a_negative_prompt_calls_once_per_step():
    family = pipes("flux")
    pipe = family.build()
    with fsf.reuse(pipe, StaticReuse(interval=2, warmup=1)) as session:
        family.generate(pipe, true_cfg_scale=1.0)
    assert set(session.trace.column("branch")) == {"cond"}
    assert session.trace.decisions("single.1", "cond") == "CRCR"


def test_lumina_that_drops_guidance_late_keeps_its_branches_apart():
    family = pipes("lumina2")
    pipe = family.build()
    bare = family.generate(pipe, num_steps=6, cfg_trunc_ratio=0.5)
    with fsf.reuse(pipe, FullCompute()) as session:
        assert torch.equal(bare, family.generate(pipe, num_steps=6, cfg_trunc_ratio=0.5))
    calls = [(step, branch) for step, branch, *_ in session.trace.forwards]
    assert calls == [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond"), (2, "cond"), (2, "uncond"),
                     (3, "cond"), (4, "cond"), (5, "cond")]  # fmt: skip
