"""What the engine guarantees, for every registered policy on every registered family (random weights)."""

import copy
import inspect
import threading
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from toys import Loop, tiny_transformer

from fsframework.core import Part, Partial, Recompute, Reuse, ReuseEngine, ReusePolicy
from fsframework.core.review import ReuseWarning
from fsframework.core.samples import stacked
from fsframework.run.bench_counts import host_reads

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


@dataclass(frozen=True)
class Never(ReusePolicy):
    """Asks about every part there is, stores everything, reuses nothing."""

    parts = frozenset(Part)
    storage: str = "output"

    def decide(self, state, call, site):
        return Recompute()

    def spans(self, num_blocks):
        return ((0, num_blocks), (1, num_blocks))


@dataclass(frozen=True)
class EverySecond(ReusePolicy):
    """Reuses every block in odd steps."""

    storage: str = "output"

    def decide(self, state, call, site):
        return Reuse() if call.step.index % 2 else Recompute()


@dataclass(frozen=True)
class NeverInside(Never):
    """For models that keep outputs aside, which have no regions."""

    parts = frozenset(part for part in Part if part not in (Part.TRUNK, Part.SPAN))


def keeps_aside(loop):
    """Whether nothing can be passed over, not even up to the last block."""
    return any(facts.kept_aside is True for facts in loop.adapter.blocks)


@pytest.fixture
def passable(loop):
    """A loop over a model with regions; that others are refused is tested in tests/core/test_engine.py."""
    if keeps_aside(loop):
        pytest.skip("the model keeps outputs of its blocks aside, so it has no regions")
    return loop


def never(loop, **options):
    return (NeverInside if keeps_aside(loop) else Never)(**options)


def is_even(loop):
    """Whether all blocks give equally many bytes (the last one of SD3 gives no text)."""
    sizes = set()

    class Weigh(EverySecond):
        def observe(self, state, call, site, fresh, cached):
            sizes.add(sum(t.nbytes for t in fresh))

    with session(loop, Weigh()):
        loop(num_steps=1)
    return len(sizes) == 1


def session(loop, policy, **options):
    return ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, **options)


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_recomputing_everything_is_bit_identical_before_during_and_after(loop, storage):
    before = loop()
    with session(loop, never(loop, storage=storage)) as s:
        during = loop()
    assert torch.equal(before, during)
    assert torch.equal(before, loop())
    assert all(d == "recompute" for d in s.trace.column("decision"))


def test_full_compute_dispatches_not_one_operation_more_than_the_bare_model(loop):
    from torch.utils._python_dispatch import TorchDispatchMode

    from fsframework.policies import FullCompute

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.n += 1
            return func(*args, **(kwargs or {}))

    def count(num_steps):
        Count.n = 0
        with Count():
            loop(num_steps=num_steps)
        return Count.n

    loop(num_steps=3)  # what is made once is made
    # The beginning of a video has a few of its own (its timesteps, the count of FLOPs), so three further steps are compared.
    bare = count(6) - count(3)
    with session(loop, FullCompute()):
        assert count(6) - count(3) == bare


def test_nothing_of_the_session_is_left_on_the_model(loop):
    def attributes():
        modules = {name: sorted(module.__dict__) for name, module in loop.model.named_modules()}
        return modules, sorted(loop.scheduler.__dict__), list(loop.model.state_dict())

    loop()
    before = attributes()
    with session(loop, never(loop)) as s:
        loop()
        assert s.trace.step
    assert attributes() == before


def test_an_exception_inside_the_call_restores_the_model_and_does_not_spoil_the_next_video(loop, policy):
    bare = loop()
    with session(loop, policy):
        expected = loop()
    s = session(loop, policy)
    with s:
        blow_up = loop.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            loop()
        blow_up.remove()
        assert torch.equal(loop(), expected)
    assert torch.equal(loop(), bare)
    with pytest.raises(RuntimeError, match="boom"), session(loop, policy):
        raise RuntimeError("boom")
    assert torch.equal(loop(), bare)


def test_two_prompts_in_one_session_equal_each_alone(loop, policy):
    alone = []
    for seed in (0, 1):
        with session(loop, policy):
            alone.append(loop(seed=seed))
    with session(loop, policy) as s:
        together = [loop(seed=seed) for seed in (0, 1)]
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert s.trace.video == 1


