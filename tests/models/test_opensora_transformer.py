"""STDiT3 against recordings of the original, and what it promises beyond them."""

import logging

import pytest
import torch
from oracles import load_oracle

from fsframework.models.opensora_1_2 import STDiT3
from fsframework.run.bench_counts import host_reads

CASES = [
    "cfg_mask_repeated", "x_mask_all_true", "x_mask_mixed", "pad_odd_hw", "one_frame", "mask_none", "unequal_text_lengths",
]  # fmt: skip


def tiny(seed=0, **changes):
    """Two pairs of blocks, every parameter random."""
    sizes = dict(hidden_size=32, depth=2, num_heads=2, caption_channels=12, model_max_length=10)
    model = STDiT3(**{**sizes, **changes}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "rope.freqs":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def inputs(batch=2, frames=3, tokens=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return dict(
        x=torch.randn(batch, 4, frames, 6, 4, generator=generator),
        timestep=torch.tensor([700.0] * batch),
        y=torch.randn(batch, 1, tokens, 12, generator=generator),
        fps=torch.tensor([24.0]), height=torch.tensor([48.0]), width=torch.tensor([32.0]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    return load_oracle("stdit3_oracle.pt")


@pytest.fixture(scope="module")
def original(oracle):
    logging.disable(logging.WARNING)
    model = STDiT3.from_config(oracle["config"]).eval()
    logging.disable(logging.NOTSET)
    model.load_state_dict(oracle["state_dict"])
    return model


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_forward_of_the_original_is_reproduced(oracle, original, case):
    sample = original(**oracle["inputs"][case]).sample
    expected = oracle["outputs"][case]
    assert sample.dtype == torch.float32
    assert (sample - expected).abs().max() < 1e-5


def test_the_full_size_model_has_the_published_parameters():
    keys = load_oracle("stdit3_full_keys.json")
    with torch.device("meta"):
        model = STDiT3()
    state = model.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == {n: k["shape"] for n, k in keys.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_207_643_972


@torch.no_grad()
def test_prompts_of_unequal_lengths_in_one_call_are_as_each_alone():
    model, given = tiny(), inputs()
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    together = model(**given, mask=mask).sample
    for row, length in enumerate((2, 5)):
        alone = {k: v[row : row + 1] if k in ("x", "timestep", "y") else v for k, v in given.items()}
        alone["y"] = alone["y"][:, :, :length]
        assert torch.allclose(together[row], model(**alone).sample[0], atol=1e-5)
    changed = {**given, "y": given["y"].clone()}
    changed["y"][0, :, 2:] = 100.0  # behind the mask
    assert torch.equal(model(**changed, mask=mask).sample, together)


@torch.no_grad()
def test_given_frames_take_no_notice_of_the_timestep_in_their_own_modulation():
    model, given = tiny(), inputs()
    free = model(**given, x_mask=torch.ones(2, 3, dtype=torch.bool)).sample
    assert torch.allclose(free, model(**given).sample, atol=1e-5)
    held = model(**given, x_mask=torch.tensor([[False, True, True]] * 2)).sample
    assert not torch.allclose(held, free, atol=1e-2)


@torch.no_grad()
def test_bfloat16_weights_give_a_float32_sample_near_the_float32_model():
    model, given = tiny(), inputs()
    wide = model(**given).sample
    narrow = model.to(torch.bfloat16)(**given).sample
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).square().mean().sqrt() < 0.05 * wide.std()


def test_an_untrained_model_passes_gradients_also_through_checkpointing():
    model, given = tiny().train(), inputs()
    model.y_embedder.dropout_prob = 0.0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(**given).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))
    assert len(gradients[0]) == len(list(model.parameters())) - 1  # all but the rotary frequencies


def test_untrained_temporal_blocks_pass_their_input_on():
    model = STDiT3(hidden_size=32, depth=1, num_heads=2, caption_channels=12, model_max_length=10)
    tokens = torch.randn(1, 12, 32)
    block = model.temporal_blocks[0]
    out = block(tokens, torch.randn(1, 5, 32), torch.randn(1, 1, 6, 32), 3, None, model.rope(3))
    assert torch.equal(out, tokens)


def test_in_training_captions_are_dropped_at_the_stated_rate():
    embedder = STDiT3(hidden_size=32, depth=1, num_heads=2, caption_channels=12, model_max_length=10).y_embedder
    captions = torch.zeros(4000, 1, 3, 12)
    null = embedder.y_proj(embedder.null_caption(1, 3))[:, 0]
    torch.manual_seed(0)
    dropped = (embedder.train()(captions) - null).abs().amax(dim=(1, 2)) < 1e-5
    assert 0.08 < dropped.float().mean() < 0.12
    assert not ((embedder.eval()(captions) - null).abs().amax(dim=(1, 2)) < 1e-5).any()


def test_a_saved_model_is_the_same_when_loaded(tmp_path):
    model, given = tiny(), inputs()
    model.save_pretrained(tmp_path)
    loaded = STDiT3.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**given).sample, model(**given).sample)


def test_a_width_that_heads_or_positions_can_not_share_is_an_error():
    with pytest.raises(ValueError, match="hidden_size=30 must be a multiple of num_heads=4"):
        STDiT3(hidden_size=30, num_heads=4)


@torch.no_grad()
def test_a_forward_never_waits_for_the_device():
    model, given = tiny(), inputs()
    mask, x_mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]), torch.tensor([[False, True, True]] * 2)
    with host_reads() as reads:
        model(**given, mask=mask, x_mask=x_mask)
    assert reads == []


@torch.no_grad()
def test_the_token_grid_of_a_480p_video_is_30_by_53_on_15_frames():
    seen = []
    with torch.device("meta"):
        model = STDiT3(depth=1)
        model.spatial_blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        sample = model(
            x=torch.empty(2, 4, 15, 60, 106), timestep=torch.empty(2), y=torch.empty(2, 1, 300, 4096),
            fps=torch.empty(1), height=torch.empty(1), width=torch.empty(1),
        ).sample  # fmt: skip
    assert sample.shape == (2, 8, 15, 60, 106)
    assert seen == [(2, 15 * 30 * 53, 1152)]
