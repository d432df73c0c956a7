import math

import pytest
import torch
from toys import Loop, SmoothDiT, letters, run_smooth, tiny_transformer, toy_session

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS, Kind, Part, ReuseEngine, Run, Site
from fsframework.policies.pab import PyramidAttentionBroadcast
from fsframework.run.resolve import build_policy


def site(part=Part.ATTENTION, kind=Kind.SPATIAL, ordinal=0):
    return Site(part, kind, ordinal, ordinal + 1, ordinal)


def plan(one, timesteps, family="", **options):
    """The decisions at a site as letters."""
    policy = PyramidAttentionBroadcast(**options)
    run = Run(len(timesteps), timesteps, [one], facts={"family": family})
    state = policy.start(run)
    return "".join("R" if type(d).__name__ == "Reuse" else "C" for d in state.decisions[one])


DDIM_50 = [980.0 - 20 * s for s in range(50)]


@pytest.mark.parametrize(
    ("part", "kind", "expected"),
    [
        (Part.ATTENTION, Kind.SPATIAL, "CRCRCRCRCR"),
        (Part.ATTENTION, Kind.TEMPORAL, "CRRRCRRRCR"),
        (Part.CROSS_ATTENTION, Kind.SPATIAL, "CRRRRRCRRR"),
        (Part.CROSS_ATTENTION, Kind.TEMPORAL, "CRRRRRCRRR"),
    ],
)
def test_each_kind_of_attention_has_its_own_range(part, kind, expected):
    assert plan(site(part, kind), [900.0 - s for s in range(10)], "opensora") == expected


@pytest.mark.parametrize("name", ["window_low", "window_high"])
def test_a_window_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match=f"pab: {name}=nan must be a timestep, or infinite"):
        PyramidAttentionBroadcast(**{name: float("nan")})


def test_the_window_is_open_at_both_ends_and_the_phase_counts_from_the_first_step():
    timesteps = [950.0, 930.0, 900.0, 800.0, 700.0, 450.0, 440.0]
    assert plan(site(), timesteps, "opensora") == "CCCRCCC"  # 930 and 450 are not inside; odd steps are reuse steps
    assert plan(site(kind=Kind.TEMPORAL), timesteps, "opensora") == "CCRRCCC"  # first reuse is step 2, not step 3


def test_whole_timesteps_are_compared_with_the_window_but_not_those_of_one_to_zero():
    timesteps = [940.0, 930.4, 800.0, 451.0, 451.0, 450.33]  # Open-Sora at 144 x 256 comes to 450.33
    assert plan(site(), timesteps, "opensora") == "CCCRCC"
    assert plan(site(), [940.0, 930.99, 930.5, 929.9], "opensora") == "CCCR"
    assert plan(site(), [1.0, 0.8, 0.5, 0.3], window_low=0.2, window_high=0.9, spatial=2) == "CRCR"


@pytest.mark.parametrize(
    ("family", "kind", "timesteps", "expected"),
    [
        ("latte", Kind.TEMPORAL, [750.0 - s for s in range(7)], "CRRCRRC"),
        ("cogvideox", Kind.JOINT, [860.0, 849.0, 848.0, 847.0, 101.0, 100.0], "CRCRCC"),
        ("wan", Kind.JOINT, [810.0, 800.0, 799.0, 798.0, 101.0, 100.0], "CCCRCC"),
        ("flux", Kind.SINGLE, [790.0, 780.0, 770.0], "CRC"),
        ("allegro", Kind.TEMPORAL, [790.0, 780.0, 770.0], "CCC"),
    ],
)
def test_published_ranges_and_windows_of_other_families(family, kind, timesteps, expected):
    assert plan(site(kind=kind), timesteps, family) == expected


def test_the_published_mlp_steps_of_latte():
    """Timesteps 720, 640, ... are computed and the two after each reused."""
    reused = {700, 680, 620, 600, 540, 520, 460, 440, 380, 360}
    expected = "".join("R" if t in reused else "C" for t in DDIM_50)
    assert plan(site(Part.MLP), DDIM_50, "latte") == expected
    assert plan(site(Part.MLP, Kind.TEMPORAL, 4), DDIM_50, "latte") == expected
    assert plan(site(Part.MLP, ordinal=5), DDIM_50, "latte") == "C" * 50


def open_sora_timesteps(height, width):
    """Open-Sora's 30 timesteps for 51 frames, 15 in the latent: t -> r t / (1 + (r - 1) t)."""
    r = math.sqrt(height * width / 512**2 * 15)
    return [1000 * r * t / (1 + (r - 1) * t) for t in (1 - s / 30 for s in range(30))]