def test_two_models_of_one_class_do_not_touch_each_other(loop, policy):
    other = Loop(loop.adapter, tiny_transformer(loop.adapter, seed=5))
    bare, other_bare = loop(), other()
    with session(loop, policy):
        with_policy = loop()
        assert torch.equal(other(), other_bare)
        with session(other, EverySecond()) as s2:
            other()
            assert torch.equal(loop(), with_policy)
        assert s2.trace.decisions(s2.sites[0]) == "CRCRCRCR"
    assert torch.equal(loop(), bare)


def test_two_pipelines_that_share_one_scheduler_object(loop, policy):
    other = Loop(loop.adapter, tiny_transformer(loop.adapter, seed=5), scheduler=loop.scheduler)
    with session(loop, policy):
        expected = loop()
    with session(loop, policy):
        other()
        assert torch.equal(loop(), expected)


def test_steps_batch_and_seed_may_change_between_calls_without_a_reset(loop, policy):
    settings = [dict(num_steps=8), dict(num_steps=5), dict(num_steps=8, batch=2), dict(num_steps=6, seed=3)]
    alone = []
    for setting in settings:
        with session(loop, policy):
            alone.append(loop(**setting))
    with session(loop, policy):
        for setting, expected in zip(settings, alone):
            assert torch.equal(loop(**setting), expected)


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_sequential_guidance_gives_the_decisions_and_results_of_batched_guidance(loop, storage):
    with session(loop, EverySecond(storage=storage)) as batched:
        together = loop()
    with session(loop, EverySecond(storage=storage)) as sequential:
        apart = loop(session=sequential, sequential=True)
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4 * together.abs().max().item())
    site = batched.sites[-1]
    assert sequential.trace.decisions(site, "cond") == batched.trace.decisions(site) == "CRCRCRCR"
    assert sequential.trace.decisions(site, "uncond") == "CRCRCRCR"


def test_unnamed_sequential_guidance_is_an_error_that_says_how_to_name_the_branches(loop):
    with session(loop, EverySecond()), pytest.raises(RuntimeError, match=r'session.branch\("cond"\)'):
        inputs = loop.adapter.example_inputs(loop.model, 1, torch.Generator().manual_seed(0))
        loop.scheduler.set_timesteps(3)
        latent = stacked(inputs.pop(loop.adapter.latent_input))
        for _ in range(len(loop.adapter.calls()) + 1):  # one more than a step of the family has
            loop._call(latent, loop.scheduler.timesteps[0], inputs)


def test_each_site_is_visited_once_per_step_in_the_models_own_order(loop):
    with session(loop, never(loop)) as s:
        loop(num_steps=2)
    order = [site.name for site in s.sites]
    rows = [(step, site) for step, site in zip(s.trace.column("step"), s.trace.column("site"))]
    visited = [site for step, site in rows if step == 1]
    assert sorted(visited) == sorted(order)
    blocks = [name for name in visited if name.count(".") == 1 and not name.startswith("span")]
    assert blocks == [site.name for site in s.sites if site.part is Part.BLOCK]
    if loop.adapter.interleaved:
        assert blocks[:4] == ["spatial.0", "temporal.0", "spatial.1", "temporal.1"]


def test_observe_sees_fresh_values_before_the_cache_changes_and_only_after_real_runs(loop):
    seen = []

    class Watch(EverySecond):
        def observe(self, state, call, site, fresh, cached):
            seen.append((call.step.index, site, None if cached is None else cached.step))

    with session(loop, Watch()) as s:
        loop(num_steps=6)
    first = s.sites[0]
    assert [(step, cached) for step, site, cached in seen if site == first] == [(0, None), (2, 0), (4, 2)]


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_an_output_reused_in_every_block_is_the_last_blocks_output(loop, storage):
    """With output storage reuse of every block is the same as a jump to the end; with residuals it is not."""
    from fsframework.policies import StaticReuse

    class PerBlock(EverySecond):
        def decide(self, state, call, site):
            return Reuse() if call.step.index >= 1 and (call.step.index - 1) % 2 == 0 else Recompute()

    if keeps_aside(loop):
        with pytest.raises(ValueError, match="keeps the outputs"), session(loop, StaticReuse(interval=2, warmup=1)):
            loop()
        return
    with session(loop, StaticReuse(interval=2, warmup=1)) as jump:
        jumped = loop()
    with session(loop, PerBlock(storage=storage)) as each:
        per_block = loop()
    assert jump.trace.column("decision") == each.trace.column("decision")
    assert torch.equal(jumped, per_block) == (storage == "output")
    if is_even(loop):
        assert jump.cache.peak_bytes * len(jump.sites) == each.cache.peak_bytes


