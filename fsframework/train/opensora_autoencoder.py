"""A linear code over time for Open-Sora: four frames of latents become one, by principal components.

`OpenSoraVAE` has a temporal autoencoder between the latents of single frames and those of the model. A learned one costs
more to train than the model itself at this size, and four frames of a moving digit are nearly linear: so its weights are
set here, in closed form, from the latents of the training clips.

A code is the last of its four frames as it is, and the leading components of what the last does not say about the other
three. That keeps the first frame of a video exact: before it there are zeros, which no principal component expects.

Shape suffixes: B clips, C channels of a frame's latent, K of the code, T frames, F codes, H and W, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES = 4
"""Frames in a code."""
_LARGE = 100.0
"""Constant channels of this size make a group norm's variance constant (to 1e-3), so that it does nothing."""


@dataclass(frozen=True)
class TemporalCode:
    """`encode` [K, 4 C] from four frames, oldest first, and `decode` [4 C, K] back."""

    encode: Tensor
    decode: Tensor

    def codes(self, frames_BCTHW: Tensor) -> Tensor:
        """[B, K, F, H, W] of a clip with zeros before its first frame, F = ceil(T / 4)."""
        front = -frames_BCTHW.shape[2] % FRAMES
        stacks_BFSCHW = F.pad(frames_BCTHW, (0, 0, 0, 0, front, 0)).transpose(1, 2).unflatten(1, (-1, FRAMES))
        return torch.einsum("kn,bfnhw->bkfhw", self.encode, stacks_BFSCHW.flatten(2, 3))


def fit_temporal_code(frames_BCTHW: Tensor, num_channels: int) -> TemporalCode:
    """The code with K = `num_channels` that loses least of these clips, T a multiple of 4.

    The last frame's channels keep their scale; a component of deviation s gets the deviation sqrt(s / mean s), between
    leaving the scales as they are and making all components equal.
    """
    stacks_NSC = frames_BCTHW.transpose(1, 2).unflatten(1, (-1, FRAMES)).movedim(3, -1).flatten(3, 4)
    stacks_NSC = stacks_NSC.movedim(2, 3).flatten(0, 2).double()
    last_NC, others_N3C = stacks_NSC[:, -1], stacks_NSC[:, :-1].flatten(1)
    channels = last_NC.shape[1]
    if not channels < num_channels <= FRAMES * channels:
        raise ValueError(
            f"a code of four frames of {channels} channels has more than {channels} and at most {FRAMES * channels} "
            f"channels; latent_channels is {num_channels}."
        )
    predict = torch.linalg.lstsq(last_NC, others_N3C).solution.T
    rest_N3C = others_N3C - last_NC @ predict.T
    directions = torch.linalg.svd(rest_N3C.T @ rest_N3C).U[:, : num_channels - channels].T
    directions = directions * directions.sum(1).sign()[:, None]  # one of the two signs, always the same
    deviation = (rest_N3C @ directions.T).std(0)
    scale = (deviation * deviation.mean()).sqrt()[:, None]
    own = torch.eye(channels, dtype=torch.double)
    top = torch.cat([torch.zeros(channels, others_N3C.shape[1]).double(), own], dim=1)
    bottom = torch.cat([directions, -directions @ predict], dim=1) / scale
    decode = torch.cat(
        [
            torch.cat([predict, (directions * scale).T], dim=1),
            torch.cat([own, torch.zeros(channels, num_channels - channels).double()], dim=1),
        ]
    )
    return TemporalCode(torch.cat([top, bottom]).float(), decode.float())


@torch.no_grad()
def to_video_autoencoder(autoencoder: Any, code: TemporalCode) -> Any:
    """An `OpenSoraVAE` that does to each frame what the `AutoencoderKL` does, and to four frames what `code` says."""
    from fsframework.models.opensora_1_2 import OpenSoraVAE

    channels, config = len(code.encode), autoencoder.config
    width = 2 * FRAMES * config.latent_channels + 2  # decoder: four frames, each channel with both signs, two constants
    video: Any = OpenSoraVAE(
        micro_frame_size=17,
        spatial_batch_size=17,
        latent_shift=[0.0] * channels,
        latent_scale=[1.0] * channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        spatial_norm_groups=config.norm_num_groups,
        filters=width,
        channel_multipliers=(1, 1, 1),
        temporal_downsample=(True, True),
        num_res_blocks=0,
        num_groups=1,
    )
    _set_spatial(video.spatial_vae.module, autoencoder)
    for parameter in video.temporal_vae.parameters():
        parameter.zero_()
    _set_encoder(video.temporal_vae, code)
    _set_decoder(video.temporal_vae, code)
    return video.eval()


