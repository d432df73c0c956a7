"""Qwen-Image (arXiv:2508.02324): joint blocks with a text and an image stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument


def _image(block: Any, arguments: Mapping[str, Any], half: int, normed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(`normed` modulated, gate) of the image stream, for attention (half 0) or MLP (half 1).

    Edit models modulate the given image's tokens by timestep 0; `modulate_index` says which those are.
    """
    features = block.img_mod(arguments["temb"]).chunk(2, dim=-1)[half]
    x = features.new_zeros(()) if normed is None else normed
    modulated, gate = block._modulate(x, features, arguments.get("modulate_index"))
    return modulated, gate


def _text_gate(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    temb: Tensor = arguments["temb"]
    features: Tensor = block.txt_mod(temb.chunk(2)[0] if block.zero_cond_t else temb)
    return features[:, None].chunk(6, dim=-1)[2]


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    return _image(block, arguments, 0, block.img_norm1(arguments["hidden_states"]))[0]


@ADAPTERS.register("qwen-image")
class QwenImage(ModelAdapter):
    """`QwenImageTransformer2DModel`: text-to-image, edit, inpaint, layered. The pipelines name each branch.

    Guidance is on where a negative prompt is given (`" "` will do): a call without one runs the condition only.
    """

    transformer_classes = ("QwenImageTransformer2DModel",)
    pipeline_classes = (
        "QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline", "QwenImageEditPipeline",
        "QwenImageEditInpaintPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline",
        "QwenImageControlNetPipeline", "QwenImageControlNetInpaintPipeline",
    )  # fmt: skip
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            attention="attn",
            mlp="img_mlp",
            partial={Part.MLP: "video"},
        ),
    )
    guidance = "sequential"
    batch_order = ("cond", "uncond")
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "timestep", "img_shapes", "guidance",
    )  # fmt: skip
    pipeline_arguments = {"guidance_scale": "true_cfg_scale"}
    gates = {
        Part.ATTENTION: lambda block, arguments: (_image(block, arguments, 0)[1], _text_gate(block, arguments)),
        Part.MLP: lambda block, arguments: (_image(block, arguments, 1)[1],),
    }
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "qwen-image": Checkpoint(
            "Qwen/Qwen-Image", guidance_scale=4.0, height=1328, width=1328, dtype="bfloat16",
            arguments={"negative_prompt": " "},
        ),
    }  # fmt: skip
    tiny_config = dict(
        patch_size=1, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """4x4 packed image tokens and five text tokens, all of them valid."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 16, 4), "encoder_hidden_states": noise(batch, 5, 12),
            "encoder_hidden_states_mask": torch.ones(batch, 5, dtype=torch.bool), "img_shapes": [[(1, 4, 4)]] * batch,
        }  # fmt: skip
