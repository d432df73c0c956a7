"""What every built-in policy keeps to, on one family per structure: three that are batched, two with a call per branch.

A policy runs with its `example` options, a family at its `tiny_config` with random weights. Two kinds of model: a
*moving* one, the family's own denoising loop, and a *still* one, whose inputs and timestep are the same at every step,
so that nothing changes anywhere, in any sub-module, and every distance is 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Container
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from toys import Loop, tiny_transformer

import fsframework.models  # fills the registries
import fsframework.policies  # noqa: F401
from fsframework.core import (
    ADAPTERS,
    POLICIES,
    Forecast,
    Part,
    Recompute,
    Reuse,
    ReuseEngine,
    ReusePolicy,
    ReuseWarning,
    Run,
)
from fsframework.policies import ForecastReuse, FullCompute
from fsframework.run.bench_counts import host_reads

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")

FAMILIES = ("latte", "cogvideox", "opensora", "wan", "chroma")
NAMES = [name for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")]
NUM_STEPS = 10

# What is known and said here, per policy. Nothing is skipped without a line in one of these tables.

REFUSED: dict[tuple[str, str], str] = {
    ("fastercache", "chroma"): "without axes of height and width",  # latents are a row of packed tokens
}
"""(policy, family) -> what the ValueError says where the policy does not fit the family."""

STILL: dict[str, str] = {
    "foresight": "CCRCRCRCRC",  # warmup 2, then in turns
    "foresight_release": "CCCRCRCRCR",  # warmup 2, then odd steps
    "adacache": "CCRRCRRCCC",  # the codebook's longest interval is 3; the first and last two are always computed
    "bwcache": "CCRCRCRCRC",  # R is a tenth of the steps; triggered at step 2, so the last step is computed
    "dbcache": "CRRRRRRRRR",
    "dbprune": "CRRRRRRRRR",
    "first_block_cache": "CCRRRRRRRR",
    "predictor": "CCRRCRRCRR",  # warmup 2; the longest lag is a fifth of the steps
    "teacache": "CRRRRRRRRC",  # the first and the last step are always computed
    "easycache": "CCCCCCCCCC",  # a latent that stands still says nothing of the rate, so it is not reused on it
}
"""Policies that decide by what they measure -> the steps of the still model in which something is reused (R), and those in
which everything is recomputed (C). All that may be reused at a step is reused then, so every R step reuses the same sites."""

STILL_DIFFERS: dict[str, str] = {
    "fastercache": "makes the difference between the guidance branches larger by alpha",
    "tgate": "after the gate there is no guidance: uncond is made from cond",
}
"""Policies whose output is not the bare model's even where nothing changes -> why."""

ONE_BATCH_DIFFERS: dict[tuple[str, str], str] = {
    (name, family): why
    for name in ("fastercache", "tgate")
    for family, why in {
        "wan": "this family's pipelines never send both branches in one batch, so one call is one branch",
        "chroma": "this family's pipelines never send both branches in one batch, so one call is one branch",
    }.items()
}
"""(policy with a schedule, family) whose result depends on whether both guidance branches come in one batch -> why."""

UNCOND_FIRST: dict[tuple[str, str], str] = {
    (name, family): "uncond is made from cond, and with a call per branch this family calls uncond first"
    for name in ("fastercache", "tgate")
    for family in ("latte", "cogvideox")
}
"""(policy, family) where both branches run if each has a call of its own in the family's order -> why. That one batch is the
same as a call per branch is tested with cond first, and that nothing is hidden in the family's order by itself."""

STRICTEST: dict[str, dict[str, Any]] = {"foresight": {"gamma": 0.0}, "foresight_release": {"gamma": 0.0}}
"""Options that set the threshold to nothing, where `never` switches the measuring off instead."""


def make(name: str, **options: Any) -> Any:
    """The policy with its `example` options and, if it has a warmup that these leave open, one of two steps."""
    cls = POLICIES[name]
    given = {**cls.example, **options}
    if "warmup" in {f.name for f in dataclasses.fields(cls)} - set(given):
        given["warmup"] = 2
    return cls(**given)


