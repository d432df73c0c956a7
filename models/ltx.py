"""LTX-Video (arXiv:2501.00103): video tokens of a strongly compressed latent, text by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import adaln_temb, gates_of, modulated_by, table


@ADAPTERS.register("ltx-video")
class LTXVideo(ModelAdapter):
    """`LTXVideoTransformer3DModel`: the latent comes as tokens, [B, N, C]. Guidance is one batch."""

    transformer_classes = ("LTXVideoTransformer3DModel",)
    pipeline_classes = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    unsupported_pipelines = {
        "LTXI2VLongMultiPromptPipeline": "it makes a video per window and leaves steps out, so steps and videos do not match"
    }
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
        "hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask", "video_coords",
    )  # fmt: skip
    gates = gates_of(table("temb"))
    probes = {"temb": adaln_temb("time_embed")}
    block_probes = {"modulated": modulated_by(table("temb"))}
    checkpoints = {
        "ltx-video": Checkpoint(
            "Lightricks/LTX-Video",
            guidance_scale=3.0, height=512, width=704, num_frames=161, fps=25, dtype="bfloat16",
        ),
        "ltx-video-0.9.1": Checkpoint(
            "a-r-r-o-w/LTX-Video-0.9.1-diffusers",
            guidance_scale=3.0, height=512, width=768, num_frames=161, fps=25, dtype="bfloat16",
        ),
        "ltx-video-0.9.5": Checkpoint(
            "Lightricks/LTX-Video-0.9.5",
            guidance_scale=3.0, height=512, width=768, num_frames=161, fps=25, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, cross_attention_dim=16, num_layers=3,
        caption_channels=12,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 2x3 and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 12, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "num_frames": 2,
            "height": 2,
            "width": 3,
        }

    def num_frames(self, transformer: nn.Module, arguments: Mapping[str, Any]) -> int:
        """As the pipeline gives it: the latent comes as tokens."""
        return int(arguments["num_frames"])
