import pytest
import torch
from pipelines import CAPTIONS
from routing import config, module_of, random_model

import fsframework as fsf
from fsframework.core import Artifact
from fsframework.data.prompts import Clip
from fsframework.policies.harmonica import HarmoniCa
from fsframework.train.harmonica import normalized

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
CLIP = Clip(0, CAPTIONS[0], 0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return random_model()


def some_gates(module):
    """Half of the sites below the threshold of 0.5, chosen by chance; 1 at the first step."""
    gates = torch.rand(module.router.theta_TM.shape, generator=torch.Generator().manual_seed(3))
    return torch.where(module.router.gated_T[:, None], gates, 1.0)


def generated(model, tmp_path, table, **options):
    path = tmp_path / "gates.json"
    Artifact("harmonica", table.values("block", "residual"), {}).save(path)
    with fsf.reuse(model.pipe, HarmoniCa(artifact=str(path), **options)) as session:
        return model.generate_latents(CLIP.prompt, CLIP.seed), session


def test_every_step_but_the_first_has_gates(tmp_path, model):
    assert module_of(tmp_path, model, config(tmp_path, "harmonica")).router.gated_T.tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_the_sampler_and_the_cache_are_those_of_the_policy_in_use(tmp_path, model):
    """With gates of 0 and 1 the video that is learned from is the one that the policy makes, bit for bit."""
    made = config(tmp_path, "harmonica", {"straight_through": True, "threshold": 0.5})
    module = module_of(tmp_path, model, made)
    gates = some_gates(module)
    found = module.rollout(CLIP, gates, [1.0] * 4, learn=True)
    with torch.no_grad():
        module.router.theta_TM.copy_(torch.logit(gates.clamp(0.01, 0.99)))
    latents, session = generated(model, tmp_path, module.router.table(), threshold=0.5)
    assert torch.equal(found.latents, latents)
    assert 0 < session.summary()["reuse_fraction"] < 0.75
    assert not torch.equal(latents, model.generate_latents(CLIP.prompt, CLIP.seed))


def test_errors_are_weighted_by_lambda(tmp_path, model):
    module = module_of(tmp_path, model, config(tmp_path, "harmonica", {"penalty": 0.0}))
    module.loss(0).backward()
    gradient = module.router.theta_TM.grad.clone()
    module.router.theta_TM.grad = None
    module.router.importance_T.copy_(torch.tensor([1.0, 3.0, 1.0, 0.5]))
    module.loss(0).backward()
    assert torch.allclose(module.router.theta_TM.grad[1], 3 * gradient[1], rtol=1e-5)
    assert torch.allclose(module.router.theta_TM.grad[3], 0.5 * gradient[3], rtol=1e-5)
    assert torch.allclose(module.router.theta_TM.grad[2], gradient[2], rtol=1e-5)


def test_lambda_is_the_error_of_the_finished_video_when_only_that_step_uses_its_mask(tmp_path, model):
    module = module_of(tmp_path, model, config(tmp_path, "harmonica", {"threshold": 0.5}))
    module._trainer = type("OneProcess", (), {"global_rank": 0, "world_size": 1})()
    module.sum_over_processes = lambda value: value
    gates = some_gates(module)
    gates[2] = 0.99  # nothing is reused at step 2
    with torch.no_grad():
        module.router.theta_TM.copy_(torch.logit(gates.clamp(0.01, 0.99)))
    module.measure_importance()

    full = model.generate_latents(CLIP.prompt, CLIP.seed)
    errors = {}
    for step in (1, 3):
        table = module.router.table()
        alone = {site: [gate if s == step else 1.0 for s, gate in enumerate(row)] for site, row in table.gates.items()}
        latents, _ = generated(model, tmp_path, type(table)(alone, table.shares), threshold=0.5)
        errors[step] = float((latents.double() - full.double()).square().mean())
    mean = (errors[1] + errors[3]) / 2
    expected = [1.0, errors[1] / mean, 1.0, errors[3] / mean]
    assert module.router.importance_T.tolist() == pytest.approx(expected, rel=1e-5)
    assert errors[1] != pytest.approx(errors[3], rel=0.01)


def test_lambda_has_mean_one_over_the_steps_that_reuse_and_is_one_elsewhere():
    assert normalized([0.0, 1.0, 3.0, 0.0], [1, 2]).tolist() == [1.0, 0.5, 1.5, 1.0]
    assert normalized([0.0, 0.0, 0.0], []).tolist() == [1.0] * 3
    assert normalized([0.0, 0.0, 0.0], [1]).tolist() == [1.0] * 3
