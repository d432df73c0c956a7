"""The temporal half of Open-Sora 1.2's video VAE: four times fewer frames, each made from itself and earlier ones.

Letters in names: B batch, C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConv3d(nn.Module):
    """A convolution that sees the present frame and those before it; outside the video there are zeros."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, time_stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1), bias=bias)
        side = kernel_size // 2
        self._padding = (side, side, side, side, kernel_size - time_stride, 0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, T, H, W] to [B, C_out, T / stride, H, W]."""
        out: Tensor = self.conv(F.pad(x, self._padding))
        return out


class ResBlock(nn.Module):
    """Twice norm, SiLU and convolution, added to the input; the shortcut is a convolution where channels change."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, bias=False)
        if in_channels != out_channels:
            self.conv3: nn.Module = CausalConv3d(in_channels, out_channels, 1, bias=False)
        else:
            self.conv3 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, T, H, W] to [B, C_out, T, H, W]."""
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        summed: Tensor = self.conv3(x) + out
        return summed


def _res_blocks(in_channels: int, out_channels: int, count: int, num_groups: int) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList([ResBlock(a, b, num_groups) for a, b in pairwise(widths)])


class Encoder(nn.Module):
    """Levels of residual blocks, each but the last followed by halving the frames or by nothing."""

    def __init__(
        self, channels: int, widths: Sequence[int], halve: Sequence[bool], num_res_blocks: int, num_groups: int
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(a, b, num_res_blocks, num_groups) for a, b in zip([widths[0], *widths], widths)]
        )
        self.conv_blocks = nn.ModuleList(
            [CausalConv3d(w, w, 3, time_stride=2) if half else nn.Identity() for w, half in zip(widths, halve)]
        )
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        self.norm1 = nn.GroupNorm(num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 2 C, T / 4, H, W]: what the posterior's mean and variance are made from."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        out: Tensor = self.conv2(F.silu(self.norm1(x)))
        return out


class Doubling(CausalConv3d):
    """Twice the frames: a convolution to twice the channels, which then become neighbouring frames."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, 2 T, H, W]."""
        return rearrange(super().forward(x), "B (C two) T H W -> B C (T two) H W", two=2)


class Decoder(nn.Module):
    """The encoder's levels in reverse."""

    def __init__(
        self, channels: int, widths: Sequence[int], halve: Sequence[bool], num_res_blocks: int, num_groups: int
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[-1], 3)
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(a, b, num_res_blocks, num_groups) for a, b in zip([*widths[1:], widths[-1]], widths)]
        )
        self.conv_blocks = nn.ModuleList([Doubling(w) if half else nn.Identity() for w, half in zip(widths[1:], halve)])
        self.norm1 = nn.GroupNorm(num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, 4 T, H, W]."""
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level > 0:
                x = self.conv_blocks[level - 1](x)
        out: Tensor = self.conv_out(F.silu(self.norm1(x)))
        return out


class TemporalVAE(nn.Module):
    """Frames of spatial latents to fewer, and back.

    Args:
        channels: of the latents on both sides.
        filters: width of the first level.
        channel_multipliers: width of each level over `filters`.
        temporal_downsample: after which levels (all but the last) frames are halved.
        num_res_blocks: in each level, and between the halves.
        num_groups: of the norms.
    """

    def __init__(
        self,
        channels: int = 4,
        filters: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_downsample: Sequence[bool] = (False, True, True),
        num_res_blocks: int = 4,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        if len(temporal_downsample) != len(channel_multipliers) - 1:
            raise ValueError(
                f"temporal_downsample has {len(temporal_downsample)} entries and channel_multipliers "
                f"{len(channel_multipliers)}; there is one less of the former, for the steps between levels"
            )
        self.time_factor = prod(2 if half else 1 for half in temporal_downsample)
        widths = [filters * m for m in channel_multipliers]
        self.encoder = Encoder(channels, widths, temporal_downsample, num_res_blocks, num_groups)
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv3d(channels, channels, 1)
        self.decoder = Decoder(channels, widths, temporal_downsample, num_res_blocks, num_groups)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a video of `num_frames`."""
        return -(-num_frames // self.time_factor)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The posterior over [B, C, ceil(T / 4), H, W]; zeros are put before the first frame to fill up."""
        front = -x.shape[2] % self.time_factor
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, front, 0)))))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """[B, C, T, H, W] of latents to `num_frames` frames; the first frames, which fill up, are dropped."""
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out[:, :, -num_frames % self.time_factor :]
