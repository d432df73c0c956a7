"""Decision for decision the released code, on its own models; and what its "baseline" does."""

import logging
from pathlib import Path

import diffusers
import pytest
import torch
from oracles import load_oracle
from toys import SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.config.load import load_config
from fsframework.core import ReuseEngine
from fsframework.models import CogVideoX, Latte, OpenSora
from fsframework.models.opensora_1_2 import RFlowScheduler, STDiT3
from fsframework.policies import ForesightRelease, FullCompute, StaticReuse
from fsframework.run.resolve import build_policy

FAMILIES = {
    "latte": (Latte(), dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)),
    "cogvideox": (
        CogVideoX(),
        dict(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True, snr_shift_scale=3.0,
            timestep_spacing="trailing",
        ),
    ),
    "opensora": (OpenSora(), {}),
}  # fmt: skip
HIDDEN = Path(__file__).resolve().parents[2] / "experiments" / "foresight_release"
"""Configs of what the release really runs when Foresight is off: only on Open-Sora is it full compute."""


def hidden_baseline(family):
    """The policy of the family's config, as `fsf run` builds it."""
    if family == "opensora":
        return FullCompute()
    return build_policy(load_config(HIDDEN / f"hidden_baseline_{family}.yaml").policy)


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def oracle(request):
    data = load_oracle(f"foresight_oracle_{request.param}.pt")
    adapter, scheduler_config = FAMILIES[request.param]
    if request.param == "opensora":
        logging.disable(logging.WARNING)  # the recorded config has keys of the original that are ours to ignore
        model = STDiT3.from_config(data["model_config"]).eval()
        logging.disable(logging.NOTSET)
        scheduler = RFlowScheduler()
    else:
        model = getattr(diffusers, adapter.transformer_classes[0])(**data["model_config"]).eval()
        scheduler_class = diffusers.DDIMScheduler if request.param == "latte" else diffusers.CogVideoXDDIMScheduler
        scheduler = scheduler_class(num_train_timesteps=1000, **scheduler_config)
    model.load_state_dict(data["state_dict"])
    return request.param, data, adapter, model, scheduler


def run(oracle, policy):
    """The recorded loop; gives the session and the final latents."""
    name, data, adapter, model, scheduler = oracle
    with torch.no_grad(), ReuseEngine(adapter.bind(model), policy, scheduler=scheduler) as session:
        latents = (run_opensora if name == "opensora" else run_ddim)(name, data["inputs"], model, scheduler)
    return session, latents


def run_ddim(name, inputs, model, scheduler):
    latents, axis = inputs["latents"], 1 if name == "latte" else 2
    scheduler.set_timesteps(inputs["steps"])
    for t in scheduler.timesteps:
        out = model(
            hidden_states=torch.cat([latents, latents]), encoder_hidden_states=inputs["emb"], timestep=t.expand(2),
            return_dict=False,
        )[0]  # fmt: skip
        uncond, cond = out.chunk(2)
        noise = (uncond + inputs["guidance"] * (cond - uncond)).narrow(axis, 0, 4)
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


def run_opensora(name, inputs, model, scheduler):
    latents, y = inputs["z"], inputs["y"]
    y = torch.cat([y, model.y_embedder.null_caption(1, y.shape[2])])
    size = dict(height=240, width=426)
    scheduler.set_timesteps(inputs["steps"], num_frames=inputs["frames"], **size)
    told = {key: torch.tensor([float(value)]) for key, value in {**size, "fps": 24}.items()}
    for t in scheduler.timesteps:
        out = model(torch.cat([latents, latents]), t.expand(2), y, inputs["mask"], **told, return_dict=False)[0]
        cond, uncond = out[:, :4].chunk(2)
        latents = scheduler.step(uncond + inputs["cfg_scale"] * (cond - uncond), t, latents).prev_sample
    return latents


def computed(session, num_steps):
    """Which blocks ran in each step, in the recording's names: s3 spatial or joint, t3 temporal."""
    out = [[] for _ in range(num_steps)]
    for row in session.trace.rows():
        if row["decision"] == "recompute":
            kind, ordinal = row["site"].split(".")
            out[row["step"]].append(("t" if kind == "temporal" else "s") + ordinal)
    return out


@pytest.mark.parametrize("name", ["gamma0.5", "gamma1", "gamma1_W4_R3"])
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_the_blocks_computed_in_every_step_are_those_of_the_released_code(oracle, name):
    recorded = oracle[1]["runs"][name]
    c = recorded["config"]
    policy = ForesightRelease(gamma=c["threshold"], warmup=c["warmup"], recompute_every=c["recalculate"])
    session, latents = run(oracle, policy)
    expected = [sorted(step) for step in recorded["computed"]]
    assert [sorted(step) for step in computed(session, len(expected))] == expected
    final = recorded["final"]
    assert torch.allclose(latents, final, rtol=1e-3, atol=1e-3 * final.abs().max().item())


