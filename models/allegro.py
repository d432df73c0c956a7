"""Allegro (arXiv:2410.15458): one stream of video tokens, text by cross-attention, PixArt's modulation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import adaln_temb, gates_of, modulated_by, table


@ADAPTERS.register("allegro")
class Allegro(ModelAdapter):
    """`AllegroTransformer3DModel`: the pipeline makes the rotary tables. Guidance is one batch, without cache context."""

    transformer_classes = ("AllegroTransformer3DModel",)
    pipeline_classes = ("AllegroPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            cross_attention="attn2",
            token_inputs=("image_rotary_emb",),
            partial={Part.MLP: "video"},
        ),
    )  # fmt: skip
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "timestep", "attention_mask", "encoder_attention_mask",
    )  # fmt: skip
    frame_axis = 2
    frame_patch = "patch_size_t"
    gates = gates_of(table("temb"))
    probes = {"temb": adaln_temb("adaln_single")}
    block_probes = {"modulated": modulated_by(table("temb"))}
    checkpoints = {
        "allegro": Checkpoint(
            "rhymes-ai/Allegro",
            num_steps=100, guidance_scale=7.5, height=720, width=1280, num_frames=88, fps=15, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=3, cross_attention_dim=24,
        sample_width=4, sample_height=4, sample_frames=2, caption_channels=12,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
        }
