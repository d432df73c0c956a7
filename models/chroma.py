"""Chroma (lodestones/Chroma1-HD): a Flux whose blocks are modulated from one small network, with true guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import norm_of


def _attention_gates(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """The blocks get their factors ready, [B, 12, C]: six for the image, then six for the text."""
    norm_of(block, "norm1")
    return (arguments["temb"][:, 2:3], arguments["temb"][:, 8:9], None)


def _mlp_gate(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    return (arguments["temb"][:, 5:6],)


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    value: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"][:, :6])[0]
    return value


@ADAPTERS.register("chroma")
class Chroma(ModelAdapter):
    """`ChromaTransformer2DModel`: joint blocks, then single blocks on the joined text and image tokens.

    Guidance is one call per branch, the condition first; the pipelines do not name them.
    """

    transformer_classes = ("ChromaTransformer2DModel",)
    pipeline_classes = ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline")
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
            attention="attn",
            mlp=None,
            concatenated=("encoder_hidden_states", "hidden_states"),
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "timestep", "attention_mask")
    gates = {Part.ATTENTION: _attention_gates, Part.MLP: _mlp_gate}
    block_probes = {"modulated": _modulated}
    checkpoints = {
        "chroma": Checkpoint(
            "lodestones/Chroma1-HD", num_steps=40, guidance_scale=3.0, height=1024, width=1024, dtype="bfloat16"
        ),
    }
    tiny_config = dict(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(2, 2, 4), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
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
