"""Sana (arXiv:2410.10629): linear attention over the image tokens, text by cross-attention, convolutions in the MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import gates_of, modulated_by, table


def _mlp_gate(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """The feed-forward is convolutional and returns [B, C, H, W]."""
    return (table("timestep")(block, arguments)[5].transpose(1, 2)[..., None],)


def _temb(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """[B, D], with the guidance scale where it is an input. The blocks get a projection only."""
    latent, guidance = arguments["hidden_states"], arguments.get("guidance")
    more = {"batch_size": latent.shape[0]} if guidance is None else {"guidance": guidance}
    value: Tensor = transformer.time_embed(arguments["timestep"], hidden_dtype=latent.dtype, **more)[1]
    return value


@ADAPTERS.register("sana")
class Sana(ModelAdapter):
    """`SanaTransformer2DModel`. Guidance is one batch; Sprint takes the scale as an input of the model instead."""

    transformer_classes = ("SanaTransformer2DModel",)
    pipeline_classes = (
        "SanaPipeline", "SanaSprintPipeline", "SanaSprintImg2ImgPipeline", "SanaControlNetPipeline",
    )  # fmt: skip
    blocks = (BlockList("transformer_blocks", Kind.JOINT, cross_attention="attn2"),)
    batched_inputs = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep", "guidance")
    gates = {**gates_of(table("timestep")), Part.MLP: _mlp_gate}
    probes = {"temb": _temb}
    block_probes = {"modulated": modulated_by(table("timestep"))}
    checkpoints = {
        "sana-1600m": Checkpoint(
            "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", num_steps=20, guidance_scale=4.5, height=1024,
            width=1024, dtype="bfloat16",
        ),
        "sana-600m": Checkpoint(
            "Efficient-Large-Model/Sana_600M_1024px_diffusers", num_steps=20, guidance_scale=4.5, height=1024, width=1024,
            dtype="float16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        patch_size=1, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        sample_size=32,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """6x6 latents and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 6, 6), "encoder_hidden_states": noise(batch, 5, 12)}
