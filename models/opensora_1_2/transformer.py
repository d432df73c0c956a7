"""STDiT3, the transformer of Open-Sora 1.2 (arXiv:2412.20404), with the parameter names of its published checkpoint.

Letters in names: B batch, T frames, H W rows and columns of patches, S = H W, N = T S tokens, L text tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from einops import rearrange, repeat
from torch import Tensor, nn

from fsframework.models.opensora_1_2.block import STDiT3Block
from fsframework.models.opensora_1_2.embeddings import (
    CaptionEmbedder,
    PatchEmbed,
    Rotary,
    ScalarEmbedder,
    spatial_positions,
)
from fsframework.models.opensora_1_2.published import PublishedModel


class FinalLayer(nn.Module):
    """Norm, modulation by the timestep, and the projection of each token to its patch."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_features)

    def forward(
        self, x_BTSC: Tensor, t_BC: Tensor, given_BC: Tensor | None = None, x_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens to patches: [B, T, S, C] to [B, T, S, out_features].

        Args:
            x_BTSC: the tokens.
            t_BC: the timestep's vector.
            given_BC: the vector of timestep 0, for the frames where `x_mask` [B, T] is False.
            x_mask: None: all frames take `t_BC`.
        """
        out = self._modulate(x_BTSC, t_BC)
        if x_mask is not None:
            assert given_BC is not None
            # Given frames are modulated by t first and by 0 after it: so the original does, and was trained.
            out = torch.where(x_mask[:, :, None, None], out, self._modulate(out, given_BC))
        projected: Tensor = self.linear(out)
        return projected

    def _modulate(self, x_BTSC: Tensor, t_BC: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t_BC[:, None])[:, :, None, None].unbind(1)
        out: Tensor = self.norm_final(x_BTSC) * (1 + scale) + shift
        return out


class STDiT3(PublishedModel, ConfigMixin, CacheMixin):  # type: ignore[misc]
    """Spatial and temporal blocks in turns (s0 t0 s1 t1 ...), each with attention to the text.

    Args:
        in_channels: channels of the latent.
        patch_size: frames, rows and columns of a patch.
        hidden_size: C, a multiple of 4 and of `num_heads`.
        depth: number of spatial blocks, and of temporal ones.
        num_heads: of every attention.
        mlp_ratio: inner width of the MLPs over C.
        input_sq_size: side in pixels of the square that positions are scaled to.
        caption_channels: width of the text encoder.
        model_max_length: longest caption in tokens.
        class_dropout_prob: in training, how often a caption is dropped, 0 to 1.
        pred_sigma: predict twice the channels; samplers use the first half.
        qk_norm: norm queries and keys of self-attention.
    """

    published_type = "STDiT3"
    computed_keys = frozenset({"rope.freqs"})
    _supports_gradient_checkpointing = True
    _no_split_modules = ["STDiT3Block"]  # type: ignore[assignment]
    _repeated_blocks = ["STDiT3Block"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        input_sq_size: int = 512,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(
                f"STDiT3: hidden_size={hidden_size} must be a multiple of num_heads={num_heads} and of 4 (rows and "
                f"columns have a sine and a cosine each)"
            )
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        self.out_channels = in_channels * 2 if pred_sigma else in_channels
        self.input_sq_size = input_sq_size
        self.gradient_checkpointing = False
        self.rope = Rotary(hidden_size // num_heads)
        self.x_embedder = PatchEmbed(self.patch_size, in_channels, hidden_size)
        self.t_embedder = ScalarEmbedder(hidden_size)
        self.fps_embedder = ScalarEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, class_dropout_prob, model_max_length)
        sizes = (hidden_size, num_heads, mlp_ratio)
        self.spatial_blocks = nn.ModuleList([STDiT3Block(*sizes, "spatial", qk_norm) for _ in range(depth)])
        self.temporal_blocks = nn.ModuleList([STDiT3Block(*sizes, "temporal", qk_norm) for _ in range(depth)])
        patch_numel = self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.final_layer = FinalLayer(hidden_size, patch_numel * self.out_channels)
        self._initialize()

    @property
    def max_text_tokens(self) -> int:
        """The longest caption."""
        return self.y_embedder.y_embedding.shape[0]

    @classmethod
    def computed(cls, name: str, model: Any) -> Tensor:
        """The rotary frequencies, which follow from the width of a head."""
        assert name == "rope.freqs"
        return Rotary(2 * len(model.rope.freqs)).freqs.data

    def _initialize(self) -> None:
        """As published: an untrained temporal block passes its input on, and the frame rate has no effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        small: nn.Linear = self.fps_embedder.mlp[0]  # type: ignore[assignment]
        nn.init.normal_(small.weight, std=0.02)
        without_effect = [self.fps_embedder.mlp[2]]
        for block in self.temporal_blocks:
            without_effect += [block.attn.proj, block.cross_attn.proj, block.mlp.fc2]  # type: ignore[union-attr, list-item]
        for linear in without_effect:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        *,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """The predicted velocity (data minus noise) in the first half of the channels: float32 [B, 2 C_in, T, H, W].

        Nothing here waits for the device.

        Args:
            x: latent video [B, C_in, T, H, W].
            timestep: [B], 1000 is noise.
            y: text states [B, 1, L, C_text].
            mask: [B, L], or [b, L] with b a divisor of B, which is repeated (guidance halves share it); 1 where a text
                token is to be seen, at least once in every row. None: all are seen.
            x_mask: [B, T] bool; False where a frame is given and not denoised (timestep 0). None: all are denoised.
            fps: [b] frames per second, repeated like `mask`.
            height: [b] of the video in pixels; the first is taken.
            width: [b] of the video in pixels; the first is taken.
            return_dict: give a `Transformer2DModelOutput` rather than a tuple.
        """
        dtype = self.x_embedder.proj.weight.dtype
        B, (T, H, W) = x.shape[0], x.shape[2:]
        fps_BC = self.fps_embedder(fps, dtype)
        t_BC = self.t_embedder(timestep.to(dtype), dtype) + _repeat(fps_BC, B)
        modulation, given_BC = self.t_block(t_BC)[:, None], None
        if x_mask is not None:
            given_BC = self.t_embedder(torch.zeros_like(timestep, dtype=dtype), dtype) + _repeat(fps_BC, B)
            modulation = torch.where(x_mask[:, :, None], modulation, self.t_block(given_BC)[:, None])
        modulation = rearrange(modulation, "B T (six C) -> B T six C", six=6)

        text = self.y_embedder(y.to(dtype))
        text_mask = None if mask is None else _repeat(mask.bool(), B)

        tokens = self.x_embedder(x.to(dtype))
        frames, rows, columns = tokens.shape[1:4]
        scale = (height[0].float() * width[0].float()).sqrt() / self.input_sq_size
        base = round((rows * columns) ** 0.5)
        place = spatial_positions(rows, columns, tokens.shape[-1], scale.to(x.device), base, dtype)
        tokens = rearrange(tokens + place, "B T H W C -> B (T H W) C")

        rotary = self.rope(frames)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks):
            tokens = self._run(spatial, tokens, text, modulation, frames, text_mask, None)
            tokens = self._run(temporal, tokens, text, modulation, frames, text_mask, rotary)

        tokens = self.final_layer(rearrange(tokens, "B (T S) C -> B T S C", T=frames), t_BC, given_BC, x_mask)
        sample = rearrange(
            tokens, "B T (H W) (t h w C) -> B C (T t) (H h) (W w)",
            H=rows, t=self.patch_size[0], h=self.patch_size[1], w=self.patch_size[2],
        )[:, :, :T, :H, :W].float()  # fmt: skip
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = self._gradient_checkpointing_func(block, *args)  # type: ignore[misc]
        else:
            out = block(*args)
        return out


def _repeat(rows: Tensor, batch: int) -> Tensor:
    """[b, ...] to [B, ...], the whole of it over and over."""
    return rows if rows.shape[0] == batch else repeat(rows, "b ... -> (n b) ...", n=batch // rows.shape[0])
