"""Wan VACE (arXiv:2503.07598): control blocks make hints first, which are then added between Wan's own blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, condition_temb, gates_of, table


@ADAPTERS.register("wan-vace")
class WanVACE(ModelAdapter):
    """`WanVACETransformer3DModel`.

    A control block returns its hint in the place of `hidden_states`, which it is given unchanged; the model keeps all
    hints and adds them after the main blocks listed in `vace_layers`.
    """

    transformer_classes = ("WanVACETransformer3DModel",)
    pipeline_classes = ("WanVACEPipeline",)
    later_transformers = ("transformer_2",)
    boundary = "boundary_ratio"
    blocks = (
        BlockList(
            "vace_blocks",
            Kind.CONTROL,
            streams=("hidden_states", "control_hidden_states"),
            returns=("hidden_states", "control_hidden_states"),
            cross_attention="attn2",
            mlp="ffn",
            token_inputs=("rotary_emb",),
            kept_aside=True,
        ),
        BlockList(
            "blocks",
            Kind.JOINT,
            cross_attention="attn2",
            mlp="ffn",
            token_inputs=("rotary_emb",),
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "control_hidden_states", "timestep")
    frame_axis = 2
    frame_patch = "patch_size"
    gates = gates_of(table("temb", float32=True))
    probes = {"temb": condition_temb}
    block_probes = {"temb_projection": argument("temb")}
    # No `modulated`: the first block to run is a control block, and the video does not enter its attention by itself.
    checkpoints = {
        "wan2.1-vace-1.3b": Checkpoint(
            "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
            guidance_scale=5.0, height=480, width=832, num_frames=81, fps=16, dtype="bfloat16",
        ),
        "wan2.1-vace-14b": Checkpoint(
            "Wan-AI/Wan2.1-VACE-14B-diffusers",
            guidance_scale=5.0, height=720, width=1280, num_frames=81, fps=16, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16,
        num_layers=3, rope_max_seq_len=8, vace_layers=[0, 2], vace_in_channels=6,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 with their control video, and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 4, 4),
            "control_hidden_states": noise(batch, 6, 2, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
        }
