import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toys import ScriptedDiT, SmoothDiT, ToyAdapter, run_scripted, run_smooth, toy_session

from fsframework.core import (
    BlockList,
    Kind,
    Meter,
    Part,
    Recompute,
    Reuse,
    ReuseEngine,
    ReusePolicy,
    ReuseWarning,
    Synthesize,
)
from fsframework.core.clock import Clock
from fsframework.policies import Foresight, ForesightRelease, FullCompute, StaticReuse

X = torch.zeros(1, 4, 2)


def t(value):
    return torch.tensor([float(value)])


def test_a_loop_of_ones_own_is_timed_by_the_timestep_argument():
    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), ReuseEngine(ToyAdapter().bind(model), StaticReuse(warmup=1), timesteps=[900, 600, 300]) as s:
        out = [float(model(X, t(v))[0].mean()) for v in (900, 600, 300)]
    assert out == [900, 900, 300]
    assert s.trace.column("timestep") == [900, 600, 300]


def test_going_back_to_the_first_timestep_begins_a_new_video():
    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), toy_session(model, StaticReuse(warmup=1), 2) as session:
        for _ in range(3):
            for step in range(2):
                model(X, t(step))
        assert session.trace.video == 2
        assert session.trace.decisions("joint.0") == "CR"


def test_going_back_at_all_begins_a_new_video():
    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), ReuseEngine(ToyAdapter().bind(model), StaticReuse(warmup=1), timesteps=[5, 4, 3, 2]) as s:
        for value in (5, 4, 3):
            model(X, t(value))
        out = [float(model(X, t(value))[0].mean()) for value in (4, 3, 2)]
    assert out[0] == 4  # the new video's first step has nothing to reuse
    assert s.trace.video == 1
    assert min(s.trace.column("lag")) >= 0


def test_timesteps_that_can_not_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="holds a value twice"):
        ReuseEngine(ToyAdapter().bind(SmoothDiT()), FullCompute(), timesteps=[3, 2, 2, 1])


def test_a_timestep_that_is_none_of_the_sessions_is_an_error():
    model = ScriptedDiT(1, lambda b, t: t)
    bound = ToyAdapter().bind(model)
    with (
        torch.no_grad(),
        ReuseEngine(bound, FullCompute(), timesteps=[900, 600, 300]),
        pytest.raises(ValueError, match=r"timestep 450, which is none of the 3 .*nearest: 600"),
    ):
        model(X, t(450))


def test_the_step_may_be_told():
    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), toy_session(model, StaticReuse(warmup=1), 2) as session:
        session.step(0)
        model(X, t(77))
        session.step(1)
        assert float(model(X, t(88))[0].mean()) == 77
        with pytest.raises(ValueError, match="step 2 is outside the 2 timesteps"):
            session.step(2)


@pytest.mark.parametrize("given", [{}, {"scheduler": object(), "timesteps": [1]}])
def test_a_session_needs_one_source_of_time(given):
    with pytest.raises(ValueError, match="either the sampler's scheduler or the timesteps"):
        ReuseEngine(ToyAdapter().bind(SmoothDiT()), FullCompute(), **given)


def test_a_class_instead_of_a_policy_is_an_error_that_shows_an_object():
    with pytest.raises(TypeError, match=r"such as Foresight\(gamma=0.5\)"):
        toy_session(SmoothDiT(), Foresight, 2)


def test_sessions_on_one_model_do_not_nest():
    model = SmoothDiT()
    with toy_session(model, FullCompute(), 2) as outer, pytest.raises(ValueError, match="already in a reuse session"):
        toy_session(model, FullCompute(), 2).__enter__()
    assert outer.bound.transformer is model
    assert "forward" not in model.__dict__


def test_a_session_that_saw_no_forward_warns():
    with (
        pytest.warns(ReuseWarning, match="without seeing a single forward"),
        toy_session(SmoothDiT(), FullCompute(), 2),
    ):
        pass


def test_a_trace_before_the_first_video_is_an_error():
    with pytest.warns(ReuseWarning), toy_session(SmoothDiT(), FullCompute(), 2) as session:
        with pytest.raises(RuntimeError, match="no video was generated"):
            session.summary()


