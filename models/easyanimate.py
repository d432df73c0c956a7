"""EasyAnimate V5 (arXiv:2405.18991): joint blocks over text and video tokens, each with its own stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, text_and_video_gates, two_stream_modulated


@ADAPTERS.register("easyanimate")
class EasyAnimate(ModelAdapter):
    """`EasyAnimateTransformer3DModel`. Guidance is one batch, without cache context.

    Blocks from `mmdit_layers` on (the last 18 of the 36 of the 7b) run one `ff` on both streams, in two calls, so it is
    no part that can be reused by itself.
    """

    transformer_classes = ("EasyAnimateTransformer3DModel",)
    pipeline_classes = ("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline")
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            mlp=None,
            token_inputs=("image_rotary_emb",),
        ),
    )
    batched_inputs = (
        "hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_t5", "inpaint_latents",
        "control_latents",
    )  # fmt: skip
    frame_axis = 2
    gates = {Part.ATTENTION: text_and_video_gates("norm1", "temb", video=2, text=5)}
    block_probes = {"temb": argument("temb"), "modulated": two_stream_modulated()}
    checkpoints = {
        "easyanimate-v5.1-7b": Checkpoint(
            "alibaba-pai/EasyAnimateV5.1-7b-zh-diffusers",
            guidance_scale=5.0, height=512, width=512, num_frames=49, fps=8, dtype="bfloat16",
        ),
        "easyanimate-v5.1-12b": Checkpoint(
            "alibaba-pai/EasyAnimateV5.1-12b-zh-diffusers",
            guidance_scale=5.0, height=512, width=512, num_frames=49, fps=8, dtype="bfloat16",
        ),
        "easyanimate-v5.1-12b-control": Checkpoint(
            "alibaba-pai/EasyAnimateV5.1-12b-zh-Control-diffusers",
            guidance_scale=5.0, height=512, width=512, num_frames=49, fps=8, dtype="bfloat16",
        ),
        "easyanimate-v5.1-12b-inpaint": Checkpoint(
            "alibaba-pai/EasyAnimateV5.1-12b-zh-InP-diffusers",
            guidance_scale=5.0, height=512, width=512, num_frames=49, fps=8, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, num_layers=3, mmdit_layers=2,
        sample_width=4, sample_height=4, text_embed_dim=12, time_embed_dim=8,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 2, 4, 4), "encoder_hidden_states": noise(batch, 5, 12)}