def test_the_published_mlp_steps_of_open_sora_are_those_of_480_by_864():
    timesteps = open_sora_timesteps(480, 864)
    whole = [int(t) for t in timesteps]
    assert {676, 788, 864} <= set(whole)
    after = {s + k for s, t in enumerate(whole) if t in (676, 788, 864) for k in (1, 2)}
    expected = "".join("R" if s in after else "C" for s in range(30))
    assert plan(site(Part.MLP), timesteps, "opensora") == expected
    timesteps = open_sora_timesteps(240, 426)  # none of VideoSys' integers is among these
    assert not {676, 788, 864} & {int(t) for t in timesteps}
    reused = [int(t) for t, letter in zip(timesteps, plan(site(Part.MLP), timesteps, "opensora")) if letter == "R"]
    assert reused == [849, 828, 759, 734, 649, 617, 583]


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (100, {710, 700, 690, 680}),
        (50, {700, 680}),
        (40, {700, 675}),  # 725 is nearest to 720, 675 to 680
        (20, set()),  # 700 is nearest to both
    ],
)
def test_mlp_windows_hold_at_any_number_of_steps(num_steps, expected):
    timesteps = [1000.0 / num_steps * (num_steps - 1 - s) for s in range(num_steps)]
    reused = plan(site(Part.MLP), timesteps, mlp_windows=((720.0, 680.0),))
    assert {t for t, letter in zip(timesteps, reused) if letter == "R"} == expected


def test_a_step_that_begins_a_window_is_computed_even_inside_another():
    timesteps = [90.0, 80.0, 70.0, 60.0, 50.0]
    assert plan(site(Part.MLP), timesteps, mlp_windows=((90.0, 60.0), (70.0, 50.0))) == "CRCRR"


def test_on_a_real_layer_the_ranges_reach_the_right_modules():
    adapter = ADAPTERS["latte"]()
    loop = Loop(adapter, tiny_transformer(adapter))
    policy = PyramidAttentionBroadcast()
    facts = {"family": "latte"}
    with ReuseEngine(adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, facts=facts) as session:
        loop(num_steps=10)  # timesteps 900, 800, 700, ..., 0; the window is 100 to 800
    found = letters(session)
    assert found["spatial.1.attention"] == "CCCRCRCRCC"
    assert found["temporal.1.attention"] == "CCRCRRCRCC"
    assert found["spatial.1.cross_attention"] == "CCRRRRCRCC"
    assert found["spatial.1.mlp"].count("R") == 0


def test_only_what_is_reused_is_cached():
    model = SmoothDiT(num_blocks=3)
    policy = PyramidAttentionBroadcast(window_low=-1.0, window_high=9.0)
    with toy_session(model, policy, 4) as session:
        run_smooth(model, 4)
    assert letters(session, ["joint.2.attention", "joint.2.mlp"]) == {
        "joint.2.attention": "CRCR",
        "joint.2.mlp": "CCCC",
    }
    run = next(iter(session._last.runs.values()))
    assert session.cache.peak_bytes == policy.num_cached(run) * 6 * 8 * 4 == 3 * 6 * 8 * 4
    assert policy.schedule(run) == [True, False, True, False]


@pytest.mark.parametrize("gate", ["pre", "post"])
def test_before_the_gate_the_new_gate_is_applied_and_after_it_the_old(gate):
    model = SmoothDiT(num_blocks=1)
    (layer,) = model.transformer_blocks
    policy = PyramidAttentionBroadcast(window_low=-1.0, window_high=9999.0, mlp_windows=(), gate=gate)
    x, t0, t1 = torch.randn(1, 6, 8), torch.tensor([0.0]), torch.tensor([500.0])
    with torch.no_grad(), toy_session(model, policy, 2) as session:
        model(x, t0)
        session.step(1)
        out = model(2 * x, t1)[0]
        h = 2 * x + layer.gate(t1 if gate == "pre" else t0) * layer.attn1(x)
        expected = h + layer.gate(t1) * layer.ff(h)
    assert torch.allclose(out, expected, atol=1e-5)
    assert letters(session) == {"joint.0.attention": "CR"}


def test_never_reuses_with_ranges_of_one():
    model = SmoothDiT(num_blocks=1)
    policy = PyramidAttentionBroadcast(**PyramidAttentionBroadcast.never, window_low=-1.0, window_high=9.0)
    with toy_session(model, policy, 4) as session:
        run_smooth(model, 4)
    assert session.trace.decisions("joint.0.attention") == "CCCC"
    assert session.cache.peak_bytes == 0


def test_options_from_a_config():
    policy = build_policy({"name": "pab", "mlp_windows": [[720, 680]], "mlp_blocks": [0, 2], "spatial": 3})
    assert policy.mlp_windows == ((720.0, 680.0),)
    assert policy.mlp_blocks == (0, 2)
    assert isinstance(hash(policy), int)


def test_timesteps_on_another_scale_are_an_error():
    with pytest.raises(ValueError, match="timesteps are 0.9 to 0.1, so none is within the window of window_low=100"):
        plan(site(), [0.9, 0.5, 0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial": 0}, "spatial=0 must be at least 1"),
        ({"cross_attention": -1}, "cross_attention=-1 must be at least 1"),
        ({"gate": "none"}, "gate='none' must be pre or post"),
        ({"window_low": 800.0, "window_high": 100.0}, "window_low=800.0 must be below window_high=100.0"),
        ({"mlp_windows": ((680, 720),)}, r"first > last"),
        ({"mlp_windows": ((680,),)}, r"\(680,\); each is a pair"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidAttentionBroadcast(**options)