def cases(leave_out: Container[str] = (), pairs: Container[tuple[str, str]] = ()) -> list[Any]:
    """Every policy on every family but those it does not fit."""
    return [
        pytest.param(name, family, id=f"{name}-{family}", marks=() if is_quick(name, family) else pytest.mark.slow)
        for family in FAMILIES
        for name in NAMES
        if (name, family) not in REFUSED and (name, family) not in pairs and name not in leave_out
    ]


def is_quick(name: str, family: str) -> bool:
    """Policies take turns on the first two families; one with a schedule and one without run on all. The rest is slow."""
    return name in ("static", "foresight") or family == FAMILIES[NAMES.index(name) % 2]


every_case = pytest.mark.parametrize(("name", "family"), cases())


# Running a policy on a family.


class BareModel:
    """Stands in for a session where there is none."""

    def branch(self, name: str) -> Any:
        del name
        return nullcontext()


@dataclasses.dataclass
class Guided(Loop):
    """A denoising loop as the family's pipeline runs it; notes each prediction, and how often the host read what."""

    predictions: list[torch.Tensor] = dataclasses.field(default_factory=list)
    reads: list[int] = dataclasses.field(default_factory=list)
    """Of our own counter, per forward."""
    intercepted: list[str] = dataclasses.field(default_factory=list)
    """Every read, found without asking our own counter."""
    ends: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Length of `intercepted` before and after each forward."""

    def run(self, session: ReuseEngine | None = None, sequential: bool | None = None, **settings: Any) -> torch.Tensor:
        self.session = session or BareModel()
        self.predictions, self.reads, self.ends = [], [], []
        if sequential is None:
            sequential = self.adapter.guidance == "sequential"
        settings.setdefault("num_steps", NUM_STEPS)
        with host_reads() as self.intercepted:
            return self(session=self.session, sequential=sequential, **settings)

    def _call(self, latent: Any, t: Any, inputs: Any) -> torch.Tensor:
        meter = getattr(self.session, "meter", None)
        before, begun = meter.num_reads if meter else 0, len(self.intercepted)
        out = super()._call(latent, t, inputs)
        self.ends.append((begun, len(self.intercepted)))
        if meter:
            now = self.session.meter
            self.reads.append(now.num_reads - (before if now is meter else 0))
        self.predictions.append(out.clone())
        return out

    def reads_in_forwards(self) -> list[list[str]]:
        """What was intercepted in each forward of the last video."""
        return [self.intercepted[begin:end] for begin, end in self.ends]

    def reads_between_forwards(self) -> list[list[str]]:
        """What was intercepted before each forward, and after the last: the sampler's, in a step of its own or at its end."""
        begins = [0, *(end for _, end in self.ends)]
        ends = [*(begin for begin, _ in self.ends), len(self.intercepted)]
        return [self.intercepted[begin:end] for begin, end in zip(begins, ends)]


class Still(Guided):
    """The same inputs and timestep at every step. (455 is not among the scheduler's, so no video begins in the middle.)"""

    def arguments(self, latent: Any, t: Any, inputs: Any) -> dict[str, Any]:
        return super().arguments(latent, torch.full_like(t, 455), inputs)


class StillScheduler(DDIMScheduler):
    """Leaves the latent as it is."""

    def step(self, prediction: Any, t: Any, latent: Any) -> Any:
        return SimpleNamespace(prev_sample=latent)


@functools.cache
def moving(family: str) -> Guided:
    adapter = ADAPTERS[family]()
    return Guided(adapter, tiny_transformer(adapter))


@functools.cache
def cond_first(family: str) -> Guided:
    """The family with cond as the first half of a batch, and as the first call where each branch has its own."""
    adapter = ADAPTERS[family]()
    adapter.batch_order = ("cond", "uncond")  # type: ignore[misc]
    return Guided(adapter, moving(family).model)


@functools.cache
def still(family: str) -> Still:
    return Still(moving(family).adapter, moving(family).model, StillScheduler())


@functools.cache
def bare(family: str, **settings: Any) -> torch.Tensor:
    return moving(family).run(**settings)


def session(loop: Guided, policy: Any) -> ReuseEngine:
    facts = {"family": ADAPTERS.name_of(type(loop.adapter))}
    return ReuseEngine(
        loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, guided=True, facts=facts
    )


def runs_of(s: ReuseEngine) -> dict[str, Any]:
    """Branch -> what was known before the last video, to ask the policy what it declares for it."""
    return dict(s._last.runs)


