from pathlib import Path

import numpy as np
import pytest
import torch

from fsframework.data import bouncing_digits as digits
from fsframework.train import autoencoder as ae
from fsframework.train.cogvideox_autoencoder import fold_quantization
from fsframework.train.config import TinyConfig, load_config
from fsframework.train.diffusion import DenoiserStage, DenoiserStageConfig, MonitorConfig, partial_captions
from fsframework.train.export import export_pipeline, wilson_interval
from fsframework.train.families import FAMILIES
from fsframework.train.family import Denoiser, velocity_pair
from fsframework.train.muon import MuonWithAdamW, orthogonalize
from fsframework.train.stage import MetricsFile, learning_rate_factor, step_seed
from fsframework.train.tiny import build_denoiser, fit, newest_denoiser

SMALL = {
    "latte": {"num_layers": 2, "num_heads": 1, "temporal_starts_as_identity": False},
    "cogvideox": {"num_layers": 2, "num_heads": 1, "default_length_share": 0.5},
    "opensora": {"depth": 2, "num_heads": 1},
}
SMALLEST_CLIP = {"latte": 1, "cogvideox": 2, "opensora": 1}
HEADS = {"latte": "proj_out", "cogvideox": "proj_out", "opensora": "final_layer.linear"}


def small_config(directory: Path, family: str = "latte") -> TinyConfig:
    return TinyConfig(
        output_dir=str(directory), wandb=False, checkpoint_minutes=0.0, family=family, model=dict(SMALL[family])
    )


def small_denoiser(directory: Path, latents: torch.Tensor, family: str) -> Denoiser:
    """Random weights, and a head that is not zero: something to see and a gradient for everything."""
    denoiser = build_denoiser(small_config(directory, family))
    denoiser.prepare(latents)
    torch.nn.init.xavier_uniform_(denoiser.transformer.get_submodule(HEADS[family]).weight)
    return denoiser


