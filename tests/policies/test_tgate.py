import warnings

import pytest
import torch
from toys import Loop, SmoothDiT, letters, run_smooth, tiny_transformer, toy_session

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS, Branch, Kind, Part, ReuseEngine, Run, Site
from fsframework.policies.tgate import TGate

HIDDEN_STATE = 6 * 8 * 4
ATTENTION = Site(Part.ATTENTION, Kind.SPATIAL, 0, 1)
CROSS = Site(Part.CROSS_ATTENTION, Kind.SPATIAL, 0, 1)


def plans(num_steps, family="", **options):
    """The decisions of attention and cross-attention as letters."""
    run = Run(num_steps, list(range(num_steps)), [ATTENTION, CROSS], facts={"family": family})
    state = TGate(**options).start(run)
    return tuple(
        "".join("R" if type(d).__name__ == "Reuse" else "C" for d in state.decisions[site.part])
        for site in (ATTENTION, CROSS)
    )


def batch(model, x, num_steps):
    """Predictions of a guidance batch x [2, N, C]."""
    with torch.no_grad():
        return [model(x * (1 + 0.1 * s), torch.full((2,), float(s)))[0] for s in range(num_steps)]


def sequential(session, model, x, num_steps):
    """The same, one branch after the other, the conditional one (the second half) first."""
    out = []
    for s in range(num_steps):
        halves = {}
        for i, branch in ((1, "cond"), (0, "uncond")):
            with torch.no_grad(), session.branch(branch):
                halves[i] = model(x[i : i + 1] * (1 + 0.1 * s), torch.full((1,), float(s)))[0]
        out.append(torch.cat([halves[0], halves[1]]))
    return out


@pytest.fixture
def x():
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("num_steps", "family", "options", "attention", "cross"),
    [
        # PixArt: computed at 0, 1, 2, 5 and 9 = g - 1, then always.
        (14, "pixart", {}, "CCCRRCRRRCCCCC", "CCCCCCCCCCRRRR"),
        # 0.4 of 10 steps is g = 4
        (10, "latte", {}, "CCCCCCCCCC", "CCCCRRRRRR"),
        (9, "", {"gate_step": 6, "sp_interval": 2, "warmup": 0}, "CRCRCCCCC", "CCCCCCRRR"),
        (9, "", {"gate_step": 4, "fi_interval": 3}, "CCCCRRCRR", "CCCCRRRRR"),
        (6, "", {"gate_step": 1, "warmup": 0}, "CCCCCC", "CRRRRR"),
        (6, "", {"gate_step": 9, "sp_interval": 5}, "CCCRRC", "CCCCCC"),  # the gate is never reached
        (6, "", dict(TGate.never), "CCCCCC", "CCCCCC"),
    ],
)
def test_the_plan_before_and_after_the_gate(num_steps, family, options, attention, cross):
    assert plans(num_steps, family, **options) == (attention, cross)


def test_after_the_gate_half_of_the_batch_runs_and_the_other_is_given_its_prediction(x):
    model = SmoothDiT(num_blocks=1)
    with toy_session(model, TGate(gate_step=2), 4, guided=True) as session:
        out = batch(model, x, 4)
    assert letters(session) == {"model": "CCSS", "joint.0.attention": "CCCC"}
    assert session.trace.forwards == [
        (0, "joint", 1.0, ""),
        (1, "joint", 1.0, ""),
        (2, "cond", 0.5, ""),
        (3, "cond", 0.5, ""),
    ]
    assert torch.equal(out[3][0], out[3][1])
    (layer,) = model.transformer_blocks
    with torch.no_grad():  # the toy's batch is (uncond, cond)
        assert torch.allclose(out[3][1:], layer(x[1:] * 1.3, torch.tensor([3.0])), atol=1e-6)
    assert not torch.equal(out[1][0], out[1][1])


