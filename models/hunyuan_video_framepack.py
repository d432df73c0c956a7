"""FramePack (arXiv:2504.12626) with HunyuanVideo: sections of a long video, one after the other, with packed history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("hunyuan-video-framepack")
class HunyuanVideoFramepack(ModelAdapter):
    """`HunyuanVideoFramepackTransformer3DModel`.

    The pipeline sets the timesteps anew for every section, so a section counts as a video of its own. The tokens of the
    history come before those of the section. No checkpoints: the published ones are a transformer only, for the pipeline
    to be put together with HunyuanVideo's other parts.
    """

    transformer_classes = ("HunyuanVideoFramepackTransformer3DModel",)
    pipeline_classes = ("HunyuanVideoFramepackPipeline",)
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            attention="attn",
            token_inputs=("freqs_cis", "image_rotary_emb"),
            partial={Part.MLP: "video"},
        ),
        BlockList(
            "single_transformer_blocks",
            Kind.SINGLE,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            attention="attn",
            mlp=None,
            token_inputs=("image_rotary_emb",),
        ),
    )
    counted_live = True  # it drops padded text, so shapes depend on the mask
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = (
        "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections",
        "image_embeds", "guidance", "latents_clean", "latents_history_2x", "latents_history_4x",
    )  # fmt: skip
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4), has_image_proj=True, image_proj_dim=6, has_clean_x_embedder=True,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """One latent frame of 4x4 with seven of history, two image tokens and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 1, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "pooled_projections": noise(batch, 8),
            "image_embeds": noise(batch, 2, 6),
            "indices_latents": torch.tensor([8]),
            "guidance": torch.full((batch,), 6000.0),
            "latents_clean": noise(batch, 4, 1, 4, 4),
            "indices_latents_clean": torch.tensor([7]),
            "latents_history_2x": noise(batch, 4, 2, 4, 4),
            "indices_latents_history_2x": torch.tensor([5, 6]),
            "latents_history_4x": noise(batch, 4, 4, 4, 4),
            "indices_latents_history_4x": torch.tensor([1, 2, 3, 4]),
        }

    def num_frames(self, transformer: nn.Module, arguments: Mapping[str, Any]) -> int:
        """Refused: tokens of the history, at several scales, come before those of the section."""
        raise ValueError(
            "HunyuanVideoFramepack: the video tokens are not whole frames, so they can not be told apart by frame"
        )
