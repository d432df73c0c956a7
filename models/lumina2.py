"""Lumina-Image 2.0 (arXiv:2503.21758): one stream of text and image tokens, after refiners for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter
from fsframework.models._modulation import argument


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    value: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"])[0]
    return value


@ADAPTERS.register("lumina2")
class Lumina2(ModelAdapter):
    """`Lumina2Transformer2DModel`. The refiners before the trunk always run.

    Guidance is one call per branch, the condition first, unnamed; with `cfg_trunc_ratio` late steps call it only once.
    """

    transformer_classes = ("Lumina2Transformer2DModel",)
    pipeline_classes = ("Lumina2Pipeline",)
    blocks = (BlockList("layers", Kind.SINGLE, attention="attn", mlp="feed_forward"),)
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "lumina2": Checkpoint(
            "Alpha-VLLM/Lumina-Image-2.0", guidance_scale=4.0, height=1024, width=1024, dtype="bfloat16"
        ),
    }
    counted_live = True  # it drops padded text, so shapes depend on the mask
    tiny_config = dict(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, scaling_factor=1.0, axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 8, 8), cap_feat_dim=12,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents and five text tokens, all of them valid."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool),
        }  # fmt: skip