@dataclasses.dataclass
class Outcome:
    """One video of a policy on the moving model of a family."""

    latent: torch.Tensor
    session: ReuseEngine
    reads: list[int]
    """Of our own counter, per forward."""
    in_forwards: list[list[str]]
    """Host reads that were intercepted in each forward."""
    between_forwards: list[list[str]]
    """Those before each forward, and after the last."""

    @property
    def runs(self) -> dict[str, Any]:
        return runs_of(self.session)


@functools.cache
def outcome(name: str, family: str) -> Outcome:
    loop = moving(family)
    with session(loop, make(name)) as s:
        latent = loop.run(s)
    return Outcome(latent, s, loop.reads, loop.reads_in_forwards(), loop.reads_between_forwards())


@functools.cache
def bare_reads(family: str) -> tuple[list[list[str]], list[list[str]]]:
    """Host reads in each forward of the bare model, and between them."""
    loop = moving(family)
    bare(family)  # the first call may import things
    loop.run()
    return loop.reads_in_forwards(), loop.reads_between_forwards()


@functools.cache
def still_outcome(name: str, family: str) -> tuple[ReuseEngine, list[torch.Tensor]]:
    """The session of one video of the still model, and its predictions."""
    loop = still(family)
    with session(loop, make(name)) as s:
        loop.run(s)
    return s, list(loop.predictions)


@functools.cache
def strictest(name: str, family: str, never: bool) -> tuple[torch.Tensor, ReuseEngine, list[str]]:
    """A video in which nothing may be reused: final latent, session, and what was warned of."""
    loop = moving(family)
    options = POLICIES[name].never if never else STRICTEST.get(name, POLICIES[name].never)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with session(loop, make(name, **options)) as s:
            latent = loop.run(s)
    return latent, s, [str(w.message) for w in found if issubclass(w.category, ReuseWarning)]


def reused_steps(s: ReuseEngine) -> str:
    """Per step: C where every site the policy was asked about was recomputed in every branch, else R."""
    asked = [
        (step, decision)
        for step, site, decision in zip(s.trace.step, s.trace.site, s.trace.column("decision"))
        if site in set(s.sites)
    ]
    return "".join(
        "C" if all(decision == "recompute" for at, decision in asked if at == step) else "R"
        for step in range(len(s.trace.timesteps))
    )


def scheduled_steps(s: ReuseEngine) -> str | None:
    """What the policy says beforehand of the same; None where it does not know."""
    schedules = [s.policy.schedule(run) for run in runs_of(s).values()]
    if any(schedule is None for schedule in schedules):
        return None
    return "".join("C" if all(steps) else "R" for steps in zip(*schedules))


def num_reused(s: ReuseEngine) -> int:
    return sum(decision != "recompute" for decision in s.trace.column("decision"))


# The contracts.


@pytest.mark.parametrize(
    ("name", "family", "words"), [pytest.param(*pair, words, id="-".join(pair)) for pair, words in REFUSED.items()]
)
def test_a_family_the_policy_does_not_fit_is_refused_in_words(name, family, words):
    assert name in NAMES
    assert family in FAMILIES
    loop = moving(family)
    with pytest.raises(ValueError, match=words), session(loop, make(name)) as s:
        loop.run(s)
    assert torch.equal(loop.run(), bare(family))


@every_case
def test_with_the_options_that_never_reuse_nothing_is_changed(name, family):
    assert POLICIES[name].never or name == "full", f"{name} does not say with which options it never reuses"
    latent, s, _ = strictest(name, family, True)
    assert torch.equal(latent, bare(family))
    assert set(s.trace.column("decision")) == {"recompute"}


@every_case
def test_where_nothing_changes_all_that_may_be_reused_is_reused(name, family):
    s, _ = still_outcome(name, family)
    steps = scheduled_steps(s)
    if steps is not None:
        assert name not in STILL
        assert reused_steps(s) == steps
        return
    assert name in STILL, f"{name} has no schedule: add its steps on the still model, {reused_steps(s)}?, to STILL"
    assert reused_steps(s) == STILL[name]
    rows = list(zip(s.trace.step, s.trace.branch, s.trace.column("site"), s.trace.column("decision")))
    by_step = [
        {(branch, site) for at, branch, site, decision in rows if at == step and decision != "recompute"}
        for step, letter in enumerate(STILL[name])
        if letter == "R"
    ]
    assert all(sites == by_step[0] for sites in by_step)
    if by_step:
        assert num_reused(outcome(name, family).session) <= num_reused(s)
        assert all(math.isfinite(distance) for distance in s.trace.logged("distance").values())


