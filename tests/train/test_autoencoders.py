"""From the autoencoder of frames to those of videos."""

import numpy as np
import pytest
import torch

from fsframework.data import bouncing_digits as digits
from fsframework.train import autoencoder as ae
from fsframework.train import cogvideox_autoencoder, opensora_autoencoder
from fsframework.train.opensora_autoencoder import TemporalCode, fit_temporal_code


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    autoencoder = ae.build_autoencoder(ae.AutoencoderConfig(block_channels=[8, 8, 8]))
    ae.normalize_latents(autoencoder, ae.random_frames(np.random.default_rng(0), 64))
    return autoencoder.requires_grad_(False)


def clips(num_clips: int, num_frames: int) -> torch.Tensor:
    """[B, 3, T, H, W] in [-1, 1]."""
    return ae.to_model_range(digits.sample_clips(3, num_clips, num_frames=num_frames)[0]).transpose(1, 2)


def latents_of(autoencoder, video_BCTHW: torch.Tensor) -> torch.Tensor:
    frames = video_BCTHW.transpose(1, 2)
    return autoencoder.encode(frames.flatten(0, 1)).latent_dist.mode().unflatten(0, frames.shape[:2]).transpose(1, 2)


def test_cogvideox_autoencoder_codes_a_frame_as_the_autoencoder_of_frames_does(autoencoder):
    with pytest.raises(ValueError, match="decoder_steps"):
        cogvideox_autoencoder.to_video_autoencoder(autoencoder)
    frames = ae.random_frames(np.random.default_rng(1), 4)
    before = autoencoder.encode(frames).latent_dist.mode()
    folded = ae.build_autoencoder(ae.AutoencoderConfig(block_channels=[8, 8, 8]))
    folded.load_state_dict(autoencoder.state_dict())
    cogvideox_autoencoder.fold_quantization(folded)
    video = cogvideox_autoencoder.to_video_autoencoder(folded)
    latents = video.encode(frames[:, :, None]).latent_dist.mode()
    assert torch.allclose(latents[:, :, 0], before, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(video.decode(latents).sample[:, :, 0], folded.decode(before).sample, atol=1e-4)


def test_temporal_code_of_all_channels_loses_nothing():
    clip = torch.randn(3, 4, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    code = fit_temporal_code(clip, 16)
    codes = code.codes(clip)
    assert codes.shape == (3, 16, 4, 2, 2)
    stacks = torch.einsum("nk,bkfhw->bnfhw", code.decode, codes).unflatten(1, (4, 4))
    assert torch.allclose(stacks.permute(0, 2, 3, 1, 4, 5).flatten(2, 3), clip, atol=1e-4)


def test_temporal_code_keeps_the_last_of_four_frames_and_so_the_first_of_a_video():
    clip = torch.randn(2, 4, 17, 2, 2, generator=torch.Generator().manual_seed(0))
    code = fit_temporal_code(clip[:, :, 1:], 6)
    codes = code.codes(clip)
    assert codes.shape == (2, 6, 5, 2, 2)
    assert torch.equal(codes[:, :4], clip[:, :, ::4])
    with pytest.raises(ValueError, match="latent_channels is 4"):
        fit_temporal_code(clip[:, :, 1:], 4)


def test_opensora_autoencoder_does_to_frames_and_to_time_what_it_is_made_from(autoencoder):
    video = clips(2, 17)
    latents = latents_of(autoencoder, video)
    code = fit_temporal_code(latents[:, :, 1:], 16)
    opensora = opensora_autoencoder.to_video_autoencoder(autoencoder, code).requires_grad_(False)
    codes = opensora.encode(video, sample=False)
    assert codes.shape == (2, 16, 5, 8, 8)
    # The norms are made inert by constants of 100, to about the squared ratio.
    assert torch.allclose(codes, code.codes(latents), atol=0.02)
    frames = autoencoder.decode(latents.transpose(1, 2).flatten(0, 1)).sample
    assert torch.allclose(opensora.decode(codes, 17).transpose(1, 2).flatten(0, 1), frames, atol=0.02)
    image = opensora.encode(video[:, :, :1], sample=False)
    assert torch.allclose(image, codes[:, :, :1], atol=0.02)


def test_code_without_prediction_is_a_stack():
    code = TemporalCode(torch.eye(8), torch.eye(8))
    assert code.codes(torch.ones(1, 2, 1, 1, 1)).flatten().tolist() == [0] * 6 + [1] * 2