def test_a_model_compiled_as_a_whole_is_refused():
    model = SmoothDiT()
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled as a whole"):
        toy_session(model, FullCompute(), 2).__enter__()


def test_compiled_blocks_are_reused_and_their_graph_is_not_built_anew():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def run(model):
        return [model(x * (1 + 0.1 * step), t(step))[0] for step in range(6)]

    x = torch.randn(1, 6, 8)
    torch._dynamo.reset()
    compiled, plain = SmoothDiT(num_blocks=2), SmoothDiT(num_blocks=2)
    for block in compiled.transformer_blocks:
        block.compile(backend=backend)
    with torch.no_grad():
        run(compiled)
        before = len(graphs)
        with toy_session(plain, StaticReuse(warmup=1), 6):
            expected = run(plain)
        with toy_session(compiled, StaticReuse(warmup=1), 6) as session:
            out = run(compiled)
    assert session.trace.decisions("joint.0") == "CRCRCR"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(out, expected))
    assert before > 0
    assert len(graphs) == before
    assert "_fsf_slot" not in compiled.transformer_blocks[0].__dict__


def test_attach_and_detach_do_what_the_with_block_does():
    model = ScriptedDiT(1, lambda b, t: t)
    session = toy_session(model, StaticReuse(warmup=1), 2).attach()
    with torch.no_grad():
        assert [float(model(X, t(s))[0].mean()) for s in (0, 1)] == [0, 0]
        session.detach()
        assert float(model(X, t(1))[0].mean()) == 1


class Spans(ReusePolicy):
    parts = frozenset({Part.SPAN})

    def decide(self, state, call, site):
        raise AssertionError

    def spans(self, num_blocks):
        return ((2, 9),)


class NoCross(Spans):
    parts = frozenset({Part.CROSS_ATTENTION})


def test_sites_the_model_does_not_have_are_an_error():
    with pytest.raises(ValueError, match=r"asks about blocks 2\.\.9, but SmoothDiT has 4 blocks"):
        toy_session(SmoothDiT(), Spans(), 2)
    with pytest.raises(ValueError, match="asks about cross_attention, and ToyAdapter found no such site in SmoothDiT"):
        toy_session(SmoothDiT(), NoCross(), 2)


class Wrong(ToyAdapter):
    blocks = (
        BlockList("transformer_block", Kind.JOINT),
        BlockList(
            "transformer_blocks", Kind.JOINT, streams=("hidden",), returns=("hidden",), attention="attn", mlp=None
        ),
    )
    timestep_input = "time"


def test_wrong_facts_fail_all_at_once_by_name():
    with pytest.raises(ValueError, match="Wrong does not fit SmoothDiT") as error:
        Wrong().bind(SmoothDiT())
    message = str(error.value)
    for part in (
        "no block list 'transformer_block'. Did you mean 'transformer_blocks'?",
        "Gated.forward has no argument 'hidden'",
        "no sub-module 'attn' in Gated. Did you mean 'attn1'?",
        "the forward has no argument 'time'",
    ):
        assert part in message


def test_host_seconds_are_measured_only_on_request():
    session, _, _ = run_scripted(FullCompute(), lambda b, t: t, 2, num_blocks=2, timing=True)
    assert all(seconds > 0 for seconds in session.trace.column("seconds"))
    session, _, _ = run_scripted(FullCompute(), lambda b, t: t, 2)
    assert all(seconds != seconds for seconds in session.trace.column("seconds"))


def test_without_a_trace_the_counters_remain():
    session, _, out = run_scripted(StaticReuse(warmup=1), lambda b, t: t, 4, record=False)
    assert out == [0, 0, 2, 2]
    assert len(session.trace) == 0
    summary = session.summary()
    assert math.isnan(summary["reuse_fraction"])
    assert math.isnan(summary["flops_saved"])
    assert session.cache.peak_bytes > 0