@pytest.mark.parametrize(("name", "family"), cases(leave_out=STILL_DIFFERS))
def test_where_nothing_changes_the_output_is_the_bare_models(name, family):
    _, predictions = still_outcome(name, family)
    _, expected = still_outcome("full", family)
    assert len(predictions) == len(expected)
    for i, (prediction, reference) in enumerate(zip(predictions, expected)):
        assert torch.allclose(prediction, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max())), i


@every_case
def test_videos_in_one_session_equal_each_alone_also_with_other_steps_and_after_an_interrupt(name, family):
    loop, policy, clean = moving(family), make(name), outcome(name, family)
    shorter = dict(num_steps=NUM_STEPS - 2, seed=1)
    with session(loop, policy) as alone:
        other = loop.run(alone, **shorter)
    with session(loop, policy) as s:
        with interrupted(loop, after=4), pytest.raises(KeyboardInterrupt):
            loop.run(s, seed=2)
        assert torch.equal(loop.run(s), clean.latent)
        assert s.trace.column("decision") == clean.session.trace.column("decision")
        assert torch.equal(loop.run(s, **shorter), other)
    assert torch.equal(loop.run(), bare(family))


def interrupted(loop: Guided, after: int) -> Any:
    """The model is interrupted in the middle of a forward: its second block, when it comes by for the last time in so many."""
    seen = []

    def hook(*_: Any) -> None:
        seen.append(None)
        if len(seen) == after:
            raise KeyboardInterrupt

    return loop.adapter.bind(loop.model).blocks[1].module.register_forward_pre_hook(hook)


START_OF_VIDEO = 2
"""Reads in a video's first forward: the scheduler's timesteps, and with which of them the video begins."""


@every_case
def test_host_reads_are_those_the_policy_declares(name, family):
    """In every forward the interceptor finds what the meter counted, and that is at most what was declared."""
    in_bare, between_bare = bare_reads(family)
    found = outcome(name, family)
    policy, runs = found.session.policy, found.runs
    known_before = scheduled_steps(found.session) is not None
    assert [len(reads) for reads in in_bare] == [0] * len(found.in_forwards), "the model's own would be saved by reuse"
    assert found.between_forwards == between_bare, "in the sampler's steps"
    for number, ((step, branch, *_), metered, reads) in enumerate(
        zip(found.session.trace.forwards, found.reads, found.in_forwards, strict=True)
    ):
        where = f"step {step}, branch {branch}: {reads}"
        assert len(reads) == metered + (START_OF_VIDEO if number == 0 else 0), f"not all through call.meter, {where}"
        declared = policy.num_host_reads(runs.get(branch) or runs["joint"])
        assert metered <= (0 if known_before else declared), where


def test_most_policies_decide_without_any_host_read():
    """So that the contract above is not kept by declaring much: what is declared, for a run with one block."""
    bound = moving("latte").adapter.bind(moving("latte").model)
    declared = {}
    for name in NAMES:
        run = Run(NUM_STEPS, range(NUM_STEPS), bound.sites(make(name)))
        declared[name] = make(name).num_host_reads(run)
    assert {name for name, reads in declared.items() if reads > 0} == {*STILL}
    assert {name for name, reads in declared.items() if reads > 1} == {"dbprune"}  # one for each block it may prune


@every_case
def test_memory_is_what_the_policy_declares(name, family):
    assert_memory_is_declared(outcome(name, family).session)


@pytest.mark.parametrize("order", [4, pytest.param(1, marks=pytest.mark.slow)])
@every_case
def test_memory_with_a_forecast_over_it_is_what_that_declares(name, family, order):
    with session(moving(family), ForecastReuse(make(name), order=order)) as s:
        moving(family).run(s)
    assert_memory_is_declared(s)


