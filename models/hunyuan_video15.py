"""HunyuanVideo 1.5 (arXiv:2511.18870): joint blocks only; the text stream also carries glyph and image tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, zero_norm_gates, zero_norm_modulated


@ADAPTERS.register("hunyuan-video-1.5")
class HunyuanVideo15(ModelAdapter):
    """`HunyuanVideo15Transformer3DModel`: text- and image-to-video.

    The pipeline's guider calls the model once per branch and names the calls; it also holds the guidance scale, which is
    no argument of the pipeline.
    """

    transformer_classes = ("HunyuanVideo15Transformer3DModel",)
    pipeline_classes = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
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
    )
    counted_live = True  # it sorts text tokens by their mask
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    contexts = {"pred_cond": "cond", "pred_uncond": "uncond"}
    batched_inputs = (
        "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2",
        "encoder_attention_mask_2", "image_embeds",
    )  # fmt: skip
    frame_axis = 2
    frame_patch = "patch_size_t"
    gates = zero_norm_gates()
    block_probes = {"temb": argument("temb"), "modulated": zero_norm_modulated()}
    checkpoints = {
        "hunyuan-video-1.5-480p": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
            guidance_scale=6.0, height=480, width=832, num_frames=121, fps=24, dtype="bfloat16",
        ),
        "hunyuan-video-1.5-720p": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v",
            guidance_scale=6.0, height=720, width=1280, num_frames=121, fps=24, dtype="bfloat16",
        ),
        "hunyuan-video-1.5-480p-i2v": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
            guidance_scale=6.0, num_frames=121, fps=24, dtype="bfloat16",
        ),
        "hunyuan-video-1.5-720p-i2v": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_i2v",
            guidance_scale=6.0, num_frames=121, fps=24, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=3, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=12, text_embed_2_dim=8, image_embed_dim=6,
        rope_axes_dim=(2, 2, 4), target_size=16,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 2x2, five text tokens, three glyph tokens and two image tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 2, 2),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "encoder_hidden_states_2": noise(batch, 3, 8),
            "encoder_attention_mask_2": torch.tensor([1.0, 1.0, 0.0]).expand(batch, 3),
            "image_embeds": noise(batch, 2, 6),
        }
