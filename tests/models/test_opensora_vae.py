"""The video VAE of Open-Sora 1.2: its temporal half against recordings, and its chunks."""

import pytest
import torch
from oracles import load_oracle

from fsframework.models.opensora_1_2 import OpenSoraVAE
from fsframework.models.opensora_1_2.temporal_vae import TemporalVAE

SMALL = dict(
    block_out_channels=(8, 8, 8, 8), layers_per_block=1, spatial_norm_groups=4, filters=8, num_res_blocks=1, num_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return OpenSoraVAE(**SMALL).eval()


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 5, 16, 17])
def test_the_original_temporal_vae_is_reproduced(num_frames):
    oracle = load_oracle("vae_temporal_oracle.pt")
    config = oracle["config"]
    names = ("filters", "channel_multipliers", "temporal_downsample", "num_res_blocks", "num_groups")
    model = TemporalVAE(config["in_out_channels"], *(config[name] for name in names)).eval()
    model.load_state_dict(oracle["state_dict"])
    case = oracle["cases"][num_frames] if num_frames in oracle["cases"] else oracle["cases"][str(num_frames)]
    posterior = model.encode(case["x"])
    assert (posterior.mean - case["mean"]).abs().max() < 1e-5
    assert (posterior.logvar - case["logvar"]).abs().max() < 1e-5
    assert (model.decode(case["mean"], num_frames) - case["decoded"]).abs().max() < 1e-5


def test_the_full_size_temporal_vae_has_the_published_parameters():
    keys = load_oracle("vae_full_keys.json")
    with torch.device("meta"):
        model = OpenSoraVAE()
    state = model.state_dict()
    temporal = {
        n.removeprefix("temporal_vae."): list(v.shape) for n, v in state.items() if n.startswith("temporal_vae.")
    }
    assert temporal == keys
    rest = {name.split(".")[0] for name in state} - {"temporal_vae"}
    assert rest == {"spatial_vae", "scale", "shift"}
    assert state["spatial_vae.module.decoder.mid_block.attentions.0.to_q.weight"].shape == (512, 512)


@pytest.mark.parametrize(
    ("num_frames", "latent_frames"),
    [(1, 1), (16, 4), (17, 5), (18, 6), (51, 15), (68, 20), (102, 30), (204, 60), (408, 120)],
)
def test_latent_sizes(vae, num_frames, latent_frames):
    assert vae.latent_size(num_frames, 480, 854) == (latent_frames, 60, 106)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 17, 20])
def test_a_video_comes_back_at_its_own_length(vae, num_frames):
    video = torch.rand(2, 3, num_frames, 16, 24) * 2 - 1
    latent = vae.encode(video, torch.Generator().manual_seed(0))
    assert latent.shape == (2, 4, *vae.latent_size(num_frames, 16, 24))
    assert vae.decode(latent, num_frames).shape == video.shape


@torch.no_grad()
def test_chunks_are_independent_and_frames_see_no_later_ones(vae):
    video = torch.rand(1, 3, 34, 16, 16)
    latent = vae.encode(video, sample=False)
    alone = vae.encode(video[:, :, 17:], sample=False)
    assert torch.allclose(latent[:, :, 5:], alone, atol=1e-5)
    decoded = vae.decode(latent, 34)
    assert torch.allclose(decoded[:, :, 17:], vae.decode(alone, 17), atol=1e-5)


@torch.no_grad()
def test_latents_are_shifted_and_scaled_per_channel_and_the_posterior_is_sampled_from_the_generator(vae):
    video = torch.rand(1, 3, 1, 16, 16)
    frames = vae.spatial_vae.encode(video, False, None)
    by_hand = vae.spatial_vae.module.encode(video[:, :, 0]).latent_dist.mode() * 0.18215
    assert torch.allclose(frames[:, :, 0], by_hand)
    raw = vae.temporal_vae.encode(frames).mode()
    latent = vae.encode(video, sample=False)
    assert torch.allclose(latent[:, 1], (raw[:, 1] - 0.34) / 2.32, atol=1e-6)
    first, second = (vae.encode(video, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, latent)


@torch.no_grad()
def test_pictures_at_a_time_change_the_memory_and_not_the_video(vae):
    latent = torch.randn(1, 4, 5, 2, 2)
    expected = vae.decode(latent, 17)
    vae.spatial_vae.batch_size = 1
    assert torch.allclose(vae.decode(latent, 17), expected, atol=1e-5)
    vae.spatial_vae.batch_size = 4


def test_a_latent_of_another_length_is_an_error(vae):
    with pytest.raises(ValueError, match="a video of 34 frames has 10 latent frames; got 9"):
        vae.decode(torch.zeros(1, 4, 9, 2, 2), 34)
    with pytest.raises(ValueError, match="there is one less of the former"):
        TemporalVAE(temporal_downsample=(True, True))
