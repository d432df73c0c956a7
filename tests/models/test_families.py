"""Every family through its own diffusers pipeline with random tiny weights: exactness, order, guidance, prompts.

The pipelines are in tests/models/pipes, one file per adapter.
"""

import importlib.util
import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fsframework as fsf
from fsframework.core import Part, Recompute, Reuse, ReusePolicy
from fsframework.models.loading import find_adapter
from fsframework.policies import FullCompute, StaticReuse
from fsframework.run.attach import is_guided

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")

PIPES = {path.stem: path for path in sorted((Path(__file__).parent / "pipes").glob("[!_]*.py"))}


@pytest.fixture(params=list(PIPES), scope="module")
def family(request):
    """The module of a family's tiny pipeline."""
    spec = importlib.util.spec_from_file_location(f"pipes_{request.param}", PIPES[request.param])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pipe(family):
    pipe = family.build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def static(pipe):
    """Static reuse of every second step: a jump over all blocks, or block by block where the model keeps outputs aside."""
    adapter, _, _ = find_adapter(pipe)
    kept = any(facts.kept_aside is True for facts in adapter.blocks)
    return StaticReuse(interval=2, warmup=1, storage="residual" if kept else "output")


def test_full_compute_is_bit_identical_before_during_and_after(family, pipe):
    before = family.generate(pipe)
    with fsf.reuse(pipe, FullCompute()) as session:
        during = family.generate(pipe)
    assert before.isfinite().all()
    assert torch.equal(before, during)
    assert torch.equal(before, family.generate(pipe))
    assert session.summary()["flops_saved"] == 0
    assert session.summary()["flops_full"] > 0


def test_every_block_is_visited_once_per_branch_and_step_in_the_models_order(family, pipe, static):
    with fsf.reuse(pipe, static) as session:
        video = family.generate(pipe, num_steps=4)
    assert video.isfinite().all()
    branches = dict.fromkeys(session.trace.column("branch"))
    order = [site.name for site in session.sites if not site.denoiser]
    rows = list(zip(session.trace.step, session.trace.branch, session.trace.column("site")))
    assert set(Counter(rows).values()) == {1}
    first = next(iter(branches))
    assert [name for step, branch, name in rows if step == 0 and branch == first] == order
    for branch in branches:
        decided = {session.trace.decisions(site, branch) for site in session.sites}
        stages = len({site.denoiser for site in session.sites})
        assert decided == ({"CRCR"} if stages == 1 else {"CR"})


@dataclass(frozen=True)
class AsksGuidance(ReusePolicy[None]):
    """Notes in every forward whether the pipeline says that it is guided."""

    pipe: object = None
    said: tuple = ()

    def decide(self, state, call, site):
        return Recompute()

    def begin_forward(self, state, call):
        if call.branch == "joint":
            self.said[0].add(is_guided(self.pipe))


def test_a_pipeline_with_batched_guidance_says_whether_it_is_guided(family, pipe):
    adapter, _, _ = find_adapter(pipe)
    if adapter.guidance != "batched":
        pytest.skip("a call per branch: nothing to split")
    policy = AsksGuidance(pipe, (set(),))
    with fsf.reuse(pipe, policy):
        family.generate(pipe, num_steps=2)
    silent = type(pipe).__name__ in (
        "DiTPipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
    )  # then guided=True helps
    assert policy.said[0] == {None if silent else True}


def test_branches_are_named_as_the_family_states(family, pipe):
    adapter, _, _ = find_adapter(pipe)
    with fsf.reuse(pipe, FullCompute()) as session:
        family.generate(pipe, num_steps=2)
    branches = list(dict.fromkeys(session.trace.column("branch")))
    expected = {"batched": ["joint"], "none": ["joint"], "sequential": list(adapter.batch_order)}[adapter.guidance]
    assert sorted(branches) == sorted(getattr(family, "BRANCHES", expected))
    calls = len(session.trace.forwards) // 2
    assert calls == getattr(family, "CALLS_PER_STEP", len(branches))


def test_reuse_changes_the_result_and_saves_what_static_reuse_should(family, pipe, static):
    bare = family.generate(pipe, num_steps=4)
    with fsf.reuse(pipe, static) as session:
        video = family.generate(pipe, num_steps=4)
    assert not torch.equal(video, bare)
    summary = session.summary()
    assert summary["reuse_fraction"] == 0.5
    assert 0 < summary["flops_saved"] < 0.5  # what is around the blocks is never reused


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "inside"])
def test_model_offloading_before_or_after_attaching(family, static, when):
    pipe = family.build()
    pipe.set_progress_bar_config(disable=True)
    bare = family.generate(pipe)
    with fsf.reuse(pipe, static):
        expected = family.generate(pipe)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    with fsf.reuse(pipe, static) as session:
        if when == "inside":
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):  # pipelines remove their hooks after each call and set them anew
            assert torch.equal(family.generate(pipe), expected)
            assert "reuse" in session.trace.column("decision")
    assert torch.equal(family.generate(pipe), bare)


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_two_prompts_in_one_session_equal_each_alone(family, pipe, static, storage):
    policy = static if storage == "output" else StaticReuse(interval=2, warmup=1, storage="residual")
    if "prompt_seed" not in inspect.signature(family.generate).parameters:
        pytest.skip("the pipeline takes no prompt")
    alone = []
    for prompt in (0, 1):
        with fsf.reuse(pipe, policy):
            alone.append(family.generate(pipe, prompt_seed=prompt))
    assert not torch.equal(*alone)
    with fsf.reuse(pipe, policy):
        together = [family.generate(pipe, prompt_seed=prompt) for prompt in (0, 1)]
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


@dataclass(frozen=True)
class Whole(ReusePolicy):
    """Reuses the model's prediction in odd steps."""

    parts = frozenset({Part.MODEL})
    storage: str = "output"

    def decide(self, state, call, site):
        return Reuse() if call.step.index % 2 else Recompute()


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_the_prediction_of_the_whole_model_is_reused(family, pipe, storage):
    with fsf.reuse(pipe, Whole(storage=storage)) as session:
        assert family.generate(pipe, num_steps=4).isfinite().all()
    branches = dict.fromkeys(session.trace.branch)
    letters = {session.trace.decisions(site, branch) for site in session.sites for branch in branches}
    assert letters == ({"CR"} if any(site.denoiser for site in session.sites) else {"CRCR"})
    assert session.summary()["reuse_fraction"] == 0.5
