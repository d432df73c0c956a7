"""What STDiT3 adds to its tokens: timestep and frame rate, place in the frame, place in time, and the caption.

Letters in names: B batch, T frames, H W rows and columns of patches, S = H W, L text tokens, C width, D head width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class ScalarEmbedder(nn.Module):
    """A number per sample (timestep, frames per second) to a vector: 256 cosines and sines, then an MLP.

    Args:
        hidden_size: C.
        num_frequencies: width of the sinusoid, even.
    """

    def __init__(self, hidden_size: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(
            nn.Linear(num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] to [B, C] in `dtype`. Cosines come first; they are computed in float32."""
        half = self.num_frequencies // 2
        order = torch.arange(half, dtype=torch.float32, device=value.device)
        angle = value.float()[:, None] * torch.exp(-math.log(10000) / half * order)
        embedded: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))
        return embedded


class PatchEmbed(nn.Module):
    """Latent video to tokens, one per patch: frames slowest, columns fastest."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """[B, C_in, T, H, W] of any size to [B, T', H', W', C]; sizes are filled up with zeros to whole patches."""
        padding: list[int] = []
        for size, patch in reversed(list(zip(x_BCTHW.shape[2:], self.patch_size))):
            padding += [0, -size % patch]
        return rearrange(self.proj(F.pad(x_BCTHW, padding)), "B C T H W -> B T H W C")


def spatial_positions(
    num_rows: int, num_columns: int, hidden_size: int, scale: Tensor, base: int, dtype: torch.dtype
) -> Tensor:
    """Sinusoidal embedding of the patch grid: [H, W, C] in `dtype`; the column's half comes before the row's.

    Args:
        num_rows: H.
        num_columns: W.
        hidden_size: C.
        scale: 0-d, video size over training size: positions shrink as the video grows.
        base: patches along one side of a square of the same area: positions cover 0..base/scale on either axis.
        dtype: the model's. The original rounds the frequencies to it (the grid stays float32), so it is done here too.
    """
    order = torch.arange(0, hidden_size // 2, 2, dtype=torch.float32, device=scale.device)
    frequencies = (10000 ** (-order / (hidden_size // 2))).to(dtype).float()

    def embed(count: int) -> Tensor:
        grid = torch.arange(count, dtype=torch.float32, device=scale.device) / scale.float() * (base / count)
        angle = grid[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    rows = embed(num_rows)[:, None].expand(-1, num_columns, -1)
    columns = embed(num_columns)[None].expand(num_rows, -1, -1)
    return torch.cat([columns, rows], dim=-1).to(dtype)


class Rotary(nn.Module):
    """Rotary embedding of frames (arXiv:2104.09864): neighbouring channels form the pairs that are turned."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        order = torch.arange(0, head_dim, 2, dtype=torch.float32)
        self.freqs = nn.Parameter(10000 ** (-order / head_dim), requires_grad=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each [T, D]; computed in the dtype of `freqs`, as the original does."""
        frame = torch.arange(num_frames, dtype=self.freqs.dtype, device=self.freqs.device)
        angle = (frame[:, None] * self.freqs).repeat_interleave(2, dim=-1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn [..., T, D] by the tables of `Rotary`."""
    cos, sin = rotary
    pairs = x.unflatten(-1, (-1, 2))
    quarter = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x * cos + quarter * sin).to(x.dtype)


class CaptionMlp(nn.Module):
    """Text width to model width: two linear layers around a tanh GELU."""

    def __init__(self, in_features: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_features, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """[..., C_text] to [..., C]."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(y), approximate="tanh"))
        return projected


class CaptionEmbedder(nn.Module):
    """The caption's projection, and the learned caption that stands for none.

    Args:
        in_channels: width of the text encoder.
        hidden_size: C.
        dropout_prob: in training, how often a sample's caption is replaced by the learned one, 0 to 1.
        num_tokens: the longest caption.
    """

    y_embedding: Tensor

    def __init__(self, in_channels: int, hidden_size: int, dropout_prob: float, num_tokens: int) -> None:
        super().__init__()
        self.y_proj = CaptionMlp(in_channels, hidden_size)
        self.register_buffer("y_embedding", torch.randn(num_tokens, in_channels) / in_channels**0.5)
        self.dropout_prob = dropout_prob

    def null_caption(self, batch: int, num_tokens: int) -> Tensor:
        """The unconditional caption, cut to `num_tokens`: [B, 1, L, C_text], before the projection."""
        return self.y_embedding[None, None, :num_tokens].expand(batch, -1, -1, -1)

    def forward(self, y: Tensor) -> Tensor:
        """[B, 1, L, C_text] to [B, L, C]."""
        if self.training and self.dropout_prob > 0:
            dropped = torch.rand(y.shape[0], device=y.device) < self.dropout_prob
            y = torch.where(dropped[:, None, None, None], self.null_caption(y.shape[0], y.shape[2]).to(y.dtype), y)
        projected: Tensor = self.y_proj(y)
        return projected.squeeze(1)
