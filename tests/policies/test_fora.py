from dataclasses import replace

import pytest
import torch
from toys import SmoothDiT, letters, run_smooth, toy_session

from fsframework.policies import ForecastReuse
from fsframework.policies.fora import Fora


def smooth(policy, num_steps, num_blocks=1):
    model = SmoothDiT(num_blocks=num_blocks)
    with toy_session(model, policy, num_steps) as session:
        out = run_smooth(model, num_steps)
    return session, model, out


@pytest.mark.parametrize(
    ("num_steps", "interval", "count_from", "expected"),
    [
        (10, 3, "end", "CRRCRRCRRC"),  # the countdown 9..0: multiples of 3
        (11, 3, "end", "CCRRCRRCRRC"),  # 10..0: the first is computed, then 9, 6, 3, 0
        (9, 3, "end", "CRCRRCRRC"),  # 8..0: the first, then 6, 3, 0
        (11, 3, "start", "CRRCRRCRRCR"),
        (5, 2, "end", "CRCRC"),
        (4, 9, "end", "CRRC"),
        (1, 3, "end", "C"),
    ],
)
def test_attention_and_mlp_are_computed_every_interval_counted_from_the_last_step(
    num_steps, interval, count_from, expected
):
    policy = Fora(interval=interval, count_from=count_from)
    session, _, _ = smooth(policy, num_steps)
    assert letters(session) == {"joint.0.attention": expected, "joint.0.mlp": expected}
    run = next(iter(session._last.runs.values()))
    assert policy.schedule(run) == [letter == "C" for letter in expected]


def test_the_gate_of_the_step_multiplies_the_old_output():
    _, model, out = smooth(Fora(interval=2, count_from="start"), 2)
    (layer,) = model.transformer_blocks
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    t0, t1 = torch.zeros(1), torch.ones(1)
    with torch.no_grad():
        attention = layer.attn1(x)
        mlp = layer.ff(x + layer.gate(t0) * attention)
        expected = 1.1 * x + layer.gate(t1) * attention + layer.gate(t1) * mlp
    assert torch.allclose(out[1], expected, atol=1e-6)


def test_one_part_alone():
    session, _, _ = smooth(Fora(interval=2, attention=False, count_from="start"), 4)
    assert letters(session) == {"joint.0.mlp": "CRCR"}
    assert session.cache.peak_bytes == 6 * 8 * 4


def test_one_value_per_part_is_cached_and_none_where_nothing_is_reused():
    hidden_state = 6 * 8 * 4
    session, _, _ = smooth(Fora(interval=2), 5, num_blocks=3)
    assert session.cache.peak_bytes == 2 * 3 * hidden_state
    session, _, _ = smooth(Fora(interval=1), 5, num_blocks=3)
    assert session.cache.peak_bytes == 0
    assert set(session.trace.column("decision")) == {"recompute"}


def test_under_a_forecast_the_two_newest_values_are_kept():
    """C C R R C: step 2 goes on from steps 0 and 1, of which alone FORA keeps only the latter."""
    policy = Fora(interval=3)
    session, model, out = smooth(ForecastReuse(policy), 5)
    assert letters(session) == {"joint.0.attention": "CCFFC", "joint.0.mlp": "CCFFC"}
    assert session.cache.peak_bytes == 2 * 2 * 6 * 8 * 4
    run = session._last.runs["joint"]
    assert policy.num_cached(replace(run, depth=2)) == 2 * policy.num_cached(run) == 4
    (layer,) = model.transformer_blocks
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (layer.attn1(x * (1 + 0.1 * s)) for s in (0, 1))
        t = [torch.full((1,), float(s)) for s in range(3)]
        mlps = [
            layer.ff(x * (1 + 0.1 * s) + layer.gate(t[s]) * attention) for s, attention in enumerate((first, second))
        ]
        expected = 1.2 * x + layer.gate(t[2]) * (2 * second - first + 2 * mlps[1] - mlps[0])
    assert torch.allclose(out[2], expected, atol=1e-5)


def test_two_videos_in_one_session_equal_each_alone():
    alone = []
    for seed in (1, 2):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, Fora(), 7):
            alone.append(torch.stack(run_smooth(model, 7, seed=seed)))
    model = SmoothDiT(num_blocks=2)
    with toy_session(model, Fora(), 7) as session:
        together = [torch.stack(run_smooth(model, 7, seed=seed)) for seed in (1, 2)]
    assert session.num_videos == 2
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"attention": False, "cross_attention": False, "mlp": False}, "all off"),
        ({"count_from": "middle"}, "count_from='middle' must be end or start"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Fora(**options)
