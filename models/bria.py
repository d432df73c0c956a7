"""BRIA 3.2 (briaai/BRIA-3.2): the blocks of Flux without pooled text, with classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("bria")
class Bria(ModelAdapter):
    """`BriaTransformer2DModel`. The single blocks join and part the streams themselves; guidance is one batch."""

    transformer_classes = ("BriaTransformer2DModel",)
    pipeline_classes = ("BriaPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            partial={Part.MLP: "video"},
        ),
        BlockList(
            "single_transformer_blocks",
            Kind.SINGLE,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            mlp=None,
        ),
    )
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    checkpoints = {
        "bria-3.2": Checkpoint(
            "briaai/BRIA-3.2", num_steps=30, guidance_scale=5.0, height=1024, width=1024, dtype="bfloat16"
        ),
    }
    tiny_config = dict(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=[2, 2, 4],
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Sixteen packed image tokens, five text tokens and their positions."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 16, 4), "encoder_hidden_states": noise(batch, 5, 12),
            "txt_ids": torch.zeros(5, 3),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        }  # fmt: skip
