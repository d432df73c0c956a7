"""HunyuanVideo (arXiv:2412.03603): blocks with two streams, then blocks that join the streams inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument, context_gate, joined, norm_factors


def _video_gate(block: nn.Module, arguments: Mapping[str, Any], piece: int) -> Tensor:
    """With `image_condition_type="token_replace"` the first frame, which is given, has a gate of its own."""
    video = arguments["hidden_states"]
    gate = norm_factors(block, "norm1", arguments["temb"], video.shape[-1])[piece]
    given, num_tokens = arguments.get("token_replace_emb"), arguments.get("num_tokens")
    if given is None or num_tokens is None:
        return gate
    of_first = norm_factors(block, "norm1", given, video.shape[-1])[piece]
    return joined(of_first, gate, num_tokens, video.shape[1] - num_tokens)


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    given, num_tokens = arguments.get("token_replace_emb"), arguments.get("num_tokens")
    own: dict[str, Any] = {}
    if given is not None and num_tokens is not None:
        own = {"token_replace_emb": given, "first_frame_num_tokens": num_tokens}
    value: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"], **own)[0]
    return value


@ADAPTERS.register("hunyuan-video")
class HunyuanVideo(ModelAdapter):
    """`HunyuanVideoTransformer3DModel`: text- and image-to-video, and SkyReels V1.

    The guidance scale is an input of the distilled model, so a step is one call; with `true_cfg_scale` (and always with
    SkyReels V1) there is a second one for the negative prompt.
    """

    transformer_classes = ("HunyuanVideoTransformer3DModel",)
    pipeline_classes = (
        "HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline", "HunyuanSkyreelsImageToVideoPipeline",
    )  # fmt: skip
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
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = (
        "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "guidance",
    )  # fmt: skip
    frame_axis = 2
    frame_patch = "patch_size_t"
    gates = {
        Part.ATTENTION: lambda block, arguments: (_video_gate(block, arguments, 2), context_gate(block, arguments)),
        Part.MLP: lambda block, arguments: (_video_gate(block, arguments, 5),),
    }
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "hunyuan-video": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo",
            guidance_scale=6.0, height=720, width=1280, num_frames=129, fps=24, dtype="bfloat16",
            num_branches=1, structure=dict(guidance_embeds=True),
        ),
        "hunyuan-video-i2v": Checkpoint(
            "hunyuanvideo-community/HunyuanVideo-I2V",
            guidance_scale=6.0, height=720, width=1280, num_frames=129, fps=24, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
            "pooled_projections": noise(batch, 8),
            "guidance": torch.full((batch,), 6000.0),
        }

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Latents of 4 frames of 8x8 pixels and 256 text tokens."""
        frames, height, width = checkpoint.pixels
        size = ((frames - 1) // 4 + 1, height // 8, width // 8)
        config: Any = transformer.config
        meta: dict[str, Any] = dict(device="meta", dtype=next(transformer.parameters()).dtype)
        return {
            "hidden_states": torch.empty(batch, config.in_channels, *size, **meta),
            "encoder_hidden_states": torch.empty(batch, 256, config.text_embed_dim, **meta),
            "encoder_attention_mask": torch.empty(batch, 256, **meta),
            "pooled_projections": torch.empty(batch, config.pooled_projection_dim, **meta),
            "guidance": torch.empty(batch, **meta),
            "timestep": torch.empty(batch, dtype=torch.int64, device="meta"),
        }
