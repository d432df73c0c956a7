"""HiDream-I1 (arXiv:2505.22705): joint, then single-stream blocks; each block sees the text from another Llama layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import ADAPTERS, BlockList, Checkpoint, Kind, ModelAdapter, Part
from fsframework.models._modulation import argument


def _pieces(block: Any, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention and MLP: six for the image, in double blocks also six for the text; [B, 1, C]."""
    features: Tensor = block.block.adaLN_modulation(arguments["temb"])
    return features[:, None].split(arguments["hidden_states"].shape[-1], dim=-1)


def _attention_gates(block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None]:
    return _pieces(block, arguments)[2::6]


def _modulated(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    shift, scale = _pieces(block, arguments)[:2]
    x: Tensor = arguments["hidden_states"]
    modulated: Tensor = block.block.norm1_i(x).to(x.dtype) * (1 + scale) + shift
    return modulated


@ADAPTERS.register("hidream")
class HiDream(ModelAdapter):
    """`HiDreamImageTransformer2DModel`. Before each block the model appends Llama tokens to the text and cuts them after.

    Guidance is one batch. The Llama text encoder is not in the repositories: give `tokenizer_4` and `text_encoder_4`.
    """

    transformer_classes = ("HiDreamImageTransformer2DModel",)
    pipeline_classes = ("HiDreamImagePipeline",)
    blocks = (
        BlockList(
            "double_stream_blocks",
            Kind.JOINT,
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            attention="block.attn1",
            mlp="block.ff_i",
        ),
        BlockList(
            "single_stream_blocks",
            Kind.SINGLE,
            attention="block.attn1",
            mlp="block.ff_i",
            concatenated=("hidden_states", "encoder_hidden_states"),
        ),
    )
    timestep_input = "timesteps"
    batch_axes = {"encoder_hidden_states_llama3": 1}
    batched_inputs = (
        "hidden_states", "timesteps", "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds",
    )  # fmt: skip
    text_inputs = ("encoder_hidden_states_t5", "encoder_hidden_states_llama3")
    gates = {Part.ATTENTION: _attention_gates, Part.MLP: lambda block, arguments: (_pieces(block, arguments)[5],)}
    block_probes = {"temb": argument("temb"), "modulated": _modulated}
    checkpoints = {
        "hidream-full": Checkpoint(
            "HiDream-ai/HiDream-I1-Full", guidance_scale=5.0, height=1024, width=1024, dtype="bfloat16"
        ),
        "hidream-dev": Checkpoint(
            "HiDream-ai/HiDream-I1-Dev",
            num_steps=28,
            guidance_scale=0.0,
            height=1024,
            width=1024,
            dtype="bfloat16",
            num_branches=1,
        ),
    }
    counted_live = True  # it reads the sizes of the images and the tokens of each expert from tensors
    tiny_config = dict(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[12, 10], text_emb_dim=6, num_routed_experts=0, axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8), llama_layers=[0, 1, 1, 2],
    )  # fmt: skip

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """8x8 latents, three T5 tokens, and two Llama tokens from three layers."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "hidden_states": noise(batch, 4, 8, 8), "encoder_hidden_states_t5": noise(batch, 3, 12),
            "encoder_hidden_states_llama3": noise(3, batch, 2, 10), "pooled_embeds": noise(batch, 6),
        }  # fmt: skip
