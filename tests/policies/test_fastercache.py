import pytest
import torch
from torch import nn
from toys import Loop, SmoothDiT, ToyAdapter, letters, run_smooth, tiny_transformer, toy_session

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS, Branch, Kind, Part, ReuseEngine, ReuseWarning, Run, Site
from fsframework.policies.fastercache import FasterCache

ATTENTION = Site(Part.ATTENTION, Kind.SPATIAL, 0, 1)
MODEL = Site(Part.MODEL, Kind.SPATIAL, 0, 1)


class Picture(nn.Module):
    """Predicts, for a latent [B, 1, H, W], a picture that depends on the sample's sign and on the timestep."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Copy()])

    def forward(self, hidden_states, timestep, return_dict=False):
        return (self.transformer_blocks[0](hidden_states, timestep),)


class Copy(nn.Module):
    """Adds the timestep."""

    def __init__(self):
        super().__init__()
        self.attn1, self.ff = nn.Identity(), nn.Identity()

    def forward(self, hidden_states, timestep):
        return self.ff(self.attn1(hidden_states)) + timestep.reshape(-1, 1, 1, 1)


class PictureAdapter(ToyAdapter):
    transformer_classes = ("Picture",)


def picture_session(policy, num_steps, **options):
    model = Picture()
    return model, ReuseEngine(PictureAdapter().bind(model), policy, timesteps=list(range(num_steps)), **options)


def only_guidance(**options):
    return FasterCache(attention_interval=1, guidance_start=1, guidance_interval=9, **options)


def only_attention(**options):
    return FasterCache(guidance_interval=1, attention_start=2, **options)


def run_of(num_steps, family="", branch=Branch.JOINT, guided=True):
    return Run(num_steps, list(range(num_steps)), [MODEL, ATTENTION], branch, {"family": family, "guided": guided})


def guided_batch(model, x, num_steps):
    with torch.no_grad():
        return [model(x * (1 + 0.1 * s), torch.full((2,), float(s)))[0] for s in range(num_steps)]


def one_by_one(session, model, x, num_steps):
    """The conditional half (the toys' second) first."""
    out = []
    for s in range(num_steps):
        halves = {}
        for i, branch in ((1, "cond"), (0, "uncond")):
            with torch.no_grad(), session.branch(branch):
                halves[i] = model(x[i : i + 1] * (1 + 0.1 * s), torch.full((1,), float(s)))[0]
        out.append(torch.cat([halves[0], halves[1]]))
    return out


def test_attention_is_carried_on_from_its_last_two_outputs():
    """The toy's attention in a model of one block, weight 0.5: 1.5 A_1 - 0.5 A_0, of steps 1 and 0, then of 3 and 1."""
    model = SmoothDiT(num_blocks=1)
    policy = only_attention(attention_interval=2, attention_phase=1, weight=0.5)
    with toy_session(model, policy, 5) as session:
        out = run_smooth(model, 5)
    assert letters(session) == {"joint.0.attention": "CCFCF"}
    (layer,) = model.transformer_blocks
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attention = [layer.attn1(x * (1 + 0.1 * s)) for s in range(5)]
        for step, newest, before in ((2, 1, 0), (4, 3, 1)):
            t = torch.full((1,), float(step))
            h = x * (1 + 0.1 * step) + layer.gate(t) * (1.5 * attention[newest] - 0.5 * attention[before])
            assert torch.allclose(out[step], h + layer.gate(t) * layer.ff(h), atol=1e-5)


def test_the_weight_of_open_sora_rises_from_step_eight_on():
    """w(s) = (s - 7) / 20 * 0.9 at even steps from 8 on; it goes beyond 0.9 as in the released code."""
    from fsframework.core import Entry, Forecast, Step

    state = FasterCache().start(run_of(30, "opensora", guided=False))
    history = [Entry(0, (torch.zeros(1),)), Entry(1, (torch.ones(1),))]
    found = {
        s: float(d.fn(history, Step(s, 30, 0.0))[0]) for s, d in enumerate(state.attention) if isinstance(d, Forecast)
    }
    assert list(found) == list(range(8, 30, 2))
    assert found[8] == pytest.approx(1 + 0.045)
    assert found[26] == pytest.approx(1 + 0.855)
    assert found[28] == pytest.approx(1 + 0.945)


@pytest.mark.parametrize(
    ("family", "num_steps", "attention", "alone"),
    [
        # Attention is computed in odd steps, and at step 20 where both branches run again.
        ("opensora", 30, {8, 10, 12, 14, 16, 18, 22, 24, 26, 28}, set(range(12, 30)) - {15, 20, 25}),
        # Attention in every third step from 18 on, and at 20, 25, ...
        (
            "cogvideox",
            50,
            {s for s in range(18, 50) if s % 3 and s % 5},
            {s for s in range(18, 50) if s % 5},
        ),
        # diffusers: with timesteps 999 - 20 s, below 681 is from step 16 on and below 641 from step 18 on.
        ("latte", 50, {17, *[s for s in range(18, 50) if s % 2 and s % 5]}, {s for s in range(18, 50) if s % 5}),
    ],
)
def test_published_settings_at_the_published_step_counts(family, num_steps, attention, alone):
    state = FasterCache().start(run_of(num_steps, family))
    assert {s for s, d in enumerate(state.attention) if type(d).__name__ == "Forecast"} == attention
    assert {s for s, made in enumerate(state.synthesized) if made} == alone


def test_published_factors_of_open_sora():
    """1.15 on the low frequencies up to step 25, on the high ones from step 20 on."""
    alpha = FasterCache().start(run_of(30, "opensora")).alpha
    assert [s for s in range(30) if alpha[s][0] == 1.15] == list(range(26))
    assert [s for s in range(30) if alpha[s][1] == 1.15] == list(range(20, 30))
    assert {a for pair in alpha for a in pair} == {1.0, 1.15}


def test_positions_follow_the_number_of_steps():
    state = FasterCache().start(run_of(15, "opensora", guided=False))
    assert [s for s, d in enumerate(state.attention) if type(d).__name__ == "Forecast"] == [4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("sequential", [False, True])
def test_the_unconditional_prediction_is_made_of_the_difference_split_by_frequency(sequential):
    """On 10 x 10 the radius is 2. A wave of frequency 1 is low, one of frequency 4 high; only the low one is doubled."""
    position = torch.arange(10) * (2 * torch.pi / 10)
    low, high = torch.sin(position).expand(10, 10), torch.cos(4 * position)[:, None].expand(10, 10)
    x = torch.stack([3 * low + 5 * high, torch.zeros(10, 10)])[:, None]  # uncond, cond
    policy = only_guidance(alpha=2.0, low_stop=3, high_start=1.0)
    model, session = picture_session(policy, 4, guided=None if sequential else True)
    with session:
        out = []
        for s in range(4):
            t = torch.full((2,), float(s))
            with torch.no_grad():
                if not sequential:
                    out.append(model(x, t)[0])
                    continue
                halves = {}
                for i, branch in ((1, "cond"), (0, "uncond")):
                    with session.branch(branch):
                        halves[i] = model(x[i : i + 1], t[:1])[0]
                out.append(torch.cat([halves[0], halves[1]]))
    branch = "uncond" if sequential else None
    assert session.trace.decisions("model", branch) == "CSSS"
    for s, factor in ((0, 1), (1, 2), (2, 2), (3, 1)):  # alpha acts once, however many steps were skipped
        assert torch.allclose(out[s][0, 0], factor * 3 * low + 5 * high + s, atol=1e-4)
        assert torch.equal(out[s][1], torch.full((1, 10, 10), float(s)))


def test_high_frequencies_have_their_factor_from_their_step_on():
    position = torch.arange(10) * (2 * torch.pi / 10)
    high = torch.cos(4 * position)[:, None].expand(10, 10)
    x = torch.stack([high, torch.zeros(10, 10)])[:, None]
    model, session = picture_session(only_guidance(alpha=3.0, low_stop=0, high_start=2), 3, guided=True)
    with session:
        out = guided_batch(model, x, 3)
    assert torch.allclose(out[1][0, 0], high + 1, atol=1e-4)
    assert torch.allclose(out[2][0, 0], 3 * high + 2, atol=1e-4)


def test_a_mean_is_low_and_odd_sizes_work():
    """6 x 7 has the radius 1: a constant is low, and what comes back has the latent's size."""
    x = torch.stack([torch.full((6, 7), 4.0), torch.zeros(6, 7)])[:, None]
    model, session = picture_session(only_guidance(alpha=1.5, low_stop=1.0, high_start=1.0), 2, guided=True)
    with session:
        out = guided_batch(model, x, 2)
    assert torch.allclose(out[1][0, 0], torch.full((6, 7), 7.0), atol=1e-4)


@pytest.mark.parametrize("guided", [None, False])
@pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")
def test_a_batch_that_is_not_guidance_keeps_all_its_samples(guided):
    x = torch.randn(2, 1, 6, 6)
    model, session = picture_session(only_guidance(), 3, guided=guided)
    with session:
        out = guided_batch(model, x, 3)
    assert session.trace.decisions("model") == "CCC"
    assert session.summary()["forced"] == (2 if guided is None else 0)
    assert torch.allclose(out[2], x * 1.2 + 2, atol=1e-6)
    assert session.cache.peak_bytes == 0


@pytest.fixture
def opensora():
    adapter = ADAPTERS["opensora"]()
    return Loop(adapter, tiny_transformer(adapter))


POLICY = FasterCache(attention_start=2, guidance_start=3, guidance_interval=4)


def session_on(loop, policy, guided=True):
    return ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, guided=guided)


def test_batched_and_sequential_guidance_agree_where_the_conditional_half_comes_first(opensora):
    with session_on(opensora, POLICY) as batched:
        together = opensora(num_steps=9)
    with session_on(opensora, POLICY, guided=None) as sequential:
        apart = opensora(num_steps=9, session=sequential, sequential=True)
    assert torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * together.abs().max().item())
    # Attention is computed at 0, 1 and even steps, both branches run at 0, 1, 2, 4 and 8.
    assert letters(batched, ["model", "spatial.1.attention"]) == {
        "model": "CCCSCSSSC",
        "spatial.1.attention": "CCCFCFCFC",
    }
    assert sequential.trace.decisions("spatial.1.attention", "cond") == "CCCFCFCFC"
    assert sequential.trace.decisions("spatial.1.attention", "uncond") == "CCCCC"
    assert sequential.trace.decisions("model", "uncond") == "CCCSCSSSC"


