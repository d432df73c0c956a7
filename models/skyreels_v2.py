"""SkyReels V2 (arXiv:2504.13074): Wan's blocks; the pipelines that denoise all frames together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, condition_temb, gates_of, modulated_by, table


def _factors(block: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """With a timestep per token the projection is [B, 6, N, C]."""
    temb: Tensor = arguments["temb"]
    return table("temb", float32=True)(block, {"temb": temb.transpose(1, 2) if temb.ndim == 4 else temb})


@ADAPTERS.register("skyreels-v2")
class SkyReelsV2(ModelAdapter):
    """`SkyReelsV2Transformer3DModel`.

    The diffusion-forcing pipelines, in which each frame has its own timestep and sampler, are not among these.
    """

    transformer_classes = ("SkyReelsV2Transformer3DModel",)
    pipeline_classes = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    blocks = (
        BlockList(
            "blocks",
            Kind.JOINT,
            cross_attention="attn2",
            mlp="ffn",
            token_inputs=("rotary_emb",),
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    unsupported_pipelines = dict.fromkeys(
        (
            "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2DiffusionForcingImageToVideoPipeline",
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        ),
        "each frame has its own timestep and its own copy of the sampler, so there is no step that all of them share",
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_image", "timestep")
    frame_axis = 2
    frame_patch = "patch_size"
    gates = gates_of(_factors)
    probes = {"temb": condition_temb}
    block_probes = {
        "temb_projection": argument("temb"),
        "modulated": modulated_by(_factors, float32=True),
    }
    checkpoints = {
        "skyreels-v2-t2v-14b-540p": Checkpoint(
            "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
            guidance_scale=6.0, height=544, width=960, num_frames=97, fps=24, dtype="bfloat16",
        ),
        "skyreels-v2-t2v-14b-720p": Checkpoint(
            "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
            guidance_scale=6.0, height=720, width=1280, num_frames=121, fps=24, dtype="bfloat16",
        ),
        "skyreels-v2-i2v-14b-540p": Checkpoint(
            "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
            guidance_scale=5.0, height=544, width=960, num_frames=97, fps=24, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16,
        num_layers=3, rope_max_seq_len=8,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 2, 4, 4), "encoder_hidden_states": noise(batch, 5, 12)}