@pytest.mark.parametrize("average", [True, False])
def test_the_branch_that_is_left_reuses_the_mean_of_both(x, average):
    """Self-attention with b = 4 stands for cross-attention, which the toy has not: the rule after the gate is the same."""
    model = SmoothDiT(num_blocks=1)
    policy = TGate(gate_step=2, fi_interval=4, average=average)
    with toy_session(model, policy, 4, guided=True) as session:
        out = batch(model, x, 4)
    assert session.trace.decisions("joint.0.attention") == ("CCFF" if average else "CCRR")
    (layer,) = model.transformer_blocks
    with torch.no_grad():
        gated = layer.attn1(x * 1.1)  # of step g - 1 = 1
        kept = gated.mean(dim=0, keepdim=True) if average else gated[1:]
        t = torch.tensor([3.0])
        h = x[1:] * 1.3 + layer.gate(t) * kept
        expected = h + layer.gate(t) * layer.ff(h)
    assert torch.allclose(out[3][1:], expected, atol=1e-6)


@pytest.mark.parametrize("average", [True, False])
def test_sequential_guidance_gives_what_batched_guidance_gives(x, average):
    policy = TGate(gate_step=3, fi_interval=3, sp_interval=2, warmup=0, average=average)
    model = SmoothDiT(num_blocks=2)
    with toy_session(model, policy, 9, guided=True) as batched:
        together = batch(model, x, 9)
    with toy_session(model, policy, 9) as apart:
        one_by_one = sequential(apart, model, x, 9)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, one_by_one))
    assert batched.trace.decisions("joint.1.attention") == apart.trace.decisions("joint.1.attention", "cond")
    assert apart.trace.decisions("joint.1.attention", "cond") == "CRCCRRCRR"  # step 3 is a multiple of b
    assert apart.trace.decisions("joint.1.attention", "uncond") == "CRC"
    assert apart.trace.decisions("model", "uncond") == "CCCSSSSSS"
    assert apart.trace.decisions("model", "cond") == "CCCCCCCCC"


def test_a_mean_is_taken_of_the_gate_step_only(x):
    """After a recompute behind the gate, the branch's own newer value is reused."""
    model = SmoothDiT(num_blocks=1)
    with toy_session(model, TGate(gate_step=2, fi_interval=3), 6, guided=True) as session:
        batch(model, x, 6)
    assert session.trace.decisions("joint.0.attention") == "CCFCRR"


@pytest.mark.parametrize("guided", [None, False])
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_a_batch_that_is_not_guidance_keeps_all_its_samples(x, guided):
    model = SmoothDiT(num_blocks=1)
    with toy_session(model, TGate(gate_step=2, fi_interval=4), 4, guided=guided) as session:
        out = batch(model, x, 4)
    assert letters(session) == {"model": "CCCC", "joint.0.attention": "CCRR"}
    assert session.summary()["forced"] == (2 if guided is None else 0)
    assert not torch.equal(out[3][0], out[3][1])
    assert session.policy.schedule(session._last.runs["joint"]) == [True, True, False, False]


def test_without_dropping_each_branch_reuses_its_own(x):
    model = SmoothDiT(num_blocks=1)
    with toy_session(model, TGate(gate_step=2, fi_interval=4, drop_branch=False), 4, guided=True) as session:
        out = batch(model, x, 4)
    assert letters(session) == {"joint.0.attention": "CCRR"}
    (layer,) = model.transformer_blocks
    with torch.no_grad():
        t = torch.full((2,), 3.0)
        h = x * 1.3 + layer.gate(t) * layer.attn1(x * 1.1)
        assert torch.allclose(out[3], h + layer.gate(t) * layer.ff(h), atol=1e-6)


def test_declared_memory_and_schedule(x):
    for options, values in (({}, 0), ({"fi_interval": 9}, 1), ({"fi_interval": 3}, 1.5)):
        policy = TGate(gate_step=2, **options)
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, policy, 6, guided=True) as session:
            batch(model, x, 6)
        run = session._last.runs["joint"]
        assert session.cache.peak_bytes == 2 * HIDDEN_STATE * 2 * values  # two samples, two blocks
        assert policy.num_cached(run) == 2 * values
        assert policy.schedule(run) == [True, True, False, False, False, False]


