"""The rectified-flow sampler: its tables, its steps, and frames that are given."""

import pytest
import torch
from oracles import load_oracle

from fsframework.models.opensora_1_2 import FrameMask, RFlowScheduler, STDiT3

SIZE = dict(height=240, width=426, num_frames=17)


def test_the_times_of_every_size_and_length_are_those_of_the_original():
    tables = load_oracle("rflow_tables.json")
    assert len(tables) == 180
    for name, expected in tables.items():
        num_frames, dtype = name.split()[2:]
        scheduler = RFlowScheduler(size_dtype=dtype)
        scheduler.set_timesteps(30, height=expected["h"], width=expected["w"], num_frames=int(num_frames))
        assert [round(t, 6) for t in scheduler.timesteps.tolist()] == expected["timesteps"], name
        assert [int(t) for t in scheduler.timesteps.bfloat16().tolist()] == expected["int_bf16"], name


@torch.no_grad()
@pytest.mark.parametrize("which", ["plain", "mask_ones", "mask_ref"])
def test_thirty_steps_of_the_original_are_reproduced(which):
    oracle = load_oracle("stdit3_oracle.pt")
    recorded = oracle["rflow"]
    model = STDiT3.from_config(oracle["config"]).eval()
    model.load_state_dict(oracle["state_dict"])
    scheduler = RFlowScheduler()
    scheduler.set_timesteps(30, **SIZE)
    assert torch.equal(scheduler.timesteps, recorded["timesteps"])
    z = recorded["z"]
    null = model.y_embedder.null_caption(1, recorded["y"].shape[2])
    weight = {"plain": None, "mask_ones": torch.ones(1, 5), "mask_ref": recorded["frame_mask_ref"]}[which]
    frames = None if weight is None else FrameMask(weight)
    generator = torch.Generator().manual_seed(recorded["mask_ref_torch_seed"])
    for t in scheduler.timesteps:
        moving = None
        if frames is not None:
            z, moving = frames.begin_step(z, torch.randn(z.shape, generator=generator), t)
        cond, uncond = model(
            x=torch.cat([z, z]), timestep=t.expand(2), y=torch.cat([recorded["y"], null]), mask=recorded["mask"],
            x_mask=None if moving is None else moving.repeat(2, 1),
            **{k: v for k, v in recorded["model_args"].items() if k != "num_frames"},
        ).sample[:, :4].chunk(2)  # fmt: skip
        z = scheduler.step(uncond + recorded["cfg_scale"] * (cond - uncond), t, z, frame_mask=moving).prev_sample
    assert (z - recorded[f"final_{which}"]).abs().max() < 1e-4


def test_a_constant_velocity_arrives_at_noise_plus_velocity():
    scheduler = RFlowScheduler()
    scheduler.set_timesteps(4, **SIZE)
    z, v = torch.full((1, 4, 1, 2, 2), 3.0), torch.full((1, 4, 1, 2, 2), -2.0)
    for t in scheduler.timesteps:
        z = scheduler.step(v, t, z, return_dict=False)[0]
    assert torch.allclose(z, torch.ones_like(z))
    with pytest.raises(ValueError, match="all 4 steps were taken"):
        scheduler.step(v, t, z)


def test_without_the_transform_times_fall_evenly():
    scheduler = RFlowScheduler(use_timestep_transform=False)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]
    scheduler.set_timesteps(timesteps=[900, 300])
    z = torch.zeros(1, 4, 1, 1, 1)
    z = scheduler.step(torch.ones_like(z), scheduler.timesteps[0], z).prev_sample
    assert z.unique().item() == pytest.approx(0.6)


def test_the_first_time_is_pure_noise_also_where_the_transform_rounds_up():
    scheduler = RFlowScheduler()
    scheduler.set_timesteps(4, height=136, width=256, num_frames=1)
    assert scheduler.timesteps[0] == 1000
    sample = torch.zeros(1, 1, 1, 1, 1)
    assert FrameMask(torch.ones(1, 1)).begin_step(sample, sample + 1, scheduler.timesteps[0])[1].tolist() == [[True]]


def test_the_samplers_own_times_may_be_given_back_to_it():
    scheduler = RFlowScheduler()
    scheduler.set_timesteps(4, **SIZE)
    times = scheduler.timesteps
    scheduler.set_timesteps(timesteps=times)
    assert torch.equal(scheduler.timesteps, times)


def test_noise_is_mixed_in_by_time():
    data, noise = torch.full((2, 4, 1, 1, 1), 1.0), torch.full((2, 4, 1, 1, 1), 5.0)
    mixed = RFlowScheduler().add_noise(data, noise, torch.tensor([0.0, 250.0]))
    assert mixed[:, 0].flatten().tolist() == [1.0, 2.0]


def test_frames_begin_when_their_weight_says_and_get_that_much_noise_once():
    sample, noise = torch.zeros(1, 1, 3, 1, 1), torch.ones(1, 1, 3, 1, 1)
    frames = FrameMask(torch.tensor([[1.0, 0.5, 0.0]]))
    z, moving = frames.begin_step(sample, noise, torch.tensor(1000.0))
    assert (z.flatten().tolist(), moving.tolist()) == ([0, 0, 0], [[True, False, False]])
    z, moving = frames.begin_step(sample, noise, torch.tensor(400.0))
    assert moving.tolist() == [[True, True, False]]
    assert z.flatten().tolist() == pytest.approx([0, 0.4, 0])
    z, _ = frames.begin_step(sample, noise, torch.tensor(300.0))
    assert z.flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize("num_frames", [0, 2, 16])
def test_numbers_of_frames_without_times_are_refused(num_frames):
    with pytest.raises(ValueError, match=f"can not make {num_frames} frames: a video is 1 frame or at least 17"):
        RFlowScheduler().set_timesteps(30, height=240, width=426, num_frames=num_frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_inference_steps=4), "needs height, width and num_frames"),
        (dict(num_inference_steps=4, timesteps=[1.0]), "either num_inference_steps or timesteps"),
        (dict(num_inference_steps=0, **SIZE), "must be at least 1"),
        (dict(timesteps=[]), r"timesteps have shape \(0,\); give a list of at least one time"),
        (dict(timesteps=[[900.0, 500.0]]), r"timesteps have shape \(1, 2\)"),
        (dict(timesteps=[2000.0, 500.0]), r"must each be in \(0, 1000\].*found \[2000.0\]"),
        (dict(timesteps=[500.0, 0.0]), r"found \[0.0\]"),
        (dict(timesteps=[float("nan")]), r"found \[nan\]"),
        (dict(timesteps=[900.0, 300.0, 500.0]), "must fall.*300.0 at 1 is followed by 500.0"),
        (dict(timesteps=[500.0, 500.0]), "must fall.*500.0 at 0 is followed by 500.0"),
    ],
)
def test_times_that_can_not_be_laid_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        RFlowScheduler().set_timesteps(**arguments)


def test_a_step_out_of_place_is_an_error():
    scheduler, z = RFlowScheduler(), torch.zeros(1, 4, 1, 1, 1)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(z, 1000.0, z)
    scheduler.set_timesteps(4, **SIZE)
    with pytest.raises(ValueError, match="is not one of this scheduler's"):
        scheduler.step(z, 17.0, z)


def test_the_size_dtype_survives_saving(tmp_path):
    RFlowScheduler(size_dtype="bfloat16").save_pretrained(tmp_path)
    assert RFlowScheduler.from_pretrained(tmp_path).size_dtype == torch.bfloat16
    with pytest.raises(ValueError, match="must be 'float32' or 'bfloat16'"):
        RFlowScheduler(size_dtype="float16")
