"""Two denoisers that share the steps of one video, as in Wan 2.2."""

import pytest
import torch
from toys import ScriptedDiT, ToyAdapter

from fsframework.core import ReuseEngine, ReuseWarning, StagedSession
from fsframework.core.staged import two_stages
from fsframework.policies import FullCompute, StaticReuse


class Scheduler:
    """Ten timesteps, 900 to 0."""

    num_inference_steps = None

    def set_timesteps(self, num_steps):
        self.timesteps = torch.tensor([100.0 * (num_steps - 1 - i) for i in range(num_steps)])
        self.num_inference_steps = num_steps

    def step(self):
        pass


def staged(policy, boundary, scheduler, first, second):
    early, late = two_stages(boundary)
    adapter = ToyAdapter()
    return StagedSession(
        [
            ReuseEngine(adapter.bind(first), policy, scheduler=scheduler, in_stage=early),
            ReuseEngine(adapter.bind(second, denoiser="transformer_2"), policy, scheduler=scheduler, in_stage=late),
        ]
    )


def run(scheduler, first, second, boundary, num_steps=10):
    scheduler.set_timesteps(num_steps)
    out = []
    with torch.no_grad():
        for t in scheduler.timesteps:
            model = first if t >= boundary else second
            out.append(float(model(torch.zeros(1, 2, 2), t[None])[0][0, 0, 0]))
            scheduler.step()
    return out


@pytest.fixture
def models():
    return ScriptedDiT(2, lambda block, t: t + block), ScriptedDiT(2, lambda block, t: -t - block)


def test_each_denoiser_has_its_own_warmup_and_cache_and_the_trace_is_one(models):
    scheduler = Scheduler()
    session = staged(StaticReuse(interval=2, warmup=2), 500.0, scheduler, *models)
    with session:
        out = run(scheduler, *models, boundary=500.0)
    # Steps 0 to 4 (900 to 500) are the first model's, 5 to 9 the second's; each computes two steps, then every other.
    assert session.trace.decisions("joint.1") == "CCRCR"
    assert session.trace.decisions("transformer_2.joint.1") == "CCRCR"
    assert out == [901, 801, 801, 601, 601, -401, -301, -301, -101, -101]
    assert sorted(set(session.trace.step)) == list(range(10))
    assert session.trace.column("timestep")[0] == 900
    assert session.trace.column("timestep")[-1] == 0
    assert [session.trace.site[0].name, session.trace.site[-1].name] == ["joint.0", "transformer_2.joint.1"]
    assert session.summary()["num_steps"] == 10
    assert session.summary()["reuse_fraction"] == pytest.approx(0.4)


def test_a_second_video_begins_anew_in_both(models):
    scheduler = Scheduler()
    session = staged(StaticReuse(interval=2, warmup=2), 500.0, scheduler, *models)
    with session:
        first = run(scheduler, *models, boundary=500.0)
        assert run(scheduler, *models, boundary=500.0) == first
    assert session.trace.video == 1


def test_a_video_that_did_not_reach_the_second_denoiser_is_followed_by_whole_ones(models):
    scheduler = Scheduler()
    with staged(FullCompute(), 150.0, scheduler, *models) as session:
        run(scheduler, *models, boundary=150.0, num_steps=4)
        assert session.trace.timesteps == [300, 200, 100, 0]
        scheduler.set_timesteps(4)
        with torch.no_grad():  # stopped after one step
            models[0](torch.zeros(1, 2, 2), scheduler.timesteps[:1])
        assert session.trace.timesteps == [300, 200]
        run(scheduler, *models, boundary=150.0, num_steps=4)
        assert session.trace.timesteps == [300, 200, 100, 0]
        assert session.summary()["num_decisions"] == 4 * 2
        assert session.num_forwards == 9


@pytest.mark.filterwarnings("error::fsframework.core.review.ReuseWarning")
def test_both_denoisers_are_left_also_when_a_warning_is_an_error(models):
    before = [sorted(m.__dict__) for model in models for m in model.modules()]
    with pytest.raises(ReuseWarning, match="without seeing a single forward"):
        staged(FullCompute(), 500.0, Scheduler(), *models).attach().detach()
    assert [sorted(m.__dict__) for model in models for m in model.modules()] == before


def test_a_video_without_low_noise_steps_has_the_first_denoiser_only(models, recwarn):
    scheduler = Scheduler()
    session = staged(FullCompute(), -1.0, scheduler, *models)
    with session:
        run(scheduler, *models, boundary=-1.0)
    assert {site.denoiser for site in session.trace.site} == {""}
    assert not [w for w in recwarn if "without seeing" in str(w.message)]


def test_nothing_is_left_on_either_model_after_an_error_at_the_second(models):
    scheduler = Scheduler()
    before = [sorted(m.__dict__) for model in models for m in model.modules()]
    other = ReuseEngine(ToyAdapter().bind(models[1]), FullCompute(), timesteps=[1.0])
    with other, pytest.raises(ValueError, match="already in a reuse session"):
        staged(FullCompute(), 500.0, scheduler, *models).attach()
    assert [sorted(m.__dict__) for model in models for m in model.modules()] == before
