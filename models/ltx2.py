"""LTX-2 (arXiv:2601.03233): video and audio tokens, each with its own stream, that attend to each other in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import adaln_temb, gates_of, modulated_by, table


def _cross_attention_gate(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """Where the attention to the text is modulated too, the table has nine rows, and the last is its gate."""
    factors = table("temb")(block, arguments)
    return (factors[8] if len(factors) == 9 else None,)


@ADAPTERS.register("ltx-2")
class LTX2(ModelAdapter):
    """`LTX2VideoTransformer3DModel`: predicts video and audio at once; both streams are reused together.

    Guidance is one batch. Spatio-temporal and modality guidance, on by default, are one more call each per step, of the
    prompt alone, named `uncond_stg` and `uncond_modality`.
    """

    transformer_classes = ("LTX2VideoTransformer3DModel",)
    pipeline_classes = ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline")
    unsupported_pipelines = {
        "LTX2DFRPipeline": "it calls the transformer once per tile in a step, on latents of another size each"
    }
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "audio_hidden_states"),
            returns=("hidden_states", "audio_hidden_states"),
            cross_attention="attn2",
            token_inputs=("video_rotary_emb", "ca_video_rotary_emb"),
            partial={Part.MLP: "video"},
        ),
    )
    batched_inputs = (
        "hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states", "timestep",
        "audio_timestep", "sigma", "audio_sigma", "encoder_attention_mask", "audio_encoder_attention_mask",
        "video_coords", "audio_coords",
    )  # fmt: skip
    gates = {**gates_of(table("temb")), Part.CROSS_ATTENTION: _cross_attention_gate}
    probes = {"temb": adaln_temb("time_embed")}
    block_probes = {"modulated": modulated_by(table("temb"))}
    checkpoints = {
        "ltx-2": Checkpoint(
            "Lightricks/LTX-2",
            num_steps=30, guidance_scale=3.0, height=512, width=768, num_frames=121, fps=24, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=3, caption_channels=12, rope_double_precision=False,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 2x3, five latent audio frames, and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 12, 4),
            "audio_hidden_states": noise(batch, 5, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "audio_encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "audio_encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "num_frames": 2,
            "height": 2,
            "width": 3,
            "audio_num_frames": 5,
        }

    def num_frames(self, transformer: nn.Module, arguments: Mapping[str, Any]) -> int:
        """As the pipeline gives it: the latent comes as tokens."""
        return int(arguments["num_frames"])
