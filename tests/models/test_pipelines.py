"""Latte and CogVideoX through the diffusers pipelines a user has."""

import pytest
import torch
from pipelines import BUILDERS, CAPTIONS, generate

import fsframework as fsf
from fsframework.policies import Foresight, FullCompute, StaticReuse

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


@pytest.fixture(params=sorted(BUILDERS), scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(family):
    return BUILDERS[family]()


def test_full_compute_is_bit_identical_before_during_and_after(family, pipe):
    before = generate(family, pipe)
    with fsf.reuse(pipe, FullCompute()) as session:
        during = generate(family, pipe)
    assert torch.equal(before, during)
    assert torch.equal(before, generate(family, pipe))
    assert session.summary()["flops_saved"] == 0


@pytest.mark.parametrize("policy", [StaticReuse(warmup=2), Foresight(gamma=2.0, warmup=3, lag_correction=True)])
def test_reuse_saves_what_the_trace_says_and_changes_the_video(family, pipe, policy):
    bare = generate(family, pipe)
    with fsf.reuse(pipe, policy) as session:
        video = generate(family, pipe)
    summary = session.summary()
    assert not torch.equal(video, bare)
    assert 0 < summary["flops_saved"] < 1
    assert summary["flops_saved"] < summary["reuse_fraction"] + 1e-9  # the embedding and the head are never reused
    assert set(session.trace.column("branch")) == {"joint"}
    assert len(session.trace) == 8 * len(session.sites)
    assert torch.equal(bare, generate(family, pipe))


def test_prompts_settings_and_an_interrupted_call_leave_no_trace_in_the_next_video(family, pipe):
    policy = Foresight(gamma=2.0, warmup=3, lag_correction=True)
    alone = {}
    for prompt, steps in ((CAPTIONS[0], 8), (CAPTIONS[1], 6)):
        with fsf.reuse(pipe, policy):
            alone[prompt] = generate(family, pipe, prompt, num_steps=steps)

    def stop(pipe, step, timestep, kwargs):
        if step == 4:
            raise KeyboardInterrupt
        return kwargs

    with fsf.reuse(pipe, policy):
        assert torch.equal(generate(family, pipe, CAPTIONS[0]), alone[CAPTIONS[0]])
        with pytest.raises(KeyboardInterrupt):
            generate(family, pipe, CAPTIONS[2], callback_on_step_end=stop)
        assert torch.equal(generate(family, pipe, CAPTIONS[1], num_steps=6), alone[CAPTIONS[1]])
        generate(family, pipe, CAPTIONS[:2], num_steps=5, guidance_scale=1.0)
        assert torch.equal(generate(family, pipe, CAPTIONS[0]), alone[CAPTIONS[0]])


def test_two_pipelines_of_one_class(family, pipe):
    other = BUILDERS[family]()
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.mul_(1.1)
    bare, other_bare = generate(family, pipe), generate(family, other)
    with fsf.reuse(pipe, StaticReuse(warmup=1)) as session:
        reused = generate(family, pipe)
        assert torch.equal(generate(family, other), other_bare)
        assert torch.equal(generate(family, pipe), reused)
    assert session.trace.decisions(session.sites[0]) == "CRCRCRCR"
    assert torch.equal(generate(family, pipe), bare)


def test_a_bare_transformer_in_a_loop_of_ones_own(family, pipe):
    with pytest.raises(ValueError, match="a bare transformer needs timesteps"):
        fsf.reuse(pipe.transformer, FullCompute())
    with pytest.raises(ValueError, match="a pipeline brings its own scheduler"):
        fsf.reuse(pipe, FullCompute(), timesteps=[1, 2])
    pipe.scheduler.set_timesteps(4)
    with fsf.reuse(pipe.transformer, StaticReuse(warmup=1), timesteps=pipe.scheduler.timesteps) as session:
        for t in pipe.scheduler.timesteps:
            shape = (2, 4, 8, 8, 8) if family == "latte" else (2, 3, 4, 2, 2)
            with torch.no_grad():
                pipe.transformer(
                    hidden_states=torch.zeros(shape), encoder_hidden_states=torch.zeros(2, 16, 16), timestep=t.expand(2)
                )
    assert session.trace.decisions(session.sites[0]) == "CRCR"


def test_a_scheduler_replaced_inside_the_session_is_an_error(family, pipe):
    own = pipe.scheduler
    with fsf.reuse(pipe, StaticReuse(warmup=1)):
        pipe.scheduler = type(own).from_config(own.config)
        with pytest.raises(RuntimeError, match="scheduler was replaced inside the reuse session"):
            generate(family, pipe)
    pipe.scheduler = own


def test_a_model_without_an_adapter_is_an_error_that_says_how_to_write_one():
    from diffusers import DDIMScheduler

    with pytest.raises(
        ValueError, match=r"no adapter for DDIMScheduler.*none of its modules is a transformer.*Known: "
    ):
        fsf.reuse(DDIMScheduler(), FullCompute())


class TestSamplers:
    """A session must not hide from a pipeline what its sampler takes: noise comes from the generator, eta arrives."""

    @pytest.mark.parametrize("sampler", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
    def test_samplers_that_draw_noise_or_take_two_orders_are_exact(self, sampler):
        import diffusers

        pipe = BUILDERS["latte"]()
        pipe.scheduler = getattr(diffusers, sampler)()
        bare = generate("latte", pipe)
        assert torch.equal(bare, generate("latte", pipe))
        with fsf.reuse(pipe, FullCompute()):
            assert torch.equal(bare, generate("latte", pipe))

    def test_eta_arrives_at_the_sampler(self):
        pipe = BUILDERS["latte"]()
        bare = generate("latte", pipe, eta=0.5)
        assert not torch.equal(bare, generate("latte", pipe))
        with fsf.reuse(pipe, FullCompute()):
            assert torch.equal(bare, generate("latte", pipe, eta=0.5))

    def test_timesteps_of_the_users_own(self):
        from diffusers import DPMSolverMultistepScheduler

        pipe = BUILDERS["latte"]()
        pipe.scheduler = DPMSolverMultistepScheduler()
        bare = generate("latte", pipe, timesteps=[900, 600, 300, 100])
        with fsf.reuse(pipe, FullCompute()) as session:
            assert torch.equal(bare, generate("latte", pipe, timesteps=[900, 600, 300, 100]))
        assert list(dict.fromkeys(session.trace.column("timestep"))) == [900, 600, 300, 100]

    def test_cogvideox_with_its_own_dpm_sampler(self):
        from diffusers import CogVideoXDPMScheduler

        pipe = BUILDERS["cogvideox"]()
        pipe.scheduler = CogVideoXDPMScheduler()
        bare = generate("cogvideox", pipe)
        with fsf.reuse(pipe, FullCompute()):
            assert torch.equal(bare, generate("cogvideox", pipe))


def test_video_to_video_counts_the_steps_it_takes():
    from diffusers import CogVideoXVideoToVideoPipeline

    pipe = CogVideoXVideoToVideoPipeline(**BUILDERS["cogvideox"]().components)
    pipe.set_progress_bar_config(disable=True)
    from PIL import Image

    video = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(9)]
    with fsf.reuse(pipe, StaticReuse(warmup=1)) as session:
        pipe(
            video=video, prompt=CAPTIONS[0], height=16, width=16, num_inference_steps=8, strength=0.5, max_sequence_length=16,
            guidance_scale=3.0, generator=torch.Generator().manual_seed(0), output_type="pt",
        )  # fmt: skip
    assert session.trace.decisions("joint.0") == "CRCR"
    assert session.summary()["num_steps"] == 4
    assert session.trace.timesteps == pipe.scheduler.timesteps[4:].tolist()


@pytest.mark.parametrize("when", ["before", "inside"])
def test_model_offloading_resets_its_hooks_after_each_video_and_reuse_goes_on(family, when):
    pipe = BUILDERS[family]()
    with fsf.reuse(pipe, StaticReuse(warmup=2)):
        expected = generate(family, pipe)
    bare = generate(family, pipe)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    session = fsf.reuse(pipe, StaticReuse(warmup=2))
    for number in range(2):
        with session:  # entered anew, as a run does for each of its videos
            if when == "inside" and number == 0:
                pipe.enable_model_cpu_offload(device="cpu")
            for _ in range(2):
                assert torch.equal(generate(family, pipe), expected)
                assert session.trace.decisions(session.sites[0]) == "CCRCRCRC"
    assert session.trace.video == 3
    assert torch.equal(generate(family, pipe), bare)


def test_without_guidance_no_prompt_is_made_from_another():
    from dataclasses import dataclass

    from fsframework import Part, Recompute, ReusePolicy, Synthesize

    @dataclass(frozen=True)
    class DropUncond(ReusePolicy):
        parts = frozenset({Part.MODEL})

        def decide(self, state, call, site):
            return Synthesize(lambda p: p["cond"]) if call.step.index >= 4 else Recompute()

    pipe = BUILDERS["latte"]()
    bare = generate("latte", pipe, CAPTIONS[:2], guidance_scale=1.0)
    with fsf.reuse(pipe, DropUncond()):
        assert torch.equal(generate("latte", pipe, CAPTIONS[:2], guidance_scale=1.0), bare)
        generate("latte", pipe, CAPTIONS[0], guidance_scale=3.0)
    with fsf.reuse(pipe, DropUncond()) as session:
        generate("latte", pipe, CAPTIONS[0], guidance_scale=3.0)
    assert session.trace.decisions("model") == "CCCCSSSS"
