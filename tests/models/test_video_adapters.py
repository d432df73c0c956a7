"""Video families at the sizes they are published in, on the meta device: how many sites there are, and in what order."""

import diffusers
import pytest
import torch

from fsframework.core import ADAPTERS, Part, Recompute, ReusePolicy
from fsframework.models.loading import find_adapter

# What the published configuration says, where it differs from the class's defaults.
WAN_1_3B = dict(num_attention_heads=12, ffn_dim=8960, num_layers=30)
WAN_14B = dict(num_attention_heads=40, ffn_dim=13824, num_layers=40)
WAN_I2V_14B = dict(**WAN_14B, in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
WAN_5B = dict(num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30)
VACE_1_3B = dict(**WAN_1_3B, vace_layers=list(range(0, 30, 2)), vace_in_channels=96)
VACE_14B = dict(**WAN_14B, vace_layers=list(range(0, 40, 5)), vace_in_channels=96)
EASYANIMATE_7B = dict(
    patch_size=2, num_layers=36, mmdit_layers=18, in_channels=16, out_channels=16, text_embed_dim=3584
)
EASYANIMATE_12B = dict(patch_size=2, num_layers=48, in_channels=33, out_channels=16, text_embed_dim=3584)
COGVIDEOX_2B = dict(num_attention_heads=30, num_layers=30)
COGVIDEOX_5B = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
COGVIDEOX_5B_I2V = dict(**COGVIDEOX_5B, in_channels=32, use_learned_positional_embeddings=True)
COGVIDEOX_15 = dict(
    **COGVIDEOX_5B, patch_size_t=2, patch_bias=False, sample_height=300, sample_width=300, sample_frames=81
)
COGVIDEOX_15_I2V = dict(**COGVIDEOX_15, in_channels=32, ofs_embed_dim=512)

SIZES = [
    ("cogvideox", COGVIDEOX_2B, {"joint": 30}),
    ("cogvideox", COGVIDEOX_5B, {"joint": 42}),
    ("cogvideox", COGVIDEOX_5B_I2V, {"joint": 42}),
    ("cogvideox", COGVIDEOX_15, {"joint": 42}),
    ("cogvideox", COGVIDEOX_15_I2V, {"joint": 42}),
    ("wan", WAN_1_3B, {"joint": 30}),
    ("wan", WAN_14B, {"joint": 40}),
    ("wan", WAN_I2V_14B, {"joint": 40}),
    ("wan", WAN_5B, {"joint": 30}),
    ("wan-vace", VACE_1_3B, {"control": 15, "joint": 30}),
    ("wan-vace", VACE_14B, {"control": 8, "joint": 40}),
    ("skyreels-v2", WAN_14B, {"joint": 40}),
    ("hunyuan-video", {}, {"joint": 20, "single": 40}),
    ("hunyuan-video", {"image_condition_type": "token_replace"}, {"joint": 20, "single": 40}),
    ("hunyuan-video-framepack", {"has_image_proj": True, "has_clean_x_embedder": True}, {"joint": 20, "single": 40}),
    ("hunyuan-video-1.5", {}, {"joint": 54}),
    ("ltx-video", {}, {"joint": 28}),
    ("ltx-2", {}, {"joint": 48}),
    ("mochi", {}, {"joint": 48}),
    ("allegro", {}, {"joint": 32}),
    ("easyanimate", EASYANIMATE_7B, {"joint": 36}),
    ("easyanimate", EASYANIMATE_12B, {"joint": 48}),
    ("cosmos", {}, {"joint": 28}),
    ("cosmos", {"num_layers": 36, "num_attention_heads": 40}, {"joint": 36}),
    ("sana-video", {}, {"joint": 20}),
]


class Blocks(ReusePolicy):
    """Asks about every block and every sub-module."""

    parts = frozenset({Part.BLOCK, Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP})

    def decide(self, state, call, site):
        return Recompute()


def bound_on_meta(name, config):
    adapter = ADAPTERS[name]()
    with torch.device("meta"):
        transformer = getattr(diffusers, adapter.transformer_classes[0])(**config)
    assert type(find_adapter(transformer)[0]) is type(adapter)
    return adapter.bind(transformer)


@pytest.mark.parametrize(("name", "config", "blocks"), SIZES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(SIZES)])
def test_a_published_size_has_its_blocks_list_after_list(name, config, blocks):
    bound = bound_on_meta(name, config)
    expected = [f"{kind}.{i}" for kind, count in blocks.items() for i in range(count)]
    assert [site.name for site in bound.sites(Blocks()) if site.part is Part.BLOCK] == expected


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("wan", ["joint.0", "joint.0.attention", "joint.0.cross_attention", "joint.0.mlp"], "joint.2.mlp"),
        ("hunyuan-video", ["joint.0", "joint.0.attention", "joint.0.mlp", "joint.1"], "single.1.attention"),
        ("easyanimate", ["joint.0", "joint.0.attention", "joint.1", "joint.1.attention"], "joint.2.attention"),
        ("ltx-2", ["joint.0", "joint.0.attention", "joint.0.cross_attention", "joint.0.mlp"], "joint.2.mlp"),
        ("wan-vace", ["control.0", "control.0.attention", "control.0.cross_attention", "control.0.mlp"], "joint.2.mlp"),
    ],
)
def test_sub_modules_come_in_the_order_the_block_runs_them(name, first, last):
    names = [site.name for site in bound_on_meta(name, ADAPTERS[name].tiny_config).sites(Blocks())]
    assert names[:4] == first
    assert names[-1] == last
