"""Cosmos Predict 1, 2 and 2.5 (arXiv:2501.03575, 2511.00062): video tokens, text by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument


def _gate(norm: Any, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    """The third piece of the norm's two linear layers on the time embedding, plus `temb`."""
    pieces = norm.linear_2(norm.linear_1(norm.activation(arguments["embedded_timestep"])))
    if arguments.get("temb") is not None:
        pieces = pieces + arguments["temb"]
    gate = pieces.chunk(3, dim=-1)[2]
    return (gate if gate.ndim == 3 else gate[:, None],)


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    x = arguments["hidden_states"]
    if arguments.get("extra_pos_emb") is not None:
        x = x + arguments["extra_pos_emb"]
    value: Tensor = block.norm1(x, arguments["embedded_timestep"], arguments.get("temb"))[0]
    return value


@ADAPTERS.register("cosmos")
class Cosmos(ModelAdapter):
    """`CosmosTransformer3DModel`: text- and video-to-world, and text-to-image.

    One call per branch, the prompt first, without cache context. Predict 1 asks the sampler twice per step, after both
    calls: for the clean latent, then for the next one.
    """

    transformer_classes = ("CosmosTransformer3DModel",)
    pipeline_classes = (
        "CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline",
    )  # fmt: skip
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            cross_attention="attn2",
            token_inputs=("image_rotary_emb", "extra_pos_emb"),
            partial={Part.MLP: "video"},
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = ("hidden_states", "timestep", "encoder_hidden_states", "attention_mask", "condition_mask")
    frame_axis = 2
    frame_patch = "patch_size"
    gates = {
        Part.ATTENTION: lambda block, arguments: _gate(block.norm1, arguments),
        Part.CROSS_ATTENTION: lambda block, arguments: _gate(block.norm2, arguments),
        Part.MLP: lambda block, arguments: _gate(block.norm3, arguments),
    }
    block_probes = {"temb": argument("embedded_timestep"), "modulated": _modulated}
    checkpoints = {
        "cosmos1-text2world-7b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos1-text2world-14b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-14B-Text2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos1-video2world-7b": Checkpoint(
            "nvidia/Cosmos-1.0-Diffusion-7B-Video2World",
            num_steps=36, guidance_scale=7.0, height=704, width=1280, num_frames=121, fps=30, dtype="bfloat16",
        ),
        "cosmos2-video2world-2b": Checkpoint(
            "nvidia/Cosmos-Predict2-2B-Video2World",
            num_steps=35, guidance_scale=7.0, height=704, width=1280, num_frames=93, fps=16, dtype="bfloat16",
        ),
        "cosmos2-video2world-14b": Checkpoint(
            "nvidia/Cosmos-Predict2-14B-Video2World",
            num_steps=35, guidance_scale=7.0, height=704, width=1280, num_frames=93, fps=16, dtype="bfloat16",
        ),
        "cosmos2-text2image-2b": Checkpoint(
            "nvidia/Cosmos-Predict2-2B-Text2Image",
            num_steps=35, guidance_scale=7.0, height=768, width=1360, dtype="bfloat16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3, mlp_ratio=2,
        text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 8, 8), concat_padding_mask=False,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Two latent frames of 4x4 and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {"hidden_states": noise(batch, 4, 2, 4, 4), "encoder_hidden_states": noise(batch, 5, 12)}