def test_a_trunk_is_restored_in_the_layout_of_its_last_block(passable):
    """Latte permutes between blocks and adds a position embedding after the first: a residual must survive both."""

    @dataclass(frozen=True)
    class Trunk(ReusePolicy):
        parts = frozenset({Part.TRUNK})
        storage: str = "residual"

        def decide(self, state, call, site):
            return Reuse() if call.step.index == 1 else Recompute()

    inputs = passable.adapter.example_inputs(passable.model, 2, torch.Generator().manual_seed(0))
    latent = stacked(inputs.pop(passable.adapter.latent_input))
    with torch.no_grad():
        for storage in ("output", "residual"):
            with ReuseEngine(passable.adapter.bind(passable.model), Trunk(storage), timesteps=[500, 400]) as s:
                outs = []
                for index in (0, 1):
                    s.step(index)  # the same input twice: old output = new input + old residual
                    outs.append(passable._call(latent, torch.tensor(500), inputs))
            assert torch.allclose(outs[0], outs[1], rtol=1e-4, atol=1e-4 * outs[0].abs().max().item())
            assert s.trace.decisions("trunk") == "CR"
            assert set(s.trace.column("decision")[-len(s.installed.keys) :]) == {"reuse"}


@pytest.mark.parametrize("parts", [{Part.BLOCK}, {Part.ATTENTION, Part.MLP}, {Part.TRUNK}])
def test_nothing_the_cache_holds_is_written_to_by_the_model(loop, parts):
    if Part.TRUNK in parts and keeps_aside(loop):
        pytest.skip("the model keeps outputs of its blocks aside, so it has no regions")
    policy = type("Parts", (EverySecond,), {"parts": frozenset(parts)})()
    with session(loop, policy) as s:
        loop()  # a reuse of a captured tensor that changed raises
    assert "reuse" in s.trace.column("decision")


def test_host_reads_per_step_are_what_the_policy_declares(loop, policy):
    def reads(run):
        with host_reads() as found:
            run()
        return Counter(found)

    num_steps = 10
    bare = reads(lambda: loop(num_steps=num_steps))
    with session(loop, policy) as s:
        loop(num_steps=num_steps)  # warm: the first call may import things
        in_session = reads(lambda: loop(num_steps=num_steps))
        own_count = s.meter.num_reads
    start_of_video = 2  # the scheduler's timesteps, and the first one the model is called with
    # Mochi's blocks read by themselves (x[mask]); reusing one saves those, so only what a session adds is counted.
    extra = (in_session - bare).total() - start_of_video
    assert extra == own_count
    assert extra <= policy.host_reads_per_step * num_steps


def test_host_reads_are_declared_per_branch_where_branches_run_one_after_the_other(loop, policy):
    num_steps = 10
    with session(loop, policy) as s:
        loop(num_steps=num_steps, session=s, sequential=True)
    assert s.meter.num_reads <= 2 * policy.host_reads_per_step * num_steps
    with session(loop, policy) as batched:
        loop(num_steps=num_steps)
    assert s.meter.num_reads == 2 * batched.meter.num_reads


def test_a_declared_schedule_is_the_one_in_the_trace(loop, policy):
    with session(loop, policy) as s:
        loop(num_steps=12)
    run = next(iter(s._last.runs.values()))
    schedule = policy.schedule(run)
    if schedule is None:
        assert policy.host_reads_per_step > 0
        return
    by_step = [
        all(d == "recompute" for s_, d in zip(s.trace.step, s.trace.column("decision")) if s_ == i) for i in range(12)
    ]
    assert by_step == schedule


def test_declared_memory_is_what_the_cache_held(loop, policy):
    with session(loop, policy) as s:
        loop(num_steps=10)
    with session(loop, EverySecond()) as one_each:
        loop(num_steps=10)
    per_site = one_each.cache.peak_bytes / len(one_each.sites)
    declared = policy.num_cached(next(iter(s._last.runs.values()))) * per_site
    # A family whose last block gives fewer streams holds less there than in the others.
    assert s.cache.peak_bytes == declared if is_even(loop) else s.cache.peak_bytes <= declared


