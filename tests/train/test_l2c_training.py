import math

import pytest
import torch
from pipelines import CAPTIONS
from routing import config, module_of, random_model

from fsframework.core.gates import FIXED
from fsframework.data.prompts import Clip

pytestmark = [
    pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning"),
    pytest.mark.filterwarnings("ignore:Found 1 module"),
]
CLIP = Clip(0, CAPTIONS[0], 0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def double():
    """In float64, so that differences of losses mean something."""
    model = random_model()
    model.pipe.to(torch.float64)
    return model


def test_every_second_step_has_gates_and_with_an_interval_all_but_every_so_many(tmp_path, double):
    module = module_of(tmp_path, double, config(tmp_path))
    assert module.router.gated_T.tolist() == [False, True, False, True]
    assert module_of(tmp_path, double, config(tmp_path, options={"interval": 3})).router.gated_T.tolist() == [
        False, True, True, False,
    ]  # fmt: skip
    table = module.router.table()
    assert [row[0] for row in table.gates.values()] == [FIXED] * 4
    assert [row[1] for row in table.gates.values()] == pytest.approx([0.9] * 4)


@pytest.mark.parametrize("granularity", ["block", pytest.param("submodule", marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_loss(tmp_path, double, granularity):
    made = config(tmp_path, options={"granularity": granularity, "threshold": 0.5, "penalty": 0.1})
    module = module_of(tmp_path, double, made).double()
    router = module.router
    with torch.no_grad():
        router.theta_TM.copy_(torch.randn(router.theta_TM.shape, generator=torch.Generator().manual_seed(1)))
    module.loss(0).backward()
    gradient = router.theta_TM.grad.clone()
    for step, column in ((1, 0), (1, 3), (3, 1)):
        values = []
        for change in (1e-4, -1e-4):
            with torch.no_grad():
                router.theta_TM[step, column] += change
                values.append(float(module.loss(0).detach()))
                router.theta_TM[step, column] -= change
        assert float(gradient[step, column]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def test_the_latents_are_those_of_the_frozen_model(tmp_path, double):
    module = module_of(tmp_path, double, config(tmp_path))
    found = module.rollout(CLIP, module.router.gates().detach(), [1.0] * 4, learn=True)
    assert torch.equal(found.latents, double.generate_latents(CLIP.prompt, CLIP.seed))
    assert found.errors_T[0] == found.errors_T[2] == 0
    assert bool((found.errors_T[[1, 3]] > 0).all())


def test_gates_at_one_make_no_error_and_smaller_gates_a_larger_one(tmp_path, double):
    module = module_of(tmp_path, double, config(tmp_path))
    errors = []
    for gate in (1.0, 0.9, 0.5):
        gates = torch.where(module.router.gated_T[:, None], torch.full((4, 4), gate).double(), 1.0)
        errors.append(float(module.rollout(CLIP, gates, [1.0] * 4, learn=False).errors_T.sum()))
    assert errors[0] == pytest.approx(0, abs=1e-20)
    assert errors[0] < errors[1] < errors[2]


def test_compute_is_priced_by_flops(tmp_path, double):
    module = module_of(tmp_path, double, config(tmp_path))
    shares = module.router.shares_M
    assert 0.5 < float(shares.sum()) < 1  # the rest is embedding and head
    assert float(module.router.compute().detach()) == pytest.approx(0.9 * 2 / 4 * float(shares.sum()), rel=1e-5)
    numbers = module.compute_numbers()
    assert numbers["compute"] == pytest.approx(1 - 0.1 * 2 / 4 * float(shares.sum()), rel=1e-5)
    assert numbers["compute_at_threshold"] == pytest.approx(1.0)


def test_a_growing_penalty_grows_by_the_same_factor_each_iteration(tmp_path, double):
    options = {"penalty": 0.001, "final_penalty": 0.1}
    module = module_of(tmp_path, double, config(tmp_path, options=options, num_iterations=3))
    assert [module.price(step) for step in range(3)] == pytest.approx([0.001, 0.01, 0.1])
    constant = module_of(tmp_path, double, config(tmp_path, options={"penalty": 0.2}, num_iterations=3))
    assert [constant.price(step) for step in range(3)] == [0.2] * 3


def test_with_a_growing_penalty_the_gates_are_the_means_over_training(tmp_path):
    """A price a hundred thousand times the errors moves all gates alike, by Adam's rate: theta 2.197, 1.197, 0.197, ..."""
    from fsframework.train.learned_fit import learn

    options = {"penalty": 1e3, "final_penalty": 1000.001}
    found = learn(config(tmp_path, options=options, learning_rate=1.0, num_iterations=3), random_model()).fit
    begin = math.log(0.9 / 0.1)
    after = [1 / (1 + math.exp(-(begin - k))) for k in (1, 2, 3)]
    for row in found.values["gates"].values():
        assert [gate for gate in row if gate != FIXED] == pytest.approx([sum(after) / 3] * 2, abs=0.01)


def test_a_growing_penalty_must_grow_and_goes_without_early_stopping(tmp_path, double):
    with pytest.raises(ValueError, match=r"final_penalty=0.1 must be above train.penalty=0.2"):
        module_of(tmp_path, double, config(tmp_path, options={"penalty": 0.2, "final_penalty": 0.1}))
    made = config(tmp_path, options={"penalty": 0.1, "final_penalty": 0.2})
    made.validation.patience = 2
    with pytest.raises(ValueError, match=r"set validation.patience=0"):
        module_of(tmp_path, double, made)


def test_theta_stays_within_its_limits(tmp_path):
    from fsframework.train.learned_fit import learn

    made = config(tmp_path, options={"penalty": 1e3}, learning_rate=20.0, num_iterations=2)
    gates = learn(made, random_model()).fit.values["gates"]
    lowest = 1 / (1 + math.exp(5))
    assert {gate for row in gates.values() for gate in row} == {1.0, round(lowest, 6)}


def test_all_clips_come_once_before_any_comes_again(tmp_path, double):
    made = config(tmp_path, batch_clips=3)
    made.prompts.texts = CAPTIONS
    made.seeds.per_prompt = 2
    module = module_of(tmp_path, double, made)
    rounds = [module.clips_of(step) for step in range(4)]
    seeds = [clip.seed for clips in rounds for clip in clips]
    assert sorted(seeds[:6]) == sorted(seeds[6:]) == list(range(6))
    assert seeds[:6] != seeds[6:]


@pytest.mark.slow
def test_a_straight_through_blend_computes_or_reuses_and_still_has_a_gradient(tmp_path, double):
    module = module_of(tmp_path, double, config(tmp_path, options={"straight_through": True, "threshold": 0.95}))
    soft = module.router.gates().detach()  # all 0.9: below the threshold, so everything is reused
    found = module.rollout(CLIP, soft, [1.0] * 4, learn=True)
    module.options.straight_through = False
    nothing = torch.where(module.router.gated_T[:, None], torch.zeros_like(soft), soft)
    expected = module.rollout(CLIP, nothing, [1.0] * 4, learn=True)
    assert torch.equal(found.errors_T, expected.errors_T)
    assert bool((found.gradient_TM[[1, 3]] != 0).all())
