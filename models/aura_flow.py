"""AuraFlow (fal/AuraFlow): a few joint blocks, then single-stream blocks on the joined text and image tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("aura-flow")
class AuraFlow(ModelAdapter):
    """`AuraFlowTransformer2DModel`. Guidance is one batch."""

    transformer_classes = ("AuraFlowTransformer2DModel",)
    pipeline_classes = ("AuraFlowPipeline",)
    blocks = (
        BlockList(
            "joint_transformer_blocks",
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
            concatenated=("encoder_hidden_states", "hidden_states"),
        ),
    )
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    checkpoints = {
        "aura-flow": Checkpoint("fal/AuraFlow", guidance_scale=3.5, height=1024, width=1024, dtype="float16"),
    }
    tiny_config = dict(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12)}