def test_gradients_bypass_the_policy_with_a_warning(loop):
    inputs = loop.adapter.example_inputs(loop.model, 2, torch.Generator().manual_seed(0))
    latent = stacked(inputs.pop(loop.adapter.latent_input)).requires_grad_()
    with session(loop, EverySecond()), pytest.warns(ReuseWarning, match="gradients are enabled"):
        loop.scheduler.set_timesteps(2)
        for _ in range(2):
            out = loop.model(**loop.arguments(latent, torch.tensor(5), inputs), return_dict=False)[0]
        stacked(out).sum().backward()
    assert latent.grad.abs().sum() > 0


def test_gradients_in_training_mode_are_those_of_the_bare_model(loop):
    own = Loop(loop.adapter, tiny_transformer(loop.adapter))
    own.model.train()
    own.model.requires_grad_(True)

    def gradients():
        own.model.zero_grad()
        inputs = own.adapter.example_inputs(own.model, 2, torch.Generator().manual_seed(0))
        latent = stacked(inputs.pop(own.adapter.latent_input))
        torch.manual_seed(0)  # for dropout
        prediction = own.model(**own.arguments(latent, torch.tensor(5), inputs), return_dict=False)[0]
        stacked(prediction).square().mean().backward()
        return [p.grad.clone() for p in own.model.parameters() if p.grad is not None]

    bare = gradients()
    with session(own, EverySecond()):
        own.scheduler.set_timesteps(2)
        assert all(torch.equal(a, b) for a, b in zip(gradients(), bare, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(), bare, strict=True))
    assert sum(float(g.abs().sum()) > 0 for g in bare) > len(bare) / 2


def test_a_copy_made_inside_a_session_is_free_and_runs_its_own_weights(loop):
    with session(loop, EverySecond()) as s:
        twin = copy.deepcopy(loop.model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        other = Loop(loop.adapter, twin)
        assert not torch.equal(other(), loop())
        assert s.trace.decisions(s.sites[0]) == "CRCRCRCR"
        copied = other()
    halved = tiny_transformer(loop.adapter)
    with torch.no_grad():
        for parameter in halved.parameters():
            parameter.mul_(0.5)
    assert torch.equal(copied, Loop(loop.adapter, halved)())


def test_weights_saved_inside_a_session_are_the_models_own(loop, tmp_path):
    bare = loop()
    with session(loop, EverySecond()):
        keys = list(loop.model.state_dict())
        loop.model.save_pretrained(tmp_path)
    assert keys == list(loop.model.state_dict())
    reloaded = type(loop.model).from_pretrained(tmp_path)
    assert torch.equal(Loop(loop.adapter, reloaded)(), bare)


def add_lora(model, adapter):
    """On the projections in the first block of each list that every family has: its linear layers."""
    peft = pytest.importorskip("peft")
    block = adapter.bind(model).blocks[0].module
    names = sorted({name.rpartition(".")[2] for name, m in block.named_modules() if type(m) is torch.nn.Linear})
    named = [name for name in names if not name.isdigit()]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=named[:2], init_lora_weights=False), model)


def test_lora_may_be_added_inside_a_session(loop):
    model = tiny_transformer(loop.adapter)
    own = Loop(loop.adapter, model)
    with session(own, never(own)):
        before = own()
        add_lora(model, loop.adapter)
        after = own()
    assert not torch.equal(before, after)
    assert torch.equal(after, own())


def test_a_model_with_lora_is_reused_as_any_other(loop):
    own = Loop(loop.adapter, tiny_transformer(loop.adapter))
    add_lora(own.model, loop.adapter)
    bare = own()
    with session(own, never(own)):
        assert torch.equal(own(), bare)
    with session(own, EverySecond()) as s:
        assert not torch.equal(own(), bare)
    assert {s.trace.decisions(site) for site in s.sites} == {"CRCRCRCR"}


@pytest.mark.parametrize("offload_first", [True, False])
def test_group_offloading_before_or_after_attaching(loop, offload_first, tmp_path):
    from diffusers.hooks import apply_group_offloading

    own = Loop(loop.adapter, tiny_transformer(loop.adapter))
    if not own.model._supports_group_offloading:
        pytest.skip("diffusers does not offload this model in groups")
    bare = own()
    with session(own, EverySecond()):
        expected = own()

    def offload():
        apply_group_offloading(
            own.model, torch.device("cpu"), torch.device("cpu"), "block_level", num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path),
        )  # fmt: skip

    if offload_first:
        offload()
    with session(own, EverySecond()) as s:
        if not offload_first:
            offload()
        assert torch.equal(own(), expected)
    assert s.trace.decisions(s.sites[0]) == "CRCRCRCR"
    assert torch.equal(own(), bare)