def small_stage(directory: Path, latents: torch.Tensor, family: str = "latte", **changes) -> DenoiserStage:
    directory.mkdir(exist_ok=True)
    settings = {"name": "video", "num_frames": FAMILIES[family].num_frames, "batch_clips": 2, "num_steps": 4}
    never = {"evaluate_every": 1000, "sample_every": 1000, "warmup_steps": 1, "log_every": 1}
    denoiser = build_denoiser(small_config(directory, family))
    denoiser.prepare(latents)
    stage = DenoiserStage(
        denoiser,
        DenoiserStageConfig(**{**settings, **never, **changes}),
        MonitorConfig(),
        latents_NYXCHW=latents,
        autoencoder=None,
        seed=0,
        metrics=MetricsFile(directory / "metrics.jsonl"),
    )
    stage.adherence = dict  # nothing to see after four steps
    return stage


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on a busy machine wait for each other in every operation; these models are too small for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    images = len(digits.digit_images("train").images_NHW)
    return torch.randn(1, 10, 10, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half().expand(images, *[-1] * 5)


@pytest.mark.parametrize(
    ("family", "optimizer"), [("latte", "muon"), ("latte", "adamw"), ("cogvideox", "muon"), ("opensora", "muon")]
)
def test_killed_run_continues_bit_for_bit(tmp_path, latents, family, optimizer):
    whole = small_stage(tmp_path / "whole", latents, family, optimizer=optimizer)
    fit(whole, small_config(tmp_path / "whole"), tmp_path / "whole")

    killed = small_stage(tmp_path / "killed", latents, family, optimizer=optimizer)
    healthy_loss = killed.loss

    def loss_until_power_cut(step: int) -> torch.Tensor:
        if step == 3:
            raise KeyError("power cut")
        return healthy_loss(step)

    killed.loss = loss_until_power_cut
    with pytest.raises(KeyError, match="power cut"):
        fit(killed, small_config(tmp_path / "killed"), tmp_path / "killed")
    torch.manual_seed(1234)  # the global random state is not part of a run
    resumed = small_stage(tmp_path / "killed", latents, family, optimizer=optimizer)
    fit(resumed, small_config(tmp_path / "killed"), tmp_path / "killed")

    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    losses = [[row["loss"] for row in stage.metrics.rows() if "loss" in row] for stage in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_single_images_leave_the_temporal_blocks_alone_and_temporal_training_all_else(tmp_path, latents):
    def changed(**changes) -> set[str]:
        stage = small_stage(tmp_path, latents, **changes)
        before = {name: p.clone() for name, p in stage.networks.transformer.named_parameters()}
        optimizer = stage.optimizer()
        for step in range(2):  # the zero head passes no gradient back in the first step
            stage.loss(step).backward()
            optimizer.step()
            optimizer.zero_grad()
        now = dict(stage.networks.transformer.named_parameters())
        return {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}

    assert "temporal_transformer_blocks" not in changed(num_frames=1)
    assert changed(num_frames=1) >= {"transformer_blocks", "pos_embed", "caption_projection"}
    # The head starts at zero, so with everything else frozen no gradient reaches the temporal blocks yet.
    assert changed(trainable="temporal") <= {"temporal_transformer_blocks"}


def test_velocity_is_noise_at_no_noise_and_minus_the_clean_latent_at_the_last_step(tmp_path):
    alphas = build_denoiser(small_config(tmp_path)).scheduler().alphas_cumprod
    clean, noise = torch.full((2, 4, 1, 8, 8), 2.0), torch.full((2, 4, 1, 8, 8), -1.0)
    noisy, velocity = velocity_pair(clean, noise, torch.tensor([0, 999]), alphas)
    assert noisy[0].mean() == pytest.approx(2.0, abs=0.05)
    assert velocity[0].mean() == pytest.approx(-1.0, abs=0.05)
    assert noisy[1].mean() == pytest.approx(-1.0, abs=1e-3)  # zero terminal SNR: nothing of the clip is left
    assert velocity[1].mean() == pytest.approx(-2.0, abs=1e-3)


def test_latents_of_a_batch_are_those_of_the_frames_the_captions_tell(tmp_path):
    images = len(digits.digit_images("train").images_NHW)
    table = torch.zeros(images, 10, 10, 4, 8, 8, dtype=torch.half)
    table[:, :, :, 0] = torch.arange(10.0)[None, :, None, None, None]  # channel 0 tells the row
    table[:, :, :, 1] = torch.arange(10.0)[None, None, :, None, None]  # channel 1 tells the column
    clean, prompts = small_stage(tmp_path, table, batch_clips=16, caption_dropout=0.0).batch(0)
    assert clean.shape == (16, 4, 16, 8, 8)
    for clip, prompt in zip(clean, prompts):
        rows, columns = clip[0, :, 0, 0], clip[1, :, 0, 0]
        moving, still = (rows, columns) if "up and down" in prompt else (columns, rows)
        assert set(moving.diff().abs().tolist()) == {1.0}
        assert set(still.diff().tolist()) == {0.0}


def test_partial_captions_lack_the_digit_or_the_motion_and_nothing_else():
    whole = [digits.caption(6, "up and down")] * 1000
    changed = partial_captions(whole, np.random.default_rng(0), 0.4)
    counts = {text: changed.count(text) for text in set(changed)}
    assert set(counts) == {whole[0], "digit 6 is moving", "digit is moving up and down"}
    assert counts["digit 6 is moving"] == pytest.approx(200, abs=40)
    assert counts[whole[0]] == pytest.approx(600, abs=50)


def test_steps_on_images_take_their_share(tmp_path, latents):
    stage = small_stage(tmp_path, latents, image_share=0.5, image_frames=1, image_clips=3)
    shapes = [tuple(stage.batch(step)[0].shape[:3]) for step in range(40)]
    assert set(shapes) == {(2, 4, 16), (3, 4, 1)}
    assert 10 <= shapes.count((3, 4, 1)) <= 30


def test_step_seeds_differ_between_steps_and_stages():
    seeds = {step_seed(0, stage, step) for stage in ("images", "video") for step in range(1000)}
    assert len(seeds) == 2000


def test_learning_rate_warms_up_holds_and_decays_to_zero():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in (0, 4, 9, 50, 60, 80, 100)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_muon_update_is_nearly_orthogonal_and_of_the_promised_size():
    matrices = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    weight.grad = matrices[0]
    MuonWithAdamW([weight], [], lr=0.1, adamw_lr=0.0).step()
    # 0.1 * 0.2 * sqrt(32) times a semi-orthogonal 16 x 32 matrix, whose root mean square is 1 / sqrt(32).
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.15)


def test_normalised_autoencoder_decodes_as_before_and_its_latents_have_unit_deviation():
    torch.manual_seed(0)
    autoencoder = ae.build_autoencoder(ae.AutoencoderConfig(block_channels=[8, 8, 8]))
    frames = ae.random_frames(np.random.default_rng(0), 64)
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(frames).latent_dist.mode()).sample
        ae.normalize_latents(autoencoder, frames)
        latents = autoencoder.encode(frames).latent_dist.mode()
        after = autoencoder.decode(latents).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=1e-3)
    assert torch.allclose(before, after, atol=1e-3)


