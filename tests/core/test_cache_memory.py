"""What the paper says of memory (arXiv:2506.00329), in bytes: a cache of blocks against one of sub-modules."""

import torch
from toys import Loop, SmoothDiT, run_smooth, tiny_transformer, toy_session

import fsframework as fsf
from fsframework.core import ReuseCache
from fsframework.models.opensora import OpenSora
from fsframework.policies import Foresight, PyramidAttentionBroadcast, StaticReuse

STEPS = 8


def peak_states(policy, **options):
    """The cache's peak in hidden states per pair of a spatial and a temporal block, on a tiny Open-Sora."""
    adapter = OpenSora()
    model = tiny_transformer(adapter)
    loop = Loop(adapter, model)
    shapes = []
    hook = model.spatial_blocks[0].register_forward_hook(lambda block, args, output: shapes.append(output.shape))
    with fsf.reuse(model, policy, scheduler=loop.scheduler, **options) as session:
        loop(STEPS)
    hook.remove()
    run = next(iter(session._last.runs.values()))
    hidden_state = shapes[0].numel() * 4
    num_states = session.cache.peak_bytes / hidden_state
    if not options:
        assert num_states == policy.num_cached(run)  # as declared
    return num_states / len(model.spatial_blocks)


def test_foresight_caches_two_hidden_states_per_layer_pair_where_fine_grained_caching_keeps_six():
    everything = PyramidAttentionBroadcast(
        spatial=2, temporal=2, cross_attention=2, window_low=0, window_high=1001,
        mlp_windows=((900.0, 100.0),), mlp_blocks=tuple(range(28)),
    )  # fmt: skip
    assert peak_states(Foresight(warmup=3, gamma=0.5)) == 2.0  # a spatial and a temporal block's output
    assert peak_states(everything) == 6.0  # attention, cross-attention and MLP of both: the paper's three times as much


def test_static_reuse_of_the_whole_trunk_caches_one_hidden_state():
    adapter = OpenSora()
    num_pairs = len(tiny_transformer(adapter).spatial_blocks)
    assert peak_states(StaticReuse(warmup=2)) == 1.0 / num_pairs


def test_half_the_bytes_in_bfloat16_and_a_quarter_in_float8():
    assert peak_states(Foresight(warmup=3), cache_dtype=torch.bfloat16) == 1.0
    with_factors = peak_states(Foresight(warmup=3), cache_dtype=torch.float8_e4m3fn)
    assert 0.5 < with_factors < 0.51  # four bytes of factor for each value


def test_few_entries_are_put_in_place_where_dead_blocks_are_not_run(monkeypatch):
    """Of eight cached outputs a reuse step puts one in place, the last reused block's; the others only serve to measure."""
    found = []
    original = ReuseCache.last

    def last(self, branch, site):
        found.append(site.start)
        return original(self, branch, site)

    model, num_blocks = SmoothDiT(num_blocks=8), 8
    restored = {}
    for eliminate in (False, True):
        policy = Foresight(gamma=10.0, warmup=3, eliminate_dead=eliminate)
        with toy_session(model, policy, 6) as session, monkeypatch.context() as patch:
            patch.setattr(ReuseCache, "last", last)
            found.clear()
            run_smooth(model, 4)  # step 3 is the first that may reuse
            rows = [row for row in session.trace.rows() if row["step"] == 3]
            assert [row["decision"] for row in rows] == ["reuse"] * num_blocks
            restored[eliminate] = [start for start in found[3 * num_blocks :]]
            assert session.cache.peak_counts() == {"joint": (num_blocks, 0)}
    assert restored[False] == list(range(num_blocks))
    assert restored[True] == [num_blocks - 1]