def test_wrappers_that_were_lost_between_videos_are_put_back(loop):
    with session(loop, EverySecond()) as s:
        expected = loop()
        for block in (b.module for b in loop.adapter.bind(loop.model).blocks):
            block.__dict__.pop("forward")
        loop.model.__dict__.pop("forward")
        assert torch.equal(loop(), expected)
    assert s.trace.video == 1
    assert "forward" not in loop.model.__dict__


def test_wrappers_that_were_lost_inside_a_video_are_an_error_not_a_silent_full_compute(loop):
    inputs = loop.adapter.example_inputs(loop.model, 2, torch.Generator().manual_seed(0))
    latent = stacked(inputs.pop(loop.adapter.latent_input))
    loop.scheduler.set_timesteps(3)
    with session(loop, EverySecond()):
        loop._call(latent, loop.scheduler.timesteps[0], inputs)
        for block in (b.module for b in loop.adapter.bind(loop.model).blocks):
            block.__dict__.pop("forward")
        loop.scheduler.step(latent, loop.scheduler.timesteps[0], latent)
        with pytest.raises(RuntimeError, match="wrappers are no longer in place"):
            loop._call(latent, loop.scheduler.timesteps[1], inputs)


def test_signatures_are_those_of_the_bare_model_and_scheduler(loop):
    bare = [inspect.signature(f) for f in (loop.model.forward, loop.scheduler.step, loop.scheduler.set_timesteps)]
    with session(loop, never(loop)):
        wrapped = [
            inspect.signature(f) for f in (loop.model.forward, loop.scheduler.step, loop.scheduler.set_timesteps)
        ]
        loop()
    assert wrapped == bare


def test_models_that_share_a_block_can_not_be_in_two_sessions(loop):
    other = Loop(loop.adapter, copy.deepcopy(loop.model))
    path = loop.adapter.blocks[0].path
    getattr(other.model, path)[1] = getattr(loop.model, path)[1]
    with (
        session(loop, EverySecond()),
        pytest.raises(ValueError, match="part of another model that is in a reuse session"),
    ):
        session(other, EverySecond()).__enter__()
    assert torch.equal(loop(), loop())


def test_a_block_that_is_listed_twice_is_an_error(loop):
    model = tiny_transformer(loop.adapter)
    blocks = getattr(model, loop.adapter.blocks[0].path)
    blocks[1] = blocks[0]
    with pytest.raises(ValueError, match=r"\.1 is the same module as .*\.0"):
        loop.adapter.bind(model)


def test_sub_modules_on_some_tokens_leave_the_other_streams_whole(loop):
    """What may run on some tokens gives those tokens fresh, as a full run would, and the others as cached."""
    index = torch.tensor([0, 2, 3])

    @dataclass(frozen=True)
    class Tokens(ReusePolicy):
        part: Part = Part.MLP
        full: bool = False

        @property
        def parts(self):
            return frozenset({self.part})

        def decide(self, state, call, site):
            partial = call.step.index == 1 and not self.full and site.part in kinds[site.kind].partial
            return Partial(index) if partial else Recompute()

        def end_forward(self, state, call):
            values.setdefault(self.full, []).append([call.history(site)[-1].value for site in call.run.sites])

    kinds = {facts.kind: facts for facts in loop.adapter.blocks}
    able = [part for part in Part if any(part in facts.partial for facts in loop.adapter.blocks)]
    if not able:
        pytest.skip("nothing in this family is known to run on some tokens")
    for part in able:
        values = {}
        for full in (False, True):
            with session(loop, Tokens(part, full)) as s:
                assert bool(loop(num_steps=2).isfinite().all())
        first = next(i for i, site in enumerate(s.sites) if part in kinds[site.kind].partial)
        before, mixed, fresh = values[False][0][first][0], values[False][1][first][0], values[True][1][first][0]
        order = kinds[s.sites[first].kind].partial[part]
        assert mixed.shape == fresh.shape
        changed = (mixed != before).any(dim=-1).any(dim=0).nonzero().flatten()
        num_text = 0 if order == "video" else mixed.shape[1] - num_video_tokens(loop)
        offset = num_text if order == "text+video" else 0
        assert set(changed.tolist()) <= {*(index + offset).tolist(), *range(offset)}
        assert set((index + offset).tolist()) <= set(changed.tolist())
        if part is Part.MLP:  # each token's MLP is its own, so it is what a full run gives
            assert torch.allclose(mixed[:, index + offset], fresh[:, index + offset], rtol=1e-4, atol=1e-5)
            assert torch.allclose(mixed[:, :offset], fresh[:, :offset], rtol=1e-4, atol=1e-5)