def test_unknown_key_in_a_training_config_is_an_error(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("stages:\n  - name: images\n    batch: 64\n")
    with pytest.raises(Exception, match="batch"):
        load_config(str(path), [])
    assert load_config("experiments/tiny_models/latte.yaml", ["seed=3"]).seed == 3


def test_wilson_interval_of_all_right_does_not_claim_certainty():
    low, high = wilson_interval(80, 80)
    assert low == pytest.approx(0.954, abs=0.001)  # n / (n + z^2) = 80 / 83.84
    assert high == pytest.approx(1.0)
    assert wilson_interval(5, 10) == pytest.approx((0.237, 0.763), abs=0.001)


@pytest.mark.parametrize("family", SMALL)
def test_stage_trains_the_parameters_of_its_frames(tmp_path, latents, family):
    for num_frames in (SMALLEST_CLIP[family], FAMILIES[family].num_frames):
        stage = small_stage(tmp_path, latents, family, num_frames=num_frames, caption_dropout=0.5, batch_clips=8)
        torch.nn.init.xavier_uniform_(stage.networks.transformer.get_submodule(HEADS[family]).weight)
        stage.loss(0).backward()
        idle = {name for name, p in stage.networks.named_parameters() if p.requires_grad and p.grad is None}
        assert idle <= ({n for n in idle if ".temporal_transformer_blocks." in n} if num_frames == 1 else set())


@pytest.mark.parametrize("family", SMALL)
def test_exported_folder_gives_the_clip_of_the_trained_weights_in_half_precision(tmp_path, latents, family):
    from fsframework.models.loading import load_model

    denoiser = small_denoiser(tmp_path, latents, family)
    autoencoder = ae.build_autoencoder(ae.AutoencoderConfig())
    fold_quantization(autoencoder)
    export_pipeline(denoiser, autoencoder, tmp_path / "pipeline")
    assert denoiser.transformer.dtype == torch.float32  # exporting does not touch the trained model

    pipeline = load_model(str(tmp_path / "pipeline")).pipe
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0}
    prompt = "digit 6 is moving up and down"
    generator = torch.Generator().manual_seed(5)
    loaded = pipeline(prompt, generator=generator, output_type="np", **settings, **denoiser.sampling).frames[0]
    trained = denoiser.generate(
        autoencoder, [prompt], [5], num_steps=2, guidance_scale=4.0, num_frames=denoiser.num_frames
    )[0].numpy()
    # The training's own text path and the pipeline's agree: what is left is the rounding of the weights to float16.
    assert np.abs(loaded - trained).max() < 0.02
    assert trained.std() > 0.01


def test_export_only_without_weights_says_so(tmp_path):
    config = small_config(tmp_path)
    config.stages = [DenoiserStageConfig(name="images")]
    with pytest.raises(ValueError, match=r"no weights of the stages \['images'\]"):
        newest_denoiser(config, tmp_path)
