"""Qwen-Image (arXiv:2508.02324): joint blocks with a text and an image stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part


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
