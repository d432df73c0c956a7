from pathlib import Path

import pytest
import torch

import fsframework as fsf
from fsframework.core.flops import site_flops
from fsframework.data import bouncing_digits as digits
from fsframework.train.config import TinyConfig
from fsframework.train.diffusion import DenoiserStage, DenoiserStageConfig, MonitorConfig
from fsframework.train.shared_blocks import (
    SharedBlocks,
    SharedBlocksConfig,
    SharedBlocksStage,
    chosen_layers,
    layers_of,
)
from fsframework.train.stage import MetricsFile
from fsframework.train.tiny import build_denoiser, fit

SMALL = {
    "latte": {"num_layers": 2, "num_heads": 1, "temporal_starts_as_identity": False},
    "cogvideox": {"num_layers": 2, "num_heads": 1, "default_length_share": 0.0},
    "opensora": {"depth": 2, "num_heads": 1},
}
HEADS = {"latte": "proj_out", "cogvideox": "proj_out", "opensora": "final_layer.linear"}
CLIP_FRAMES = {"latte": 16, "cogvideox": 16, "opensora": 17}
LAST_LAYER = {
    "latte": ("transformer_blocks.1.", "temporal_transformer_blocks.1."),
    "cogvideox": ("transformer_blocks.1.",),
    "opensora": ("spatial_blocks.1.", "temporal_blocks.1."),
}


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    images = len(digits.digit_images("train").images_NHW)
    return torch.randn(1, 10, 10, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half().expand(images, *[-1] * 5)


def make(directory: Path, latents: torch.Tensor, family: str = "opensora", shared: dict | None = None, **changes):
    """A stage of whole clips on random weights with a head that is not zero; ordinary without `shared`."""
    denoiser = build_denoiser(TinyConfig(family=family, model=dict(SMALL[family])))
    denoiser.prepare(latents)
    torch.manual_seed(1)
    torch.nn.init.xavier_uniform_(denoiser.transformer.get_submodule(HEADS[family]).weight)
    settings = {"num_frames": CLIP_FRAMES[family], "batch_clips": 2, "num_steps": 3, "evaluate_every": 99}
    kind, more = (
        (DenoiserStage, {}) if shared is None else (SharedBlocksStage, {"shared": SharedBlocksConfig(**shared)})
    )
    stage = kind(
        denoiser,
        DenoiserStageConfig(**{**settings, "sample_every": 99, "warmup_steps": 1, **changes}),
        MonitorConfig(),
        latents_NYXCHW=latents,
        autoencoder=None,
        seed=0,
        metrics=MetricsFile(directory / "metrics.jsonl"),
        **more,
    )
    stage.adherence = dict  # nothing to see after three steps
    return stage


def gradients(stage) -> dict[str, torch.Tensor]:
    stage.loss(0).backward()
    return {name: p.grad for name, p in stage.networks.transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("share", "which", "layers"),
    [(0.5, "early", [0, 1]), (0.5, "late", [2, 3]), (0.5, "alternate", [1, 3]), (0.25, "alternate", [3]), (0.0, "late", []),
     (1.0, "alternate", [0, 1, 2, 3])],
)  # fmt: skip
def test_layers_that_are_reused(share, which, layers):
    assert chosen_layers(4, share, which) == layers


PAIR = ["spatial.1", "temporal.1"]


@pytest.mark.parametrize(("family", "layer"), [("opensora", PAIR), ("latte", PAIR), ("cogvideox", ["joint.1"])])
def test_a_layer_is_a_spatial_and_a_temporal_block_or_one_joint_block(tmp_path, latents, family, layer):
    session = fsf.reuse(make(tmp_path, latents, family).networks.transformer, SharedBlocks(), timesteps=[0.0, 1.0])
    layers = layers_of(session.sites)
    assert len(layers) == 2
    assert [site.name for site in layers[1]] == layer


@pytest.mark.parametrize("family", list(SMALL))
def test_one_forward_is_ordinary_training_bit_for_bit(tmp_path, latents, family):
    ordinary = gradients(make(tmp_path, latents, family))
    shared = gradients(make(tmp_path, latents, family, {"num_forwards": 1}))
    assert ordinary.keys() == shared.keys()
    for name, gradient in ordinary.items():
        assert torch.equal(gradient, shared[name]), name


def test_two_forwards_at_the_same_timestep_give_the_gradient_of_one_where_nothing_is_reused(tmp_path, latents):
    once = gradients(make(tmp_path, latents))
    twice = gradients(make(tmp_path, latents, shared={"delta": 0.0, "share": 0.0}))
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", list(SMALL))
def test_reused_blocks_learn_from_the_first_forward_alone_and_pass_gradients_on(tmp_path, latents, family):
    """delta 0: both forwards see the same, so the loss is unchanged, and the gradient of a reused block, which only half of
    the loss reaches, is exactly half. The last layer's input does not depend on what is reused, so blocks before it and the
    embedding get gradients through the identity of the second forward: not half of theirs."""
    ordinary, shared = make(tmp_path, latents, family), make(tmp_path, latents, family, {"delta": 0.0, "which": "late"})
    torch.testing.assert_close(shared.loss(0), ordinary.loss(0), rtol=1e-5, atol=0)
    full, half = gradients(ordinary), gradients(shared)
    reused = [name for name in full if name.startswith(LAST_LAYER[family])]
    assert reused
    for name in reused:
        torch.testing.assert_close(half[name], full[name] / 2, rtol=1e-3, atol=1e-6)
    before = [name for name in full if name.startswith(tuple(p.replace(".1.", ".0.") for p in LAST_LAYER[family]))]
    norm = lambda grads, scale: sum(float((grads[n] * scale).norm()) for n in before)
    difference = sum(float((half[n] - full[n] / 2).norm()) for n in before)
    assert difference > 0.1 * norm(full, 0.5)
    # The head is never reused: it learns from both.
    name = f"{HEADS[family]}.weight"
    torch.testing.assert_close(half[name], full[name], rtol=1e-3, atol=1e-6)


def test_the_second_forward_uses_the_first_ones_residual_at_its_own_timestep(tmp_path, latents):
    """Four settings of what is reused and how far apart the timesteps are: four losses."""
    neighbours = make(tmp_path, latents, shared={"share": 0.0, "delta": 200.0}).loss(0)
    shared = make(tmp_path, latents, shared={"share": 0.5, "delta": 200.0}).loss(0)
    everything = make(tmp_path, latents, shared={"share": 1.0, "delta": 200.0}).loss(0)
    same = make(tmp_path, latents, shared={"share": 0.5, "delta": 0.0}).loss(0)
    assert len({float(neighbours), float(shared), float(everything), float(same)}) == 4


@pytest.mark.parametrize("family", list(SMALL))
def test_counted_flops_are_the_sites_that_ran_three_times_over_and_the_data_once(tmp_path, latents, family):
    stage = make(tmp_path, latents, family, {"which": "late"})
    ordinary = make(tmp_path, latents, family)
    calls = []
    forward = ordinary.networks.transformer.forward
    ordinary.networks.transformer.forward = lambda *a, **k: (calls.append((a, k)), forward(*a, **k))[1]
    ordinary.loss(0)
    del ordinary.networks.transformer.forward
    from fsframework.core.flops import to_meta

    bound = fsf.reuse(ordinary.networks.transformer, SharedBlocks(), timesteps=[0.0, 1.0]).bound
    sites = site_flops(bound, *to_meta(calls[0]))
    whole = next(flops for site, flops in sites.items() if site.part == "model")
    reused = sum(sites[site] for site in layers_of([bound.block_site(i) for i in range(len(bound.blocks))])[1])
    once = make(tmp_path, latents, family, {"num_forwards": 1}).flops_per_step()
    # Open-Sora's latents of 17 frames, and 3 of zeros before them, are coded by fours: 5 products of [12, 16] with
    # [16, 8 x 8] for each of two clips. No gradient goes through that, and both forwards share it.
    data = 2 * 2 * 5 * 12 * 16 * 8 * 8 if family == "opensora" else 0
    text = (once - data) / 3 - whole
    assert 0 < text < whole
    assert stage.flops_per_step() == pytest.approx(data + 3 * (2 * (whole + text) - reused), rel=1e-9)
    assert 0.2 * whole < reused < 0.6 * whole


def test_training_killed_in_the_middle_goes_on_bit_for_bit(tmp_path, latents):
    def run(name, killed_at=None):
        """A process of its own, as far as it has no state of the one before; which steps it did, and the weights."""
        (tmp_path / name).mkdir(exist_ok=True)
        stage = make(tmp_path / name, latents, shared={"num_forwards": 3, "share": 0.5, "which": "early"})
        healthy, steps = stage.loss, []

        def loss(step):
            if step == killed_at:
                raise KeyError("power cut")
            steps.append(step)
            return healthy(step)

        stage.loss = loss
        config = TinyConfig(wandb=False, checkpoint_minutes=0.0)
        if killed_at is None:
            fit(stage, config, tmp_path / name)
        else:
            with pytest.raises(KeyError, match="power cut"):
                fit(stage, config, tmp_path / name)
        return steps, torch.cat(
            [p.detach().flatten() for p in (*stage.networks.parameters(), *stage.average.parameters())]
        )

    steps, whole = run("whole")
    assert steps == [0, 1, 2]
    assert run("killed", killed_at=2)[0] == [0, 1]
    torch.manual_seed(1234)  # the global random state is no part of a training
    steps, resumed = run("killed")
    assert steps == [2], "it goes on from the checkpoint"
    assert torch.equal(resumed, whole)
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_forwards": 0}, "num_forwards=0 must be at least 1"),
        ({"delta": -1.0}, "delta=-1.0 must be at least 0"),
        ({"share": 1.5}, "share=1.5 must be 0 to 1"),
        ({"which": "middle"}, "'middle' must be one of early, late, alternate"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SharedBlocksConfig(**options)