def test_cross_attention_of_latte_is_that_of_the_gate_step_averaged_over_the_branches():
    adapter = ADAPTERS["latte"]()
    loop = Loop(adapter, tiny_transformer(adapter))
    given = []
    hook = loop.model.transformer_blocks[1].attn2.register_forward_hook(lambda m, args, out: given.append(out.clone()))
    policy = TGate(gate_step=2)
    with ReuseEngine(adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, guided=True) as session:
        loop(num_steps=4)
    hook.remove()
    assert letters(session, ["model", "spatial.1.cross_attention", "spatial.1.attention", "temporal.1.attention"]) == {
        "model": "CCSS",
        "spatial.1.cross_attention": "CCFF",
        "spatial.1.attention": "CCCC",
        "temporal.1.attention": "CCCC",
    }
    assert [len(out) for out in given] == [8, 8, 4, 4]  # two samples of four frames each, then one
    uncond, cond = given[1].chunk(2)
    assert torch.equal(given[2], (uncond + cond) / 2)
    assert torch.equal(given[3], given[2])


def test_a_model_without_cross_attention_has_self_attention_and_the_dropped_branch(x):
    adapter = ADAPTERS["cogvideox"]()
    loop = Loop(adapter, tiny_transformer(adapter))
    policy = TGate(gate_step=6)
    with ReuseEngine(adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, guided=True) as session:
        loop(num_steps=8)
    assert {site.part for site in session.sites} == {Part.MODEL, Part.ATTENTION}
    assert letters(session, ["model", "joint.0.attention"]) == {"model": "CCCCCCSS", "joint.0.attention": "CCCRRCCC"}


def test_two_videos_in_one_session_equal_each_alone(x):
    alone = []
    for scale in (1.0, 2.0):
        model = SmoothDiT()
        with toy_session(model, TGate(fi_interval=2), 6, guided=True):
            alone.append(torch.stack(batch(model, x * scale, 6)))
    model = SmoothDiT()
    with toy_session(model, TGate(fi_interval=2), 6, guided=True):
        together = [torch.stack(batch(model, x * scale, 6)) for scale in (1.0, 2.0)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


def test_never_is_full_compute():
    model = SmoothDiT()
    bare = run_smooth(model, 5)
    with toy_session(model, TGate(**TGate.never), 5, guided=False) as session:
        assert all(torch.equal(a, b) for a, b in zip(run_smooth(model, 5), bare))
    assert session.cache.peak_bytes == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sp_interval": 0}, "sp_interval=0 must be at least 1"),
        ({"fi_interval": 0}, "fi_interval=0 must be at least 1"),
        ({"warmup": -1}, "warmup=-1 must be a step >= 0"),
        ({"gate_step": 0}, "gate_step=0 must be a fraction of the steps, above 0.0"),
        ({"gate_step": 1.5}, "gate_step=1.5"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        TGate(**options)


def test_the_branch_of_a_run_says_whether_a_branch_is_dropped():
    sites = [ATTENTION, CROSS]
    for branch, fi_interval in ((Branch.COND, 9), (Branch.UNCOND, 1)):
        run = Run(5, list(range(5)), sites, branch)
        assert TGate(gate_step=3, fi_interval=fi_interval).schedule(run) == [True, True, True, False, False]
    run = Run(5, list(range(5)), [ATTENTION], Branch.COND)
    assert TGate(gate_step=3).schedule(run) == [True] * 5  # the conditional branch runs as ever
    only_attention = Run(5, list(range(5)), [ATTENTION], Branch.JOINT)
    assert TGate(gate_step=3).schedule(only_attention) == [True] * 5  # it is not known that this is guidance


def test_where_uncond_is_called_first_both_branches_run_on_their_own_values_and_it_is_said_once():
    """Latte's sequential order is uncond, cond: then there is nothing to make uncond from, and no mean to take."""
    adapter = ADAPTERS["latte"]()
    loop = Loop(adapter, tiny_transformer(adapter))
    latents, sessions = [], []
    for options in ({}, {"drop_branch": False}):
        policy = TGate(gate_step=3, **options)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with ReuseEngine(adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler) as session:
                latents.append(loop(num_steps=6, session=session, sequential=True))
        sessions.append(session)
        said = [str(w.message) for w in found if "is called before the branch it would be made from" in str(w.message)]
        assert len(said) == (0 if options else 1)
    assert torch.equal(latents[0], latents[1])
    trace = sessions[0].trace
    for branch in ("cond", "uncond"):
        assert trace.decisions("spatial.1.cross_attention", branch) == "CCCRRR"
        assert trace.decisions("model", branch) == "CCCCCC"
    assert sessions[0].summary()["forced"] == 3
    assert sessions[1].summary()["forced"] == 0
