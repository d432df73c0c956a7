"""CogVideoX (arXiv:2408.06072): joint blocks over text and video tokens, each with its own stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter


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
        ),
    )
    checkpoints = {
        "cogvideox-2b": Checkpoint(
            "THUDM/CogVideoX-2b", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="float16"
        ),
        "cogvideox-5b": Checkpoint(
            "THUDM/CogVideoX-5b", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="bfloat16"
        ),
        "cogvideox-5b-i2v": Checkpoint(
            "THUDM/CogVideoX-5b-I2V", guidance_scale=6.0, height=480, width=720, num_frames=49, dtype="bfloat16"
        ),
        "cogvideox1.5-5b": Checkpoint(
            "THUDM/CogVideoX1.5-5B", guidance_scale=6.0, height=768, width=1360, num_frames=81, fps=16, dtype="bfloat16"
        ),
        "cogvideox1.5-5b-i2v": Checkpoint(
            "THUDM/CogVideoX1.5-5B-I2V",
            guidance_scale=6.0, height=768, width=1360, num_frames=81, fps=16, dtype="bfloat16",
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
