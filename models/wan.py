"""Wan 2.1 and 2.2 (arXiv:2503.20314): one stream of video tokens, text by cross-attention, one call per branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._attention import wan_attention_map
from fsframework.models._modulation import argument, condition_temb, gates_of, modulated_by, table

_1_3B = dict(num_attention_heads=12, ffn_dim=8960, num_layers=30)
_14B = dict(num_attention_heads=40, ffn_dim=13824, num_layers=40)


@ADAPTERS.register("wan")
class Wan(ModelAdapter):
    """`WanTransformer3DModel`: text-, image- and video-to-video.

    Wan 2.2 A14B has two of them: `transformer` denoises down to `boundary_ratio`, `transformer_2` from there on. The
    video-to-video pipeline names no cache context; it calls the prompt first.
    """

    transformer_classes = ("WanTransformer3DModel",)
    pipeline_classes = ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline")
    later_transformers = ("transformer_2",)
    boundary = "boundary_ratio"
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
    frame_axis = 2
    frame_patch = "patch_size"
    gates = gates_of(table("temb", float32=True))
    probes = {"temb": condition_temb}
    block_probes = {
        "temb_projection": argument("temb"),
        "modulated": modulated_by(table("temb", float32=True), float32=True),
    }
    """`temb_projection`: `temb` projected to six vectors for all blocks, [B, 6, D] or [B, N, 6, D]."""
    part_probes = {"attention_map": wan_attention_map}
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_image", "timestep")
    checkpoints = {
        "wan2.1-t2v-1.3b": Checkpoint(
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            guidance_scale=5.0, height=480, width=832, num_frames=81, fps=16, dtype="bfloat16", structure=_1_3B,
        ),
        "wan2.1-t2v-14b": Checkpoint(
            "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            guidance_scale=5.0, height=720, width=1280, num_frames=81, fps=16, dtype="bfloat16", structure=_14B,
        ),
        "wan2.1-i2v-14b-480p": Checkpoint(
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            guidance_scale=5.0, height=480, width=832, num_frames=81, fps=16, dtype="bfloat16",
        ),
        "wan2.1-i2v-14b-720p": Checkpoint(
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            guidance_scale=5.0, height=720, width=1280, num_frames=81, fps=16, dtype="bfloat16",
        ),
        "wan2.2-t2v-a14b": Checkpoint(
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            num_steps=40, guidance_scale=4.0, height=720, width=1280, num_frames=81, fps=16, dtype="bfloat16",
            structure=_14B,
        ),
        "wan2.2-i2v-a14b": Checkpoint(
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            num_steps=40, guidance_scale=3.5, height=480, width=832, num_frames=81, fps=16, dtype="bfloat16",
        ),
        "wan2.2-ti2v-5b": Checkpoint(
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            guidance_scale=5.0, height=704, width=1280, num_frames=121, fps=24, dtype="bfloat16",
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

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Latents of 4 frames of 8x8 pixels and 512 text tokens."""
        frames, height, width = checkpoint.pixels
        size = ((frames - 1) // 4 + 1, height // 8, width // 8)
        config: Any = transformer.config
        meta: dict[str, Any] = dict(device="meta", dtype=next(transformer.parameters()).dtype)
        return {
            "hidden_states": torch.empty(batch, config.in_channels, *size, **meta),
            "encoder_hidden_states": torch.empty(batch, 512, config.text_dim, **meta),
            "timestep": torch.empty(batch, device="meta"),
        }
