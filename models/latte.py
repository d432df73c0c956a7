"""Latte (arXiv:2401.03048): spatial and temporal blocks in turns, text by cross-attention in the spatial ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._attention import attention_map
from fsframework.models._modulation import adaln_temb, gates_of, modulated_by, table


@ADAPTERS.register("latte")
class Latte(ModelAdapter):
    """`LatteTransformer3DModel`.

    Between a spatial and a temporal block the model permutes (B F) N C to (B N) F C, and
    after the first spatial block it adds the temporal position embedding. The pipeline sets no cache context.
    """

    transformer_classes = ("LatteTransformer3DModel",)
    pipeline_classes = ("LattePipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.SPATIAL,
            cross_attention="attn2",
            fold="frames",
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
        BlockList(
            "temporal_transformer_blocks",
            Kind.TEMPORAL,
            fold="tokens",
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    interleaved = True
    frame_axis = 2
    gates = gates_of(table("timestep"))
    probes = {"temb": adaln_temb("adaln_single")}
    block_probes = {"modulated": modulated_by(table("timestep"))}
    part_probes = {"attention_map": attention_map}
    pipeline_arguments = {"num_frames": "video_length"}
    checkpoints = {
        "tiny-latte": Checkpoint("tiny-latte", num_steps=50, guidance_scale=4.0, height=32, width=32, num_frames=16),
        "latte-1": Checkpoint(
            "maxin-cn/Latte-1",
            height=512, width=512, num_frames=16, dtype="float16",
            structure=dict(
                num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
                cross_attention_dim=1152, attention_bias=True, sample_size=64, patch_size=2,
                activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
                norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096, video_length=16,
            ),
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12, attention_bias=True, norm_type="ada_norm_single",
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6, num_embeds_ada_norm=1000,
        video_length=4,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Four frames of 8x8 latents and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12)}

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Latents of 8x8 pixels and 120 text tokens, the most the pipeline gives."""
        frames, height, width = checkpoint.pixels
        meta: dict[str, Any] = dict(device="meta", dtype=next(transformer.parameters()).dtype)
        return {
            "hidden_states": torch.empty(batch, 4, frames, height // 8, width // 8, **meta),
            "encoder_hidden_states": torch.empty(batch, 120, 4096, **meta),
            "timestep": torch.empty(batch, device="meta"),
        }
