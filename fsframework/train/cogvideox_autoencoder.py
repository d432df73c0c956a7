"""From the tiny autoencoder of frames to an `AutoencoderKLCogVideoX` that codes a video frame by frame.

Both classes have the same layers, but CogVideoX's convolutions reach two frames back, its decoder's norms are modulated
by the latent, and it has no 1 x 1 convolutions around the latent. Each has a setting in which it does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def fold_quantization(autoencoder: Any) -> None:
    """Fold the 1 x 1 convolutions of an `AutoencoderKL` into their neighbours, in place, and make them the identity.

    Latents stay as they are. Decoded frames change at the border, where the decoder's first convolution now pads with
    zeros what it padded after the 1 x 1 convolution's bias: train the decoder a little afterwards.
    """
    encoder_out, quant = autoencoder.encoder.conv_out, autoencoder.quant_conv
    encoder_out.weight.copy_(torch.einsum("on,ncyx->ocyx", quant.weight[:, :, 0, 0], encoder_out.weight))
    encoder_out.bias.copy_(quant.weight[:, :, 0, 0] @ encoder_out.bias + quant.bias)
    decoder_in, post_quant = autoencoder.decoder.conv_in, autoencoder.post_quant_conv
    decoder_in.bias += decoder_in.weight.sum((2, 3)) @ post_quant.bias
    decoder_in.weight.copy_(torch.einsum("onyx,nc->ocyx", decoder_in.weight, post_quant.weight[:, :, 0, 0]))
    for conv in (quant, post_quant):
        conv.weight.copy_(torch.eye(len(conv.bias))[:, :, None, None])
        conv.bias.zero_()


def _target_name(name: str) -> str:
    """The place of an `AutoencoderKL` tensor in `AutoencoderKLCogVideoX`; its norms and plain convolutions as they are."""
    name = name.replace("conv_norm_out", "norm_out")
    part, kind = name.rsplit(".", 1)
    last = part.rsplit(".", 1)[-1]
    if last in ("conv_in", "conv_out", "conv1", "conv2"):
        return f"{part}.conv.{kind}"
    if name.startswith("decoder.") and last in ("norm1", "norm2", "norm_out"):
        return f"{part}.norm_layer.{kind}"
    return name


def _fit(value: Tensor, target: Tensor) -> Tensor:
    """A 2D kernel in the last tap of a causal 3D one; everything else unchanged."""
    if value.ndim == target.ndim:
        return value
    fitted = torch.zeros_like(target)
    fitted[:, :, -1] = value
    return fitted


@torch.no_grad()
def to_video_autoencoder(autoencoder: Any) -> Any:
    """A new `AutoencoderKLCogVideoX` without temporal compression that does to each frame what `autoencoder` does.

    Raises ValueError unless the 1 x 1 convolutions are folded (`fold_quantization`). Its norms pool over the frames
    that it decodes at once (two), so a clip differs slightly from its frames decoded one by one.
    """
    from diffusers import AutoencoderKLCogVideoX

    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        identity = torch.eye(len(conv.bias))[:, :, None, None]
        if not (torch.equal(conv.weight.float(), identity) and not conv.bias.any()):
            raise ValueError(
                "AutoencoderKLCogVideoX has no 1 x 1 convolutions around the latent, and this autoencoder's do something. "
                "Set autoencoder.decoder_steps to a few hundred: they are folded and the decoder is trained after it."
            )
    config = autoencoder.config
    levels = len(config.block_out_channels)
    video: Any = AutoencoderKLCogVideoX(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=tuple(config.block_out_channels),
        latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        temporal_compression_ratio=1,
        sample_height=config.sample_size,
        sample_width=config.sample_size,
        scaling_factor=1.0,
        force_upcast=False,
    )
    target = video.state_dict()
    for name, value in target.items():  # modulation by the latent: times one, plus zero
        if ".conv_y." in name or ".conv_b." in name:
            value.fill_(1.0 if name.endswith("conv_y.conv.bias") else 0.0)
    for name, value in autoencoder.state_dict().items():
        if not name.startswith(("quant_conv", "post_quant_conv")):
            place = _target_name(name)
            target[place].copy_(_fit(value, target[place]))
    return video.eval()
