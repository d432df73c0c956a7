"""Decision for decision the released code, on its own models; and the static reuse its "baseline" does."""

import os
from pathlib import Path

import diffusers
import pytest
import torch
from toys import run_scripted

from fsframework.core import ReuseEngine
from fsframework.models import CogVideoX, Latte
from fsframework.policies import ForesightRelease, FullCompute, StaticReuse

ORACLES = Path(os.environ.get("FSF_ORACLES", Path(__file__).resolve().parents[2].parent / "shared" / "oracles"))
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
}  # fmt: skip
HIDDEN = {"latte": (StaticReuse(warmup=2),), "cogvideox": (StaticReuse(warmup=2, first_block=10, last_block=19),)}


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def oracle(request):
    path = ORACLES / f"foresight_oracle_{request.param}.pt"
    if not path.is_file():
        pytest.skip(f"the recorded runs of the released code are not at {path}; set FSF_ORACLES to their folder")
    data = torch.load(path, weights_only=True)
    adapter, scheduler_config = FAMILIES[request.param]
    model = getattr(diffusers, adapter.transformer_classes[0])(**data["model_config"]).eval()
    model.load_state_dict(data["state_dict"])
    scheduler_class = diffusers.DDIMScheduler if request.param == "latte" else diffusers.CogVideoXDDIMScheduler
    return request.param, data, adapter, model, scheduler_class(num_train_timesteps=1000, **scheduler_config)


def run(oracle, policy):
    """The recorded loop; gives the session and the final latents."""
    name, data, adapter, model, scheduler = oracle
    inputs = data["inputs"]
    latents, axis = inputs["latents"], 1 if name == "latte" else 2
    scheduler.set_timesteps(inputs["steps"])
    with torch.no_grad(), ReuseEngine(adapter.bind(model), policy, scheduler=scheduler) as session:
        for t in scheduler.timesteps:
            out = model(
                hidden_states=torch.cat([latents, latents]), encoder_hidden_states=inputs["emb"], timestep=t.expand(2),
                return_dict=False,
            )[0]  # fmt: skip
            uncond, cond = out.chunk(2)
            noise = (uncond + inputs["guidance"] * (cond - uncond)).narrow(axis, 0, 4)
            latents = scheduler.step(noise, t, latents).prev_sample
    return session, latents


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


def test_what_the_release_calls_its_baseline_is_static_reuse(oracle):
    recorded = oracle[1]["runs"]["disabled"]
    (policy,) = HIDDEN[oracle[0]]
    session, latents = run(oracle, policy)
    assert [sorted(s) for s in computed(session, 50)] == [sorted(s) for s in recorded["computed"]]
    final = recorded["final"]
    assert torch.allclose(latents, final, rtol=1e-3, atol=1e-3 * final.abs().max().item())


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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"warmup": 1}, "at least 2"), ({"recompute_every": 0}, "at least 1"), ({"gamma": -1}, ">= 0")],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        ForesightRelease(**options)


def test_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="longer than the run of 4 steps"):
        run_scripted(ForesightRelease(), lambda b, t: t, num_steps=4)