def test_flops_of_a_block_are_counted_from_shapes():
    model = SmoothDiT(num_blocks=3)
    x = torch.randn(2, 6, 8)
    with torch.no_grad(), toy_session(model, StaticReuse(warmup=1), 2) as session:
        for step in range(2):
            model(x, torch.full((2,), float(step)))
    linear = 2 * (2 * 6) * 8 * 8  # multiply-adds count twice: 12 tokens through one 8x8 matrix
    assert session.trace.column("flops") == [2 * linear] * 3 + [0.0] * 3
    summary = session.summary()
    assert summary["flops_full"] == 2 * 3 * 2 * linear
    assert summary["flops_speedup"] == 2.0
    assert summary["reuse_fraction"] == 0.5


class KeptAside(ToyAdapter):
    """As if the model also kept the blocks' outputs for later."""

    blocks = (BlockList("transformer_blocks", Kind.JOINT, kept_aside=True),)


class Trunk(Spans):
    parts = frozenset({Part.TRUNK})


@pytest.mark.parametrize("policy", [StaticReuse(), Trunk(), ForesightRelease(warmup=2)])
def test_a_policy_that_passes_over_blocks_is_refused_where_the_model_keeps_their_outputs(policy):
    with pytest.raises(ValueError, match=r"passes over several blocks.*keeps the outputs of 'transformer_blocks'"):
        ReuseEngine(KeptAside().bind(SmoothDiT()), policy, timesteps=[0])


def test_blocks_whose_outputs_are_kept_are_reused_one_by_one_and_never_eliminated():
    policy = StaticReuse(interval=2, warmup=1, storage="residual")
    model = SmoothDiT()
    with ReuseEngine(KeptAside().bind(model), policy, timesteps=list(range(4))) as session:
        run_smooth(model, 4)
    assert {session.trace.decisions(site) for site in session.sites} == {"CRCR"}


class TwoLists(ToyAdapter):
    """Two lists of one kind."""

    blocks = (BlockList("transformer_blocks", Kind.JOINT), BlockList("transformer_blocks", Kind.JOINT))


def test_two_lists_of_one_kind_are_refused_because_their_sites_would_share_names():
    with pytest.raises(ValueError, match="two block lists of one kind"):
        TwoLists().bind(SmoothDiT())


class LastGivesNoText(nn.Module):
    """Two streams; the last block returns None for the second, as in Stable Diffusion 3."""

    class Block(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.attn1, self.ff, self.last = nn.Linear(4, 4), nn.Linear(4, 4), last

        def forward(self, hidden_states, encoder_hidden_states):
            mixed = hidden_states + self.attn1(encoder_hidden_states).mean(dim=1, keepdim=True)
            return mixed + self.ff(mixed), None if self.last else encoder_hidden_states * 2

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([self.Block(False), self.Block(True)])

    def forward(self, hidden_states, timestep):
        text = hidden_states[:, :2]
        for block in self.transformer_blocks:
            hidden_states, text = block(hidden_states, text)
        assert text is None
        return (hidden_states,)


class TwoStreams(ToyAdapter):
    streams = ("hidden_states", "encoder_hidden_states")
    blocks = (BlockList("transformer_blocks", Kind.JOINT, streams=streams, returns=streams),)


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_a_stream_that_ends_in_a_block_stays_ended_when_the_block_is_reused(storage):
    model, x = LastGivesNoText(), torch.randn(1, 3, 4)
    policy = StaticReuse(interval=2, warmup=1, storage=storage)
    with torch.no_grad(), ReuseEngine(TwoStreams().bind(model), policy, timesteps=[0, 1]) as session:
        (first,) = model(x, torch.tensor([0.0]))
        (second,) = model(2 * x, torch.tensor([1.0]))
    assert {session.trace.decisions(site) for site in session.sites} == {"CR"}
    assert torch.equal(second, first) == (storage == "output")


class Joined(nn.Module):
    """A block on two streams, then one on the stream that joins them, text first."""

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn1, self.ff = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, hidden_states):
            return hidden_states + self.ff(self.attn1(hidden_states))

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([LastGivesNoText.Block(False)])
        self.single_blocks = nn.ModuleList([self.Single()])

    def forward(self, hidden_states, timestep):
        text = hidden_states[:, :2]
        for block in self.transformer_blocks:
            hidden_states, text = block(hidden_states, text)
        joined = torch.cat([text, hidden_states], dim=1)
        for block in self.single_blocks:
            joined = block(joined)
        return (joined[:, 2:],)