def test_where_uncond_is_called_first_the_guidance_half_is_forced_to_run_and_it_is_said_once():
    """Latte's sequential order is uncond, cond. All that is left is attention, carried on as without the other half."""
    adapter = ADAPTERS["latte"]()
    loop = Loop(adapter, tiny_transformer(adapter))
    with (
        pytest.warns(ReuseWarning, match="uncond is called before the branch it would be made from") as said,
        session_on(loop, POLICY, guided=None) as session,
    ):
        latent = loop(num_steps=9, session=session, sequential=True)
    assert len([w for w in said if "is called before" in str(w.message)]) == 1
    trace, runs = session.trace, session._last.runs
    forced = [(s, b) for s, b, is_forced in zip(trace.step, trace.branch, trace.forced) if is_forced]
    assert forced == [(s, "uncond") for s in (3, 5, 6, 7)]
    for branch, num_kept in (("uncond", 2), ("cond", 0)):
        assert trace.decisions("model", branch) == "CCCCCCCCC"
        assert trace.decisions("spatial.1.attention", branch) == "CCCFCFCFC"
        num_values, num_tensors = session.cache.peak_counts()[branch]
        assert num_tensors == 0
        assert (POLICY.num_cached(runs[branch]), POLICY.num_kept(runs[branch])) == (num_values, num_kept)
    only = FasterCache(attention_start=2, guidance_interval=1)
    with session_on(loop, only, guided=None) as without:
        assert torch.equal(loop(num_steps=9, session=without, sequential=True), latent)