def num_video_tokens(loop):
    seen = []

    class Look(EverySecond):
        def decide(self, state, call, site):
            seen.append(call.input()[0].shape[1])
            return Recompute()

    with session(loop, Look()):
        loop(num_steps=1)
    return seen[0]


def test_what_can_not_run_on_some_tokens_says_so(loop):
    class Tokens(EverySecond):
        parts = frozenset(part for part in Part if part.inside_block or part is Part.BLOCK)

        def decide(self, state, call, site):
            facts = next(f for f in loop.adapter.blocks if f.kind is site.kind)
            return (
                Partial(torch.tensor([0])) if site.part not in facts.partial and call.step.index == 1 else Recompute()
            )

    policy = Tokens()
    able = {(f.kind, p) for f in loop.adapter.blocks for p in f.partial}
    sites = ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=loop.scheduler).sites
    if all((site.kind, site.part) in able for site in sites):
        pytest.skip("every part of this family runs on some tokens")
    with pytest.raises(ValueError, match=r"can not run on some tokens \(possible: "), session(loop, policy):
        loop(num_steps=2)


def test_regions_show_the_policy_one_layout(passable):
    """Latte's first and last block fold different axes into the batch; what is observed can be subtracted."""

    @dataclass(frozen=True)
    class Watch(ReusePolicy):
        storage: str = "residual"
        parts = frozenset({Part.TRUNK})

        def decide(self, state, call, site):
            return Recompute()

        def observe(self, state, call, site, fresh, cached):
            change = fresh[0] - call.input()[0]
            if cached is not None:
                seen.append(float((change - cached.value[0]).abs().max()) / float(change.abs().max()))

    seen = []
    inputs = passable.adapter.example_inputs(passable.model, 2, torch.Generator().manual_seed(0))
    latent = stacked(inputs.pop(passable.adapter.latent_input))
    with torch.no_grad(), ReuseEngine(passable.adapter.bind(passable.model), Watch(), timesteps=[500, 400]) as s:
        for index in (0, 1):
            s.step(index)
            passable._call(latent, torch.tensor(500), inputs)
    assert seen == [0.0]


def test_threads_that_share_a_model_have_their_own_sessions_and_policies(loop):
    @dataclass(frozen=True)
    class SubModules(EverySecond):
        parts = frozenset({Part.ATTENTION} if keeps_aside(loop) else {Part.ATTENTION, Part.TRUNK})

        def decide(self, state, call, site):
            return Reuse() if site.part is Part.ATTENTION and call.step.index % 2 else Recompute()

    policies = [EverySecond(), SubModules(), never(loop), EverySecond(storage="residual")]
    loops = [Loop(loop.adapter, loop.model, scheduler=copy.deepcopy(loop.scheduler)) for _ in policies]
    expected = []
    for i, (own, policy) in enumerate(zip(loops, policies)):
        with session(own, policy) as s:
            expected.append((own(seed=i), s.trace.column("decision")))
    together = threading.Barrier(len(policies))
    results = {}

    def work(i):
        with session(loops[i], policies[i]) as s:
            together.wait()
            results[i] = loops[i](seed=i), s.trace.column("decision")
            together.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(policies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (video, decisions) in enumerate(expected):
        assert torch.equal(results[i][0], video)
        assert results[i][1] == decisions


def halved(value):
    """Every floating-point tensor in a nest of arguments, in bfloat16."""
    if isinstance(value, torch.Tensor):
        return value.bfloat16() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: halved(entry) for name, entry in value.items()}
    return type(value)(halved(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def test_half_precision(loop):
    own = Loop(loop.adapter, tiny_transformer(loop.adapter).to(torch.bfloat16))
    call = own._call
    own._call = lambda latent, t, inputs: call(latent.bfloat16(), t, halved(inputs)).float()
    bare = own()
    with session(own, never(own)):
        assert torch.equal(own(), bare)
    with session(own, EverySecond()) as s:
        own()
    assert s.cache.peak_bytes > 0