class JoinedAdapter(TwoStreams):
    blocks = (
        *TwoStreams.blocks,
        BlockList("single_blocks", Kind.SINGLE, concatenated=("encoder_hidden_states", "hidden_states")),
    )


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_a_trunk_over_joined_streams_is_shown_apart_and_restored_joined(storage):
    @dataclass(frozen=True)
    class Second(ReusePolicy):
        storage: str = "output"
        parts = frozenset({Part.TRUNK})

        def decide(self, state, call, site):
            return Reuse() if call.step.index == 1 else Recompute()

        def observe(self, state, call, site, fresh, cached):
            shapes.append([tuple(t.shape) for t in (*call.input(), *fresh)])

    shapes = []
    model, x = Joined(), torch.randn(1, 3, 4)
    with torch.no_grad():
        bare = model(x, torch.tensor([0.0]))[0]
        with ReuseEngine(JoinedAdapter().bind(model), Second(storage), timesteps=[0, 1]) as session:
            first = model(x, torch.tensor([0.0]))[0]
            second = model(x + 1, torch.tensor([1.0]))[0]
    assert torch.equal(first, bare)
    assert session.trace.decisions("trunk") == "CR"
    assert shapes == [[(1, 3, 4), (1, 2, 4), (1, 3, 4), (1, 2, 4)]]  # video and text, in and out
    # The trunk's input is the latent, so its old change on an input one higher gives an output one higher.
    assert torch.allclose(second, first + (storage == "residual"), atol=1e-6)


class WrongJoin(TwoStreams):
    blocks = (*TwoStreams.blocks, BlockList("single_blocks", Kind.SINGLE, concatenated=("text", "hidden_states")))


def test_streams_that_can_not_be_joined_are_named():
    with pytest.raises(ValueError, match=r"single_blocks: .* can not be \('text', 'hidden_states'\) joined"):
        WrongJoin().bind(Joined())


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_inputs_of_another_shape_in_the_middle_of_a_video_are_recomputed_with_a_warning(storage):
    """Guidance that is switched off: two samples, then one."""
    model = SmoothDiT(num_blocks=2)
    x = torch.randn(2, 6, 8)
    with torch.no_grad():
        bare = model(x[:1], torch.tensor([1.0]))[0]
        with toy_session(model, StaticReuse(interval=2, warmup=1, storage=storage), 4) as session:
            model(x, torch.zeros(2))
            with pytest.warns(ReuseWarning, match=r"changed their shapes at step 1.*from \(2, 6, 8\) to \(1, 6, 8\)"):
                alone = model(x[:1], torch.tensor([1.0]))[0]
            model(x[:1], torch.tensor([2.0]))
            reused = model(x[:1], torch.tensor([3.0]))[0]
    assert torch.equal(alone, bare)
    assert reused.shape == (1, 6, 8)
    assert session.trace.decisions("joint.0") == "CCCR"
    assert session.trace.column("forced")[2] is True


def test_foresight_goes_on_when_the_shape_changes():
    model = SmoothDiT(num_blocks=2)
    x = torch.randn(2, 6, 8)
    with torch.no_grad(), toy_session(model, Foresight(gamma=9.0, warmup=3), 8) as session:
        for step in range(8):
            rows = x if step < 4 else x[:1]
            assert model(rows * (1 + 0.1 * step), torch.full((len(rows),), float(step)))[0].shape == rows.shape
    assert "R" in session.trace.decisions("joint.0")


class TwoValues(nn.Module):
    def __init__(self, in_tuple):
        super().__init__()
        self.attn1, self.ff, self.in_tuple = nn.Linear(4, 4), nn.Linear(4, 4), in_tuple

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.ff(self.attn1(hidden_states))
        return (hidden_states,) if self.in_tuple else (hidden_states, hidden_states * 2)


class TwoValuesDiT(nn.Module):
    def __init__(self, in_tuple):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TwoValues(in_tuple)])

    def forward(self, hidden_states, timestep):
        return (self.transformer_blocks[0](hidden_states)[0],)