def assert_memory_is_declared(s: ReuseEngine) -> None:
    """The most values and tensors that each branch held at once are the policy's `num_cached` and `num_kept`."""
    policy, peaks, runs = s.policy, s.cache.peak_counts(), runs_of(s)
    declared = {branch: (policy.num_cached(run), policy.num_kept(run)) for branch, run in runs.items()}
    if "joint" in declared:  # a half of the batch that was run alone holds values of half the size
        halves = [peaks.pop(branch) for branch in list(peaks) if branch != "joint"]
        whole = peaks.get("joint", (0, 0))
        peaks["joint"] = tuple(int(whole[i] + sum(half[i] for half in halves) / 2 + 0.5) for i in (0, 1))
    assert {branch: peaks.get(branch, (0, 0)) for branch in declared} == declared
    assert set(peaks) <= set(declared)


@every_case
def test_the_schedule_is_the_one_in_the_trace(name, family):
    found = outcome(name, family)
    steps = scheduled_steps(found.session)
    if steps is None:
        assert name in STILL
        return
    assert reused_steps(found.session) == steps
    assert not any(found.session.trace.forced)


@pytest.mark.parametrize(("name", "family"), cases(leave_out=STILL, pairs=ONE_BATCH_DIFFERS))
def test_one_batch_or_a_call_per_branch_is_all_the_same_to_a_schedule(name, family):
    loop = cond_first(family) if (name, family) in UNCOND_FIRST else moving(family)
    with session(loop, make(name)) as together:
        expected = loop.run(together)
    with session(loop, make(name)) as s:
        latent = loop.run(s, sequential=loop.adapter.guidance != "sequential")
    assert torch.allclose(latent, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    if Part.MODEL in s.policy.parts:
        assert s.trace.decisions("model", "uncond") == together.trace.decisions("model")
        assert not any((*s.trace.forced, *together.trace.forced))
        return  # half of the batch is run as a branch of its own: the same work under other names
    (one, *_), (other, *_) = [dict.fromkeys(t.branch) for t in (s.trace, together.trace)]
    for site in s.sites:
        assert s.trace.decisions(site, one) == together.trace.decisions(site, other)


@pytest.mark.parametrize(("name", "family"), UNCOND_FIRST)
def test_where_uncond_comes_first_both_run_and_that_is_said_once_and_marked(name, family):
    loop, policy = moving(family), make(name)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with session(loop, policy) as s:
            loop.run(s, sequential=True)
    said = [
        str(w.message) for w in found if "uncond is called before the branch it would be made from" in str(w.message)
    ]
    assert len(said) == 1
    for branch in ("cond", "uncond"):
        assert s.trace.decisions("model", branch) == "C" * NUM_STEPS
    forced = {
        (branch, str(site))
        for branch, site, is_forced in zip(s.trace.branch, s.trace.site, s.trace.forced)
        if is_forced
    }
    assert forced == {("uncond", "model")}
    peaks, runs = s.cache.peak_counts(), runs_of(s)
    for branch, (num_values, num_tensors) in peaks.items():
        assert num_values <= policy.num_cached(runs[branch])
        assert num_tensors <= policy.num_kept(runs[branch])


@every_case
def test_zero_reuse_is_a_warning_with_the_smallest_distance_and_the_threshold(name, family):
    _, s, warned = strictest(name, family, name not in STRICTEST)
    said = [message for message in warned if "reused nothing" in message]
    if scheduled_steps(s) is not None:
        assert not said, "it was asked for"
        return
    assert set(s.trace.column("decision")) == {"recompute"}
    assert len(said) == 1
    assert type(s.policy).__name__ in said[0]
    assert "distance" in said[0]
    assert "threshold" in said[0]


def test_the_tables_name_policies_that_there_are():
    assert {
        *STILL,
        *STILL_DIFFERS,
        *STRICTEST,
        *(name for name, _ in (*REFUSED, *ONE_BATCH_DIFFERS, *UNCOND_FIRST)),
    } <= set(NAMES)
    assert FullCompute in [POLICIES[name] for name in NAMES]


# The contracts can be broken: policies with one fault each.


@dataclasses.dataclass(frozen=True)
class Honest(ReusePolicy[Any]):
    """Reuses every block in odd steps."""

    paper, signal, deviations = "our own", "the step's number", "None."
    never = {"on": False}

    on: bool = True
    """Whether to reuse at all."""

    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return Reuse() if self.on and call.step.index % 2 else Recompute()

    def schedule(self, run: Any) -> list[bool] | None:
        return [not self.on or step % 2 == 0 for step in range(run.num_steps)]


class ReusesAlthoughItIsSwitchedOff(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return Reuse() if call.step.index == 5 else Recompute()

    def schedule(self, run: Any) -> None:
        return None  # else nothing would be stored that it could reuse


class ReadsPastTheMeter(Honest):
    def observe(self, state: Any, call: Any, site: Any, fresh: Any, cached: Any) -> None:
        float(fresh[0].mean())


class ReadsWhereValuesMakeAShape(Honest):
    def observe(self, state: Any, call: Any, site: Any, fresh: Any, cached: Any) -> None:
        fresh[0][fresh[0] > 0].mean()


class ReadsInOneStepOnly(Honest):
    def end_forward(self, state: Any, call: Any) -> None:
        if call.step.index == NUM_STEPS // 2:
            torch.zeros(1).item()


class ReadsThroughTheMeterAlthoughItHasASchedule(Honest):
    host_reads_per_step = 1

    def begin_forward(self, state: Any, call: Any) -> None:
        call.meter.fetch(call.input()[0].mean())


class ReadsMoreThanItSays(Honest):
    def begin_forward(self, state: Any, call: Any) -> None:
        call.meter.fetch(call.input()[0].mean())

    def schedule(self, run: Any) -> None:
        return None


class KeepsMoreThanItSays(Honest):
    def observe(self, state: Any, call: Any, site: Any, fresh: Any, cached: Any) -> None:
        call.keep("last", fresh)


class CachesLessThanItSays(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return Recompute(keep=False)


class LeaksIntoTheNextVideo(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        seen.append(site)
        return Reuse() if len(seen) > 40 and call.step.index % 2 else Recompute()


class RestoresSomethingElse(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return (
            Forecast(lambda history, step: tuple(t.flip(-1) for t in history[-1].value))
            if call.step.index == 3
            else Recompute()
        )


class DependsOnTheBatch(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return Reuse() if call.step.index % 2 and call.num_samples > 1 else Recompute()


class DoesOtherThanItPlanned(Honest):
    def decide(self, state: Any, call: Any, site: Any) -> Any:
        return Reuse() if call.step.index in (3, 4) else Recompute()


seen: list[Any] = []
"""What `LeaksIntoTheNextVideo` has no business to remember."""


def broken() -> list[Any]:
    contracts = {
        ReusesAlthoughItIsSwitchedOff: test_with_the_options_that_never_reuse_nothing_is_changed,
        ReadsPastTheMeter: test_host_reads_are_those_the_policy_declares,
        ReadsWhereValuesMakeAShape: test_host_reads_are_those_the_policy_declares,
        ReadsInOneStepOnly: test_host_reads_are_those_the_policy_declares,
        ReadsThroughTheMeterAlthoughItHasASchedule: test_host_reads_are_those_the_policy_declares,
        ReadsMoreThanItSays: test_host_reads_are_those_the_policy_declares,
        KeepsMoreThanItSays: test_memory_is_what_the_policy_declares,
        CachesLessThanItSays: test_memory_is_what_the_policy_declares,
        LeaksIntoTheNextVideo: test_videos_in_one_session_equal_each_alone_also_with_other_steps_and_after_an_interrupt,
        RestoresSomethingElse: test_where_nothing_changes_the_output_is_the_bare_models,
        DependsOnTheBatch: test_one_batch_or_a_call_per_branch_is_all_the_same_to_a_schedule,
        DoesOtherThanItPlanned: test_the_schedule_is_the_one_in_the_trace,
    }
    return [pytest.param(cls, contract, id=cls.__name__) for cls, contract in contracts.items()]


@pytest.mark.parametrize(("cls", "contract"), broken())
def test_a_policy_that_breaks_its_word_is_found_out(cls, contract, monkeypatch):
    monkeypatch.setitem(POLICIES._entries, cls.__name__, cls)
    with pytest.raises(AssertionError):
        contract(cls.__name__, "latte")


@pytest.mark.parametrize("contract", sorted({p.values[1] for p in broken()}, key=lambda f: f.__name__))
def test_a_policy_that_keeps_its_word_is_not(contract, monkeypatch):
    monkeypatch.setitem(POLICIES._entries, "honest", Honest)
    contract("honest", "latte")
