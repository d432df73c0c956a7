"""DiT (arXiv:2212.09748): class-conditional ImageNet, the block all others descend from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import norm_factors


def _temb(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Every block embeds timestep and class by itself; this is the first block's."""
    dtype = arguments["hidden_states"].dtype
    value: Tensor = block.norm1.emb(arguments["timestep"], arguments["class_labels"], hidden_dtype=dtype)
    return value


def _factors(block: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return norm_factors(block, "norm1", _temb(block, arguments), arguments["hidden_states"].shape[-1])


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    x = arguments["hidden_states"]
    value: Tensor = block.norm1(x, arguments["timestep"], arguments["class_labels"], hidden_dtype=x.dtype)[0]
    return value


@ADAPTERS.register("dit")
class DiT(ModelAdapter):
    """`DiTTransformer2DModel`. The condition is a class label, not text; guidance is one batch, the class first."""

    transformer_classes = ("DiTTransformer2DModel",)
    pipeline_classes = ("DiTPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks", Kind.JOINT, partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.MLP: "video"}
        ),
    )
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "timestep", "class_labels")
    gates = {
        Part.ATTENTION: lambda block, arguments: (_factors(block, arguments)[2],),
        Part.MLP: lambda block, arguments: (_factors(block, arguments)[5],),
    }
    block_probes = {"temb": _temb, "modulated": _modulated}
    checkpoints = {
        "dit-xl-256": Checkpoint("facebook/DiT-XL-2-256", num_steps=25, guidance_scale=4.0, dtype="float16"),
        "dit-xl-512": Checkpoint("facebook/DiT-XL-2-512", num_steps=25, guidance_scale=4.0, dtype="float16"),
    }
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents and a class each."""
        return {
            "hidden_states": torch.randn((batch, 4, 8, 8), generator=generator),
            "class_labels": torch.randint(1000, (batch,), generator=generator),
        }
