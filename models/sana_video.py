"""Sana-Video (arXiv:2509.24695): linear attention over all video tokens, and a feed-forward that convolves over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import gates_of, modulated_by, table


def _mlp_gate(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """The feed-forward is convolutional and returns [B, F, H, W, C]."""
    gate = table("timestep")(block, arguments)[5]
    sizes = (1, 1, 1) if gate.shape[1] == 1 else (arguments["frames"], arguments["height"], arguments["width"])
    return (gate.unflatten(1, sizes),)


def _temb(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """[B, D], or [B, N, D] per token, with the guidance scale where it is an input. The blocks get a projection only."""
    latent, guidance, timestep = arguments["hidden_states"], arguments.get("guidance"), arguments["timestep"]
    more = {"batch_size": latent.shape[0]} if guidance is None else {"guidance": guidance}
    value: Tensor = transformer.time_embed(timestep.flatten(), hidden_dtype=latent.dtype, **more)[1]
    return value if timestep.ndim < 2 else value.unflatten(0, timestep.shape)


@ADAPTERS.register("sana-video")
class SanaVideo(ModelAdapter):
    """`SanaVideoTransformer3DModel`: text- and image-to-video. Guidance is one batch, without cache context.

    The feed-forward mixes neighbouring tokens, so a block can not be run on some of its tokens only.
    """

    transformer_classes = ("SanaVideoTransformer3DModel",)
    pipeline_classes = ("SanaVideoPipeline", "SanaImageToVideoPipeline")
    blocks = (BlockList("transformer_blocks", Kind.JOINT, cross_attention="attn2", token_inputs=("rotary_emb",)),)
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "timestep", "guidance", "encoder_attention_mask", "attention_mask",
    )  # fmt: skip
    pipeline_arguments = {"num_frames": "frames"}
    frame_axis = 2
    frame_patch = "patch_size"
    gates = {**gates_of(table("timestep")), Part.MLP: _mlp_gate}
    probes = {"temb": _temb}
    block_probes = {"modulated": modulated_by(table("timestep"))}
    checkpoints = {
        "sana-video-2b-480p": Checkpoint(
            "Efficient-Large-Model/SANA-Video_2B_480p_diffusers",
            guidance_scale=6.0, height=480, width=832, num_frames=81, fps=16, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=12,
        mlp_ratio=1.0, sample_size=4, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=8,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens, the last one padding."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 2, 4, 4),
            "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_attention_mask": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(batch, 5),
        }
