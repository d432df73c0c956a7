"""Open-Sora 1.2 (arXiv:2412.20404): spatial and temporal blocks in turns, text by cross-attention in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part


def _temb(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The embeddings of timestep and frame rate added, [B, D]. The blocks get a projection only."""
    dtype = transformer.x_embedder.proj.weight.dtype
    temb: Tensor = transformer.t_embedder(arguments["timestep"].to(dtype), dtype)
    rate: Tensor = transformer.fps_embedder(arguments["fps"], dtype)
    return temb + rate.repeat(temb.shape[0] // rate.shape[0], 1)


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """[(B T), S, C], as the spatial attention gets it."""
    modulation: Tensor = arguments["modulation"]
    shift, scale = block.factors(modulation)[:2]
    x = arguments["hidden_states"].unflatten(1, (modulation.shape[1], -1))
    modulated: Tensor = (block.norm1(x) * (1 + scale) + shift).flatten(1, 2)
    return modulated.unflatten(1, (arguments["num_frames"], -1)).flatten(0, 1)


def _attention_map(cross_attention: Any, arguments: Mapping[str, Any]) -> Tensor:
    weights: Tensor = cross_attention.weights(**arguments)
    return weights


@ADAPTERS.register("opensora")
class OpenSora(ModelAdapter):
    """`STDiT3` of `fsframework.models.opensora_1_2`, since diffusers has no Open-Sora.

    All blocks take [B, (T S), C], frames slowest, and fold inside, so `Partial` is for their parts only. The conditional
    half of a guidance batch comes first.
    """

    transformer_classes = ("STDiT3",)
    pipeline_classes = ("OpenSoraPipeline",)
    pipeline_module = "fsframework.models.opensora_1_2"
    blocks = (
        BlockList(
            "spatial_blocks",
            Kind.SPATIAL,
            attention="attn",
            cross_attention="cross_attn",
            mlp="mlp",
            partial={Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
        BlockList(
            "temporal_blocks",
            Kind.TEMPORAL,
            attention="attn",
            cross_attention="cross_attn",
            mlp="mlp",
            token_inputs=("rotary",),
            partial={Part.CROSS_ATTENTION: "video", Part.MLP: "video"},
        ),
    )
    interleaved = True
    frame_axis = 2
    frame_patch = "patch_size"
    probes = {"temb": _temb}
    block_probes = {"modulated": _modulated}
    part_probes = {"attention_map": _attention_map}
    batch_order = ("cond", "uncond")
    latent_input = "x"
    text_inputs = ("y",)
    batched_inputs = ("x", "timestep", "y", "mask", "x_mask", "fps", "height", "width")
    checkpoints = {
        "tiny-opensora": Checkpoint(
            "tiny-opensora", num_steps=30, guidance_scale=4.0, height=32, width=32, num_frames=17
        ),
        "opensora-1.2": Checkpoint(
            "hpcai-tech/OpenSora-STDiT-v3", num_steps=30, guidance_scale=7.0, height=240, width=426, num_frames=51,
            fps=24, dtype="bfloat16", structure={},
        ),
        "opensora-1.2-720p": Checkpoint(
            "hpcai-tech/OpenSora-STDiT-v3", num_steps=30, guidance_scale=7.0, height=720, width=1280, num_frames=51,
            fps=24, dtype="bfloat16", structure={},
        ),
    }  # fmt: skip
    tiny_config = dict(
        in_channels=4, hidden_size=16, depth=3, num_heads=2, mlp_ratio=2.0, caption_channels=12, model_max_length=5
    )

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Four latent frames of 8x8, and five text tokens of which every second sample has three."""
        mask = torch.ones(batch, 5, dtype=torch.int64)
        mask[1::2, 3:] = 0
        size = torch.full((batch,), 64.0)
        return {
            "x": torch.randn(batch, 4, 4, 8, 8, generator=generator),
            "y": torch.randn(batch, 1, 5, 12, generator=generator),
            "mask": mask, "fps": torch.full((batch,), 24.0), "height": size, "width": size,
        }  # fmt: skip

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Latents of 8x8 pixels and 5 frames for 17, and 300 text tokens; no mask, as if every caption were as long."""
        frames, height, width = checkpoint.pixels
        meta: dict[str, Any] = dict(device="meta", dtype=next(transformer.parameters()).dtype)
        one: dict[str, Any] = dict(device="meta", dtype=torch.float32)
        latent_frames = frames // 17 * 5 + -(-(frames % 17) // 4)
        return {
            "x": torch.empty(batch, 4, latent_frames, height // 8, width // 8, **meta),
            "y": torch.empty(batch, 1, 300, 4096, **meta),
            "timestep": torch.empty(batch, **one), "fps": torch.empty(batch, **one),
            "height": torch.empty(batch, **one), "width": torch.empty(batch, **one),
        }  # fmt: skip

    def gate(self, part: Part, block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
        """Self-attention and MLP have a gate from the timestep (per frame where frames are given), the text has none."""
        if part is Part.CROSS_ATTENTION:
            return (None,)
        modulation, num_tokens = arguments["modulation"], arguments["hidden_states"].shape[1]
        if part is Part.MLP:
            return (block.mlp_gate(modulation, num_tokens),)  # type: ignore[operator]
        return (block.attention_gate(modulation, arguments["num_frames"], num_tokens),)  # type: ignore[operator]
