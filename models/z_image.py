"""Z-Image (arXiv:2511.22699): one stream of image and text tokens, after refiners for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter
from fsframework.models._modulation import argument


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    if arguments.get("noise_mask") is not None:
        raise ValueError("ZImage: the probe 'modulated' is not there for models that modulate tokens differently")
    scale = block.adaLN_modulation(arguments["adaln_input"])[:, None].chunk(4, dim=2)[0]
    modulated: Tensor = block.attention_norm1(arguments["x"]) * (1.0 + scale)
    return modulated


@ADAPTERS.register("z-image")
class ZImage(ModelAdapter):
    """`ZImageTransformer2DModel`. Latents, prompts and predictions are lists with one tensor per sample.

    The refiners before the trunk always run. Guidance is one batch, the condition first; Turbo is guidance-free.
    """

    transformer_classes = ("ZImageTransformer2DModel",)
    pipeline_classes = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
    blocks = (
        BlockList("layers", Kind.SINGLE, streams=("x",), returns=("x",), attention="attention", mlp="feed_forward"),
    )
    batch_order = ("cond", "uncond")
    latent_input = "x"
    timestep_input = "t"
    batched_inputs = ("x", "t", "cap_feats")
    text_inputs = ("cap_feats",)
    block_probes = {"temb": argument("adaln_input"), "modulated": _modulated}
    checkpoints = {
        "z-image-turbo": Checkpoint(
            "Tongyi-MAI/Z-Image-Turbo",
            num_steps=9,
            guidance_scale=0.0,
            height=1024,
            width=1024,
            dtype="bfloat16",
            num_branches=1,
        ),
    }
    tiny_config = dict(
        in_channels=4, dim=16, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 2, 2],
        axes_lens=[64, 8, 8],
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """One frame of 8x8 latents and five text tokens for each sample."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "x": [noise(4, 1, 8, 8) for _ in range(batch)],
            "cap_feats": [noise(5, 12) for _ in range(batch)],
        }  # fmt: skip
