"""HunyuanDiT (arXiv:2405.08748): a U of blocks, the late ones fed by the early ones; text by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import NO_GATES, argument


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    value: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"])
    return value


@ADAPTERS.register("hunyuan-dit")
class HunyuanDiT(ModelAdapter):
    """`HunyuanDiT2DModel`. The model keeps the early blocks' outputs for the late ones. Guidance is one batch."""

    transformer_classes = ("HunyuanDiT2DModel",)
    pipeline_classes = ("HunyuanDiTPipeline", "HunyuanDiTControlNetPipeline")
    blocks = (
        BlockList(
            "blocks",
            Kind.JOINT,
            cross_attention="attn2",
            token_inputs=("image_rotary_emb",),
            kept_aside="blocks",
            partial={Part.MLP: "video"},
        ),
    )
    batched_inputs = (
        "hidden_states", "timestep", "encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5",
        "text_embedding_mask_t5", "image_meta_size", "style",
    )  # fmt: skip
    gates = NO_GATES
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "hunyuan-dit": Checkpoint(
            "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", guidance_scale=5.0, height=1024, width=1024, dtype="float16"
        ),
    }
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=4, mlp_ratio=2.0, cross_attention_dim=12, cross_attention_dim_t5=16, pooled_projection_dim=6,
        text_len=3, text_len_t5=2,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents, three and two text tokens, the size and style conditions, and positions."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        angles = torch.outer(torch.arange(16.0), torch.tensor([1.0, 0.1, 0.01, 0.001])).repeat_interleave(2, dim=1)
        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 3, 12),
            "text_embedding_mask": torch.ones(batch, 3), "encoder_hidden_states_t5": noise(batch, 2, 16),
            "text_embedding_mask_t5": torch.ones(batch, 2), "image_meta_size": torch.full((batch, 6), 64.0),
            "style": torch.zeros(batch, dtype=torch.long), "image_rotary_emb": (angles.cos(), angles.sin()),
        }  # fmt: skip