def _set_spatial(target: Any, autoencoder: Any) -> None:
    """The autoencoder of frames, its latent filled up with channels that nothing reads."""
    channels, wide = autoencoder.config.latent_channels, target.config.latent_channels
    source = autoencoder.state_dict()
    for name, value in target.state_dict().items():
        if ".attentions." in name:  # the original has none: add nothing
            value.fill_(0.0)
        elif name in source and source[name].shape == value.shape:
            value.copy_(source[name])
        else:
            value.fill_(0.0)
    quant, post_quant = autoencoder.quant_conv, autoencoder.post_quant_conv
    matrix = quant.weight[:, :, 0, 0]
    weight = torch.einsum("on,ncyx->ocyx", matrix, autoencoder.encoder.conv_out.weight)
    bias = matrix @ autoencoder.encoder.conv_out.bias + quant.bias
    for half in range(2):  # mean, logarithm of the variance
        own, place = slice(half * channels, (half + 1) * channels), slice(half * wide, half * wide + channels)
        target.encoder.conv_out.weight[place] = weight[own]
        target.encoder.conv_out.bias[place] = bias[own]
    target.encoder.conv_out.bias[wide + channels :] = -30.0
    target.quant_conv.weight.copy_(torch.eye(2 * wide)[:, :, None, None])
    target.post_quant_conv.weight[:channels, :channels] = post_quant.weight
    target.post_quant_conv.bias[:channels] = post_quant.bias
    target.decoder.conv_in.weight[:, :channels] = autoencoder.decoder.conv_in.weight


def _centre(conv: Any, tap: int) -> Tensor:
    """The [out, in] matrix of one tap in time at the kernel's centre; tap -1 is the present frame."""
    middle = conv.conv.kernel_size[1] // 2
    matrix: Tensor = conv.conv.weight[:, :, tap, middle, middle]
    return matrix


def _both_signs(matrix: Tensor) -> Tensor:
    return torch.cat([matrix, -matrix])


def _set_linear_end(norm: nn.GroupNorm, before: Any, after: Any, num_values: int, scale: float) -> None:
    """Make norm, SiLU and `after` give `scale` times the `num_values` that come with both signs out of `before`.

    SiLU(x) - SiLU(-x) = x; and with constant channels of +-100 the norm is a division by a known number.
    """
    width = norm.num_channels
    before.conv.bias[width - 2], before.conv.bias[width - 1] = _LARGE, -_LARGE
    norm.weight[: 2 * num_values] = _LARGE * (2 / width) ** 0.5
    _centre(after, -1)[:num_values, :num_values] = scale * torch.eye(num_values)
    _centre(after, -1)[:num_values, num_values : 2 * num_values] = -scale * torch.eye(num_values)


def _set_encoder(vae: Any, code: TemporalCode) -> None:
    from fsframework.models.opensora_1_2.vae import SPATIAL_FACTOR

    encoder, (num_codes, stacked) = vae.encoder, code.encode.shape
    channels = stacked // FRAMES
    _centre(encoder.conv_in, -1)[:channels, :channels] = torch.eye(channels) / SPATIAL_FACTOR
    first, second = encoder.conv_blocks
    for tap, place in ((-2, 0), (-1, channels)):  # two frames side by side
        _centre(first, tap)[place : place + channels, :channels] = torch.eye(channels)
    for tap, half in ((-2, slice(0, stacked // 2)), (-1, slice(stacked // 2, stacked))):  # two pairs to a code
        _centre(second, tap)[: 2 * num_codes, : stacked // 2] = _both_signs(code.encode[:, half])
    _set_linear_end(encoder.norm1, second, encoder.conv2, num_codes, 1.0)
    encoder.conv2.conv.bias[num_codes:] = -30.0  # next to no noise
    vae.quant_conv.conv.weight.copy_(torch.eye(2 * num_codes)[:, :, None, None, None])


def _set_decoder(vae: Any, code: TemporalCode) -> None:
    from fsframework.models.opensora_1_2.vae import SPATIAL_FACTOR

    decoder, (stacked, num_codes) = vae.decoder, code.decode.shape
    channels = stacked // FRAMES
    vae.post_quant_conv.conv.weight.copy_(torch.eye(num_codes)[:, :, None, None, None])
    _centre(decoder.conv1, -1)[:stacked, :num_codes] = code.decode
    to_frames, to_pairs = decoder.conv_blocks  # the last level's doubling comes first
    for later in range(2):  # output channel 2 c + later is channel c of the pair's frame `later`
        half = stacked // 2
        _centre(to_pairs, -1)[later : 2 * half : 2, later * half : (later + 1) * half] = torch.eye(half)
        signs = torch.zeros(2 * channels, half)
        signs[:, later * channels : (later + 1) * channels] = _both_signs(torch.eye(channels))
        _centre(to_frames, -1)[later : 4 * channels : 2, :half] = signs
    bias = to_frames.conv.bias.view(-1, 2)
    bias[-2], bias[-1] = _LARGE, -_LARGE
    width = decoder.norm1.num_channels
    decoder.norm1.weight[: 2 * channels] = _LARGE * (2 / width) ** 0.5
    for place, sign in ((0, 1.0), (channels, -1.0)):
        _centre(decoder.conv_out, -1)[:channels, place : place + channels] = sign * SPATIAL_FACTOR * torch.eye(channels)
