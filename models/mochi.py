"""Mochi 1 (github.com/genmoai/mochi): joint blocks in which the text stream is narrower than the video stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    value: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"])[0]
    return value


@ADAPTERS.register("mochi")
class Mochi(ModelAdapter):
    """`MochiTransformer3DModel`: the last block gives the text back unchanged. Guidance is one batch."""

    transformer_classes = ("MochiTransformer3DModel",)
    pipeline_classes = ("MochiPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            token_inputs=("image_rotary_emb",),
            partial={Part.MLP: "video"},
        ),
    )
    batched_inputs = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    frame_axis = 2
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "mochi-1": Checkpoint(
            "genmo/mochi-1-preview",
            num_steps=64, guidance_scale=4.5, height=480, width=848, num_frames=85, fps=30, dtype="bfloat16",
        ),
    }  # fmt: skip
    counted_live = True  # it drops padded text, so shapes depend on the mask
    tiny_config = dict(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=12, in_channels=4,
        text_embed_dim=16, time_embed_dim=8, max_sequence_length=5,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 16),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
        }
