"""CogView3-Plus (arXiv:2403.05121): joint blocks over text and image tokens, each with its own stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, joined_gate, text_and_video_gates, two_stream_modulated


@ADAPTERS.register("cogview3-plus")
class CogView3Plus(ModelAdapter):
    """`CogView3PlusTransformer2DModel`. Guidance is one batch; the feed-forward sees text and image tokens joined."""

    transformer_classes = ("CogView3PlusTransformer2DModel",)
    pipeline_classes = ("CogView3PlusPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
        ),
    )
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords",
    )  # fmt: skip
    gates = {
        Part.ATTENTION: text_and_video_gates("norm1", "emb", video=2, text=8),
        Part.MLP: joined_gate("norm1", "emb", video=5, text=11),
    }
    block_probes = {"temb": argument("emb"), "modulated": two_stream_modulated("emb")}
    checkpoints = {
        "cogview3-plus": Checkpoint(
            "THUDM/CogView3-Plus-3B", guidance_scale=7.0, height=1024, width=1024, dtype="bfloat16"
        ),
    }
    tiny_config = dict(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=12, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents, five text tokens and the size conditions."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        size = torch.full((batch, 2), 64.0)
        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12),
            "original_size": size, "target_size": size, "crop_coords": torch.zeros(batch, 2),
        }  # fmt: skip