def test_a_block_that_returns_more_than_its_adapter_says_is_an_error():
    model = TwoValuesDiT(in_tuple=False)
    with (
        torch.no_grad(),
        toy_session(model, StaticReuse(warmup=1), 2),
        pytest.raises(ValueError, match="returned 2 values"),
    ):
        model(torch.randn(1, 3, 4), t(0))


def test_a_block_that_returns_its_stream_in_a_tuple_gets_it_back_in_one():
    model, x = TwoValuesDiT(in_tuple=True), torch.randn(1, 3, 4)
    with torch.no_grad(), toy_session(model, StaticReuse(warmup=1), 2):
        assert torch.equal(model(x, t(0))[0], model(2 * x, t(1))[0])


def test_where_each_token_has_a_timestep_the_step_is_that_of_the_denoised_ones():
    """LTX with a condition: the first token is at timestep 0 throughout. Half of the scheduler's steps are taken."""
    timesteps = [900.0, 600.0, 300.0, 0.0]
    per_token = torch.tensor([[0.0, 600.0, 600.0]] * 2)
    assert Clock(None, timesteps).own_step(per_token, Meter()) == 1

    class Scheduler:
        num_inference_steps = 4
        begin_index = None

    Scheduler.timesteps = torch.tensor(timesteps)
    clock = Clock(Scheduler(), None)
    clock.open()
    assert clock.new_timesteps(running=False, first=per_token) == [600.0, 300.0, 0.0]


def test_flops_are_counted_for_each_branch():
    model = SmoothDiT(num_blocks=1)
    with torch.no_grad(), toy_session(model, FullCompute(), 2) as session:
        for step in range(2):
            with session.branch("joint"):
                model(torch.randn(2, 6, 8), torch.full((2,), float(step)))
            with session.branch("extra"):
                model(torch.randn(1, 6, 8), t(step))
    whole = {b: max(session.trace.flops_per_site(b).values()) for b in ("joint", "extra")}
    assert whole["joint"] == 2 * whole["extra"]
    assert session.summary()["flops_full"] == 2 * (whole["joint"] + whole["extra"])


class VideoAndAudio(SmoothDiT):
    def forward(self, hidden_states, timestep):
        (video,) = super().forward(hidden_states, timestep)
        return video, video[:, :1] * 3


@dataclass(frozen=True)
class WholeModel(ReusePolicy):
    parts = frozenset({Part.MODEL})
    storage: str = "output"
    answer: object = Reuse()

    def decide(self, state, call, site):
        return self.answer if call.step.index else Recompute()


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_all_that_a_model_predicts_is_put_in_place(storage):
    model, x = VideoAndAudio(num_blocks=1), torch.randn(1, 2, 8)
    with torch.no_grad(), toy_session(model, WholeModel(storage), 2):
        video, audio = model(x, t(0))
        again, sound = model(x + 1, t(1))
    assert torch.allclose(again, video + (storage == "residual"), atol=1e-6)
    assert torch.equal(sound, audio)  # it did not enter as a latent, so it has no residual


def test_one_of_several_predictions_is_not_made_from_another_branch():
    policy = WholeModel(answer=Synthesize(lambda p: p["cond"], branch="uncond"))
    model, x = VideoAndAudio(num_blocks=1), torch.randn(2, 2, 8)
    with (
        torch.no_grad(),
        toy_session(model, policy, 2, guided=True),
        pytest.raises(ValueError, match="predicts 2 things"),
    ):
        for step in range(2):
            model(x, torch.full((2,), float(step)))


def test_a_residual_of_the_whole_model_leaves_the_channels_of_a_condition_out():
    class Conditioned(SmoothDiT):
        def forward(self, hidden_states, timestep):
            return super().forward(hidden_states[..., :8], timestep)

    @dataclass(frozen=True)
    class Whole(ReusePolicy):
        parts = frozenset({Part.MODEL})
        storage: str = "residual"

        def decide(self, state, call, site):
            return Reuse() if call.step.index else Recompute()

    model, x = Conditioned(num_blocks=1), torch.randn(1, 2, 12)
    with torch.no_grad(), toy_session(model, Whole(), 2):
        first = model(x, t(0))[0]
        assert torch.allclose(model(x + 1, t(1))[0], first + 1, atol=1e-6)
