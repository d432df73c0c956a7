"""PixArt-alpha (arXiv:2310.00426) and PixArt-sigma (arXiv:2403.04692): image blocks, text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._attention import attention_map
from fsframework.models._modulation import adaln_temb, gates_of, modulated_by, table


@ADAPTERS.register("pixart")
class PixArt(ModelAdapter):
    """`PixArtTransformer2DModel`. Guidance is one batch; the pipelines drop the learned variance of the prediction."""

    transformer_classes = ("PixArtTransformer2DModel",)
    pipeline_classes = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    blocks = (
        BlockList(
            "transformer_blocks",
            Kind.JOINT,
            cross_attention="attn2",
            partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    batched_inputs = (
        "hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs", "encoder_attention_mask",
    )  # fmt: skip
    gates = gates_of(table("timestep"))
    probes = {"temb": adaln_temb("adaln_single")}
    block_probes = {"modulated": modulated_by(table("timestep"))}
    part_probes = {"attention_map": attention_map}
    checkpoints = {
        "pixart-alpha": Checkpoint(
            "PixArt-alpha/PixArt-XL-2-1024-MS", num_steps=20, guidance_scale=4.5, height=1024, width=1024, dtype="float16"
        ),
        "pixart-sigma": Checkpoint(
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", num_steps=20, guidance_scale=4.5, height=1024, width=1024,
            dtype="float16",
        ),
    }  # fmt: skip
    tiny_config = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12, num_embeds_ada_norm=1000,
        use_additional_conditions=False,
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents and five text tokens."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states": noise(batch, 5, 12),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }  # fmt: skip