def test_what_the_release_calls_its_baseline_is_static_reuse_but_on_open_sora(oracle):
    recorded = oracle[1]["runs"]["disabled"]
    session, latents = run(oracle, hidden_baseline(oracle[0]))
    expected = [sorted(step) for step in recorded["computed"]]
    assert [sorted(step) for step in computed(session, len(expected))] == expected
    final = recorded["final"]
    assert torch.allclose(latents, final, rtol=1e-3, atol=1e-3 * final.abs().max().item())


@pytest.mark.parametrize(
    ("family", "model", "policy"),
    [
        ("latte", "latte-1", StaticReuse(interval=2, warmup=2)),
        ("cogvideox", "cogvideox-2b", StaticReuse(interval=2, warmup=2, first_block=10, last_block=19)),
    ],
)
def test_the_configs_of_the_hidden_baselines_are_complete_runs(family, model, policy):
    config = load_config(HIDDEN / f"hidden_baseline_{family}.yaml")
    assert hidden_baseline(family) == policy
    assert config.model.name == model
    assert model in (Latte if family == "latte" else CogVideoX).checkpoints
    assert config.prompts.texts


def test_the_hidden_baseline_reuses_every_even_step_but_the_first_from_the_step_before():
    session, _, out = run_scripted(hidden_baseline("latte"), lambda b, t: 100 * b + t, num_steps=7, num_blocks=2)
    assert letters(session) == {"joint.0": "CCRCRCR", "joint.1": "CCRCRCR"}
    assert out == [100, 101, 101, 103, 103, 105, 105]


def test_full_compute_is_the_recorded_reference(oracle):
    _, latents = run(oracle, FullCompute())
    final = oracle[1]["runs"]["no_reuse_reference"]["final"]
    assert torch.allclose(latents, final, rtol=1e-3, atol=1e-3 * final.abs().max().item())


def test_a_safe_later_layer_takes_the_unsafe_ones_before_it_along():
    def script(block, t):
        return t * t if block == 0 else min(t, 3)  # block 0 runs away, block 1 stands still after step 3

    session, _, _ = run_scripted(ForesightRelease(gamma=0.5, warmup=4), script, num_steps=8, num_blocks=3)
    # Step 5: block 1 and 2 still carry the change of the warmup until step 4 measures 0.
    assert session.trace.decisions("joint.0") == "CCCCCRCR"
    assert session.trace.decisions("joint.2") == "CCCCCRCR"


def test_gamma_one_reuses_everything_directly_after_the_warmup_and_below_one_nothing():
    def first(gamma):
        session, _, _ = run_scripted(ForesightRelease(gamma=gamma, warmup=5), lambda b, t: t, num_steps=6)
        return session.trace.decisions("joint.0")[5]

    assert first(1.0) == "R"
    with pytest.warns(UserWarning, match="reused nothing"):
        assert first(0.99) == "C"


def test_with_residual_storage_each_block_decides_alone_and_adds_its_old_change_to_the_live_input():
    def script(block, t):
        return t * t if block == 0 else t * t + min(t, 3)  # what block 1 adds stands still from step 3 on

    policy = ForesightRelease(gamma=0.5, warmup=4, storage="residual")
    session, _, out = run_scripted(policy, script, num_steps=8, num_blocks=2)
    # Block 1 measures a change of 1 in the warmup and 0 at step 4: it is reused at steps 5 and 7, block 0 is not.
    assert letters(session) == {"joint.0": "CCCCCCCC", "joint.1": "CCCCCRCR"}
    assert out[5:] == [25 + 3, 36 + 3, 49 + 3]
    assert session.cache.peak_bytes == 2 * 4 * 2 * 4
    with_output, _, _ = run_scripted(
        ForesightRelease(gamma=0.5, warmup=4), lambda b, t: script(b, t) if b == 0 else 3.0, 8, 2
    )
    assert with_output.trace.decisions("joint.0") == "CCCCCRCR"  # taken along by the prefix


def test_with_residual_storage_two_videos_in_one_session_equal_each_alone():
    model, policy = SmoothDiT(num_blocks=2), ForesightRelease(gamma=2.0, warmup=3, storage="residual")
    with toy_session(model, policy, 9) as session:
        alone = run_smooth(model, 9)
        session.new_video()
        again = run_smooth(model, 9)
        assert "R" in session.trace.decisions("joint.1")
    assert all(torch.equal(a, b) for a, b in zip(alone, again))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "outputs"}, "must be one of output, residual"),
        ({"warmup": 1}, "at least 2"),
        ({"recompute_every": 0}, "at least 1"),
        ({"gamma": -1}, ">= 0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        ForesightRelease(**options)


def test_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="longer than the run of 4 steps"):
        run_scripted(ForesightRelease(), lambda b, t: t, num_steps=4)
