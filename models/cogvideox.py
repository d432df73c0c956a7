"""CogVideoX (arXiv:2408.06072): joint blocks over text and video tokens, each with its own stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, joined_gate, text_and_video_gates, two_stream_modulated

_5B = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_15 = dict(
    **_5B, patch_size_t=2, patch_bias=False, sample_height=300, sample_width=300, sample_frames=81
)  # fmt: skip


@ADAPTERS.register("cogvideox")
class CogVideoX(ModelAdapter):
    """`CogVideoXTransformer3DModel`: 2b, 5b and 1.5, text-, image- and video-to-video. Guidance is one batch."""

    transformer_classes = ("CogVideoXTransformer3DModel",)
    pipeline_classes = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline")
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            token_inputs=("image_rotary_emb",),
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.MLP: "text+video"},
        ),
    )
    frame_axis = 1
    frame_patch = "patch_size_t"
    gates = {
        Part.ATTENTION: text_and_video_gates("norm1", "temb", video=2, text=5),
        Part.MLP: joined_gate("norm2", "temb", video=2, text=5),
    }
    block_probes = {"temb": argument("temb"), "modulated": two_stream_modulated()}
    checkpoints = {
        "tiny-cogvideox": Checkpoint(
            "tiny-cogvideox", num_steps=50, guidance_scale=4.0, height=32, width=32, num_frames=16,
            arguments={"max_sequence_length": 16},
        ),
        "cogvideox-2b": Checkpoint(
            "THUDM/CogVideoX-2b", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="float16",
            structure=dict(num_attention_heads=30, num_layers=30),
        ),
        "cogvideox-5b": Checkpoint(
            "THUDM/CogVideoX-5b", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="bfloat16",
            structure=_5B,
        ),
        "cogvideox-5b-i2v": Checkpoint(
            "THUDM/CogVideoX-5b-I2V", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="bfloat16",
            structure=dict(**_5B, in_channels=32, use_learned_positional_embeddings=True),
        ),
        "cogvideox1.5-5b": Checkpoint(
            "THUDM/CogVideoX1.5-5B", guidance_scale=6.0, height=768, width=1360, num_frames=81, fps=16, dtype="bfloat16",
            structure=_15,
        ),
        "cogvideox1.5-5b-i2v": Checkpoint(
            "THUDM/CogVideoX1.5-5B-I2V",
            guidance_scale=6.0, height=768, width=1360, num_frames=81, fps=16, dtype="bfloat16",
            structure=dict(**_15, in_channels=32, ofs_embed_dim=512),
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12,
        num_layers=4, sample_width=8, sample_height=8, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=5,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Three latent frames of 8x8 and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 3, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12)}

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Latents of 4 frames of 8x8 pixels and 226 text tokens; 1.5 pads the frames to whole patches."""
        frames, height, width = checkpoint.pixels
        config: Any = transformer.config
        patch_frames = config.patch_size_t or 1
        frames = (frames - 1) // 4 + 1
        frames += -frames % patch_frames
        rows, columns = height // 8, width // 8
        meta: dict[str, Any] = dict(device="meta", dtype=next(transformer.parameters()).dtype)
        inputs: dict[str, Any] = {
            "hidden_states": torch.empty(batch, frames, config.in_channels, rows, columns, **meta),
            "encoder_hidden_states": torch.empty(batch, 226, config.text_embed_dim, **meta),
            "timestep": torch.empty(batch, device="meta"),
        }
        if config.use_rotary_positional_embeddings:
            tokens = frames // patch_frames * (rows // config.patch_size) * (columns // config.patch_size)
            inputs["image_rotary_emb"] = tuple(torch.empty(tokens, config.attention_head_dim, **meta) for _ in range(2))
        if config.ofs_embed_dim is not None:
            inputs["ofs"] = torch.empty(1, **meta)
        return inputs
