"""CogView4 (THUDM/CogView4-6B): joint blocks over text and image tokens, each with its own stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, two_stream_modulated


def _attention_gates(block: Any, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """Of twelve pieces, image and text in turns, the third pair; the norm has no SiLU before its linear layer."""
    pieces = block.norm1.linear(arguments["temb"])[:, None].chunk(12, dim=-1)
    return (pieces[4], pieces[5])


@ADAPTERS.register("cogview4")
class CogView4(ModelAdapter):
    """`CogView4Transformer2DModel`. One feed-forward runs twice in a block, for the image and for the text.

    Guidance is one call per branch, the condition first.
    """

    transformer_classes = ("CogView4Transformer2DModel",)
    pipeline_classes = ("CogView4Pipeline", "CogView4ControlPipeline")
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            mlp=None,
            token_inputs=("image_rotary_emb",),
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords",
    )  # fmt: skip
    gates = {Part.ATTENTION: _attention_gates}
    block_probes = {"temb": argument("temb"), "modulated": two_stream_modulated()}
    checkpoints = {
        "cogview4": Checkpoint("THUDM/CogView4-6B", guidance_scale=3.5, height=1024, width=1024, dtype="bfloat16"),
    }
    tiny_config = dict(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=12, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
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