@pytest.mark.parametrize(
    ("policy", "each"),
    [(POLICY, 2.5), (only_attention(), 2), (FasterCache(attention_interval=1, guidance_start=3), 0)],
)
def test_declared_memory_is_what_was_held(opensora, policy, each):
    """Values per attention: two of the batch, and one of the half that runs alone (of step 6), of half the size."""
    with session_on(opensora, policy) as session:
        opensora(num_steps=9)
    run = session._last.runs["joint"]
    attention = 2 * 4 * 16 * 16 * 4  # two samples, four frames of 16 tokens, 16 channels of 4 bytes
    part = 8 * 4 * 8 * 8 * 4  # half a prediction: 8 channels, 4 frames of 8 x 8
    assert policy.num_cached(run) == each * 6  # three spatial and three temporal blocks
    assert session.cache.peak_bytes == policy.num_cached(run) * attention + policy.num_kept(run) * part
    assert policy.schedule(run) == [
        all(d == 0 for s, d in zip(session.trace.step, session.trace.decision) if s == i) for i in range(9)
    ]


def test_two_videos_in_one_session_equal_each_alone(opensora):
    alone = []
    for options in ({"seed": 0, "num_steps": 9}, {"seed": 1, "num_steps": 7}):
        with session_on(opensora, POLICY):
            alone.append(opensora(**options))
    with session_on(opensora, POLICY):
        assert torch.equal(opensora(seed=0, num_steps=9), alone[0])
        assert torch.equal(opensora(seed=1, num_steps=7), alone[1])


def test_never_is_full_compute(opensora):
    bare = opensora(num_steps=4)
    with session_on(opensora, FasterCache(**FasterCache.never)) as session:
        assert torch.equal(opensora(num_steps=4), bare)
    assert session.cache.peak_bytes == 0


def test_a_latent_without_height_and_width_is_an_error():
    model = SmoothDiT(num_blocks=1)
    with (
        toy_session(model, only_guidance(), 3, guided=True),
        pytest.raises(ValueError, match=r"\[2, 6, 8\], without axes"),
    ):
        guided_batch(model, torch.randn(2, 6, 8), 3)


def test_without_guidance_the_half_that_does_nothing_is_told(recwarn):
    FasterCache().start(run_of(10))
    FasterCache(guidance_interval=1).start(run_of(10, guided=False))
    FasterCache().start(run_of(10, branch=Branch.COND))
    assert not recwarn.list
    with pytest.warns(ReuseWarning, match=r"no guidance .* its guidance_\* options have no effect"):
        FasterCache().start(run_of(10, guided=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_interval": 0}, "attention_interval=0 must be at least 1"),
        ({"guidance_interval": 0}, "guidance_interval=0 must be at least 1"),
        ({"attention_start": 1.5}, "attention_start=1.5 must be a fraction of the steps"),
        ({"high_start": -1}, "high_start=-1"),
        ({"rise": float("nan")}, "rise=nan must be a fraction of the steps"),
        ({"weight": float("nan")}, "weight=nan must be a finite number"),
        ({"alpha": float("inf")}, "alpha=inf must be a finite number"),
        ({"attention_interval": 2, "attention_phase": 2}, "attention_phase=2 must be 0 to attention_interval - 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        FasterCache(**options)
