"""Which tokens are chosen, what becomes of their values and of the others', and what it costs."""

import math
from dataclasses import dataclass

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn
from toys import Loop, SmoothDiT, ToyAdapter, letters, run_smooth, tiny_transformer, toy_session

from fsframework.core import ADAPTERS, BlockList, Kind, Part, ReuseEngine, tokens
from fsframework.models._attention import attention_map, wan_attention_map
from fsframework.models.opensora_1_2.block import CrossAttention
from fsframework.policies.combine import Combined
from fsframework.policies.toca import ToCa

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")

SIMPLE = dict(attention_interval=4, mlp_interval=4, warmup=1, ratio=0.5, mlp_factor=1.0, score="norm")


class TenTimes(nn.Module):
    """Ten times each token; notes what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x[..., 0].tolist())
        return 10 * x


class MlpOnly(nn.Module):
    """x + 10 x."""

    def __init__(self):
        super().__init__()
        self.attn1, self.ff = nn.Identity(), TenTimes()

    def forward(self, hidden_states, timestep):
        return hidden_states + self.ff(hidden_states)


class OneMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([MlpOnly()])

    def forward(self, hidden_states, timestep, return_dict=False):
        return (self.transformer_blocks[0](hidden_states, timestep),)


def run_numbers(policy, rows, num_steps):
    """Each token is one number, (step + 1) times `rows` [B, N]; gives the session, the MLP's inputs and its values."""
    model, x, values = OneMlp(), torch.tensor(rows)[..., None], []
    with torch.no_grad(), toy_session(model, policy, num_steps) as session:
        for step in range(num_steps):
            now = (step + 1) * x
            values.append((model(now, torch.full((len(x),), float(step)))[0] - now)[..., 0].tolist())
    return session, model.transformer_blocks[0].ff.seen, values


def test_tokens_of_the_highest_norm_are_recomputed_and_the_others_keep_their_value():
    policy = ToCa(**SIMPLE, age_weight=0.0)
    session, seen, values = run_numbers(policy, [[3.0, 1.0, 2.0, 5.0]], 3)
    assert [sorted(row) for (row,) in seen] == [[1, 2, 3, 5], [6, 10], [9, 15]]
    assert values == [[[30, 10, 20, 50]], [[60, 10, 20, 100]], [[90, 10, 20, 150]]]
    assert session.trace.decisions("joint.0.mlp") == "CPP"


def test_the_age_over_the_interval_makes_tokens_take_turns():
    """Norms over their length sqrt(39): .48 .16 .32 .80; a visit of age adds 4 / 4."""
    policy = ToCa(**SIMPLE, age_weight=4.0)
    session, seen, values = run_numbers(policy, [[3.0, 1.0, 2.0, 5.0]], 6)
    assert [sorted(row) for (row,) in seen[1:4]] == [[6, 10], [3, 6], [12, 20]]
    assert values[3] == [[120, 30, 60, 200]]
    assert session.trace.decisions("joint.0.mlp") == "CPPPCP"
    assert sorted(seen[5][0]) == [18, 30]  # the full step made all ages 0 again


def test_a_batch_shares_one_choice_by_the_mean_unless_each_sample_has_its_own():
    rows = [[4.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 9.0]]  # means 2.5, 1, 1, 5
    options = {**SIMPLE, "ratio": 0.25, "age_weight": 0.0}
    _, shared, _ = run_numbers(ToCa(**options), rows, 2)
    assert shared[1] == [[2], [18]]
    _, own, values = run_numbers(ToCa(**options, shared=False), rows, 2)
    assert own[1] == [[8], [18]]
    assert values[1] == [[80, 10, 10, 10], [10, 10, 10, 180]]


def test_chosen_tokens_are_what_a_full_recompute_gives_and_the_others_what_was_cached():
    model, policy = SmoothDiT(num_blocks=1), ToCa(**{**SIMPLE, "attention_interval": 1}, age_weight=0.0)
    kept = {}

    class Watch(ToCa):
        def end_forward(self, state, call):
            kept.setdefault(self.ratio, []).append(call.history(call.run.sites[-1])[-1].value[0])

    for ratio in (0.5, 1.0):
        with toy_session(model, Watch(**{**SIMPLE, "attention_interval": 1, "ratio": ratio}, age_weight=0.0), 2):
            run_smooth(model, 2)
    old, mixed, fresh = kept[0.5][0], kept[0.5][1], kept[1.0][1]
    changed = (mixed != old).any(dim=-1)
    assert changed.sum() == 3  # half of six tokens
    assert torch.allclose(mixed[changed], fresh[changed], atol=1e-6)
    assert not torch.allclose(old[changed], fresh[changed], atol=1e-3)
    with toy_session(model, policy, 2) as session:
        run_smooth(model, 2)
    flops = [f for f, site in zip(session.trace.column("flops"), session.trace.column("site")) if site == "joint.0.mlp"]
    assert flops[1] / flops[0] == pytest.approx(3 / 6)


def test_a_token_that_is_not_a_number_is_recomputed_first():
    assert tokens.highest(torch.tensor([[1.0, math.nan, 3.0]]), 1).tolist() == [[1]]


def test_a_part_with_too_few_tokens_or_a_factor_of_0_is_reused_as_a_whole():
    for options in ({"ratio": 0.2}, {"mlp_factor": 0.0}, {"ratio": 0.0}):
        session, seen, _ = run_numbers(ToCa(**{**SIMPLE, **options}), [[1.0, 2.0, 3.0, 4.0]], 6)
        assert session.trace.decisions("joint.0.mlp") == "CRRRCR"
        assert len(seen) == 2


def test_the_number_of_tokens_is_rounded_down_and_within_what_there_is():
    assert [tokens.num_chosen(f, n) for f, n in ((0.1495, 64), (0.29, 100), (0.3, 3), (2.0, 5), (-0.005, 5))] == [
        9, 29, 0, 5, 0,
    ]  # fmt: skip


def test_entropy_and_ages_by_hand():
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    assert tokens.entropy(weights)[0].tolist() == pytest.approx([0, math.log(2)])
    assert tokens.aged(torch.tensor([[0, 1, 2]]), torch.tensor([[2]])).tolist() == [[1, 2, 0]]
    assert tokens.over_samples(torch.tensor([[1.0], [2.0], [3.0], [6.0]]), 2).tolist() == [[2], [4]]
    assert tokens.for_rows(torch.tensor([[0], [1]]), 4).tolist() == [[0], [1], [0], [1]]
    assert tokens.for_rows(torch.tensor([[2, 3]]), 4).tolist() == [2, 3]


def test_a_random_choice_depends_on_the_seed_and_not_on_what_ran_before():
    def videos(seed):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, ToCa(**{**SIMPLE, "score": "random"}, seed=seed), 8) as session:
            out = []
            for _ in range(2):
                session.new_video()
                out.append(run_smooth(model, 8)[-1])
        return out

    (first, second), (other, _) = videos(0), videos(1)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_two_videos_of_different_length_equal_each_alone():
    loop, policy = guided("opensora"), ToCa(age_weight=1.0)
    alone = []
    for settings in (dict(num_steps=7), dict(num_steps=5, seed=1, batch=2)):
        with session_on(loop, policy):
            alone.append(loop(**settings))
    with session_on(loop, policy):
        assert torch.equal(loop(num_steps=7), alone[0])
        assert torch.equal(loop(num_steps=5, seed=1, batch=2), alone[1])


def guided(family):
    adapter = ADAPTERS[family]()
    return Loop(adapter, tiny_transformer(adapter))


def session_on(loop, policy):
    facts = {"family": ADAPTERS.name_of(type(loop.adapter))}
    return ReuseEngine(loop.adapter.bind(loop.model), policy, scheduler=lambda: loop.scheduler, facts=facts)


def test_open_sora_as_published():
    loop = guided("opensora")
    with session_on(loop, ToCa()) as session:
        loop(num_steps=9)
    found = letters(session, ["spatial.0.attention", "temporal.1.cross_attention", "temporal.2.mlp"])
    assert list(found.values()) == ["CCCCRRCRR", "CCCRRRCRR", "CCCCPPCPP"]
    assert set(session.trace.share.values()) == {9 / 64}  # floor(0.1495 * 64)
    run = next(iter(session._last.runs.values()))
    assert session.cache.peak_counts()["joint"] == (ToCa().num_cached(run), ToCa().num_kept(run)) == (18, 12)
    assert ToCa().schedule(run) == [True] * 3 + [False] * 3 + [True] + [False] * 2


def test_attention_takes_the_tokens_whose_attention_to_the_text_is_spread_most():
    """Both halves' entropies are averaged; the weights are those that the module's own output is made with."""
    loop, seen, weights = guided("opensora"), {}, {}

    class Watch(ToCa):
        def decide(self, state, call, site):
            decision = super().decide(state, call, site)
            if site.name == "spatial.1.mlp" and call.step.index == 1:
                seen["index"] = set(decision.index.tolist())
            return decision

        def observe(self, state, call, site, fresh, cached):
            if site.name == "spatial.1.cross_attention" and call.step.index == 0:
                weights["all"] = call.probe("attention_map")
            super().observe(state, call, site, fresh, cached)

    with session_on(loop, Watch(warmup=1)):
        loop(num_steps=2)
    p = weights["all"]
    assert p.shape == (2, 64, 5)
    assert torch.allclose(p.sum(-1), torch.ones(2, 64))
    assert p[1, :, 3:].abs().max() == 0  # the second sample has three text tokens
    spread = -(p * (p + 1e-30).log()).sum(-1).mean(0)
    assert seen["index"] == set(spread.argsort(descending=True)[:9].tolist())


@pytest.mark.parametrize("family", ["wan", "pixart", "latte"])
def test_the_score_of_other_families_is_of_their_own_cross_attention(family):
    """The tokens that a partial step recomputes are those with the highest entropy at the full one before."""
    seen, entropies = {}, {}

    @dataclass(frozen=True)
    class Watch(ToCa):
        def decide(self, state, call, site):
            decision = super().decide(state, call, site)
            if site.name == WATCHED[family] and call.step.index == 1:
                seen[call.branch] = decision.index
            return decision

        def observe(self, state, call, site, fresh, cached):
            if site.start == 0 and site.part is Part.CROSS_ATTENTION and call.step.index == 0:
                p = call.probe("attention_map")
                assert torch.allclose(p.sum(-1), torch.ones(p.shape[:2]), atol=1e-5)
                entropies[call.branch] = -(p * (p + 1e-30).log()).sum(-1)
            super().observe(state, call, site, fresh, cached)

    policy = Watch(score="attention", warmup=1, ratio=0.3, shared=False)
    if family == "latte":  # its temporal blocks have no attention to the text
        policy = Combined(policies=[policy], only=["spatial.*"])
    loop = guided(family)
    with session_on(loop, policy) as session:
        loop(num_steps=2, session=session, sequential=loop.adapter.guidance == "sequential")
    assert seen
    for branch, index in seen.items():
        index = torch.atleast_2d(index)  # one row has no axis of rows
        expected = entropies[branch].argsort(dim=-1, descending=True)[:, : index.shape[-1]]
        assert index.shape[-1] >= 1
        assert [set(row) for row in index.tolist()] == [set(row) for row in expected.tolist()]


WATCHED = {"wan": "joint.0.mlp", "pixart": "joint.0.mlp", "latte": "spatial.0.mlp"}


def test_weights_of_diffusers_cross_attention_give_its_output():
    torch.manual_seed(0)
    x, text = torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    mask = torch.zeros(2, 1, 4)
    mask[1, :, 2:] = -10000.0  # the second sample has two words
    module = Attention(query_dim=8, cross_attention_dim=8, heads=1, dim_head=8)
    weights = attention_map(module, {"hidden_states": x, "encoder_hidden_states": text, "attention_mask": mask})
    assert torch.allclose(module(x, text, mask), module.to_out[0](weights @ module.to_v(text)), atol=1e-6)
    assert weights[1, :, 2:].max() < 1e-6
    two = Attention(query_dim=8, cross_attention_dim=8, heads=2, dim_head=4)
    both = two.get_attention_scores(*map(two.head_to_batch_dim, (two.to_q(x), two.to_k(text))))
    found = attention_map(two, {"hidden_states": x, "encoder_hidden_states": text})
    assert torch.allclose(found, both.unflatten(0, (2, 2)).mean(1), atol=1e-6)


def test_weights_of_wans_cross_attention_give_its_output_also_beside_an_image():
    torch.manual_seed(0)
    x, text = torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    module = WanAttention(8, heads=1, dim_head=8, cross_attention_dim_head=8, processor=WanAttnProcessor())
    weights = wan_attention_map(module, {"hidden_states": x, "encoder_hidden_states": text})
    assert torch.allclose(module(x, text), module.to_out[0](weights @ module.to_v(text)), atol=1e-6)
    module = WanAttention(
        8, heads=1, dim_head=8, cross_attention_dim_head=8, added_kv_proj_dim=8, processor=WanAttnProcessor()
    )
    text = torch.randn(2, 3 + 512, 8)
    weights = wan_attention_map(module, {"hidden_states": x, "encoder_hidden_states": text})
    assert weights.shape == (2, 6, 512)
    words = attention_map(module, {"hidden_states": x, "encoder_hidden_states": text[:, 3:]})
    assert torch.equal(weights, words)


def test_weights_of_open_soras_cross_attention_give_its_output():
    torch.manual_seed(0)
    module, x, y = CrossAttention(8, 1), torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    values = module.kv_linear(y)[..., 8:]
    assert torch.allclose(module(x, y, mask), module.proj(module.weights(x, y, mask) @ values), atol=1e-6)
    two_heads = CrossAttention(8, 2)
    assert torch.allclose(two_heads.weights(x, y).sum(-1), torch.ones(2, 6))


def test_maps_are_made_in_the_steps_whose_weights_a_choice_needs():
    made = []

    class Watch(ToCa):
        def observe(self, state, call, site, fresh, cached):
            (before,) = call.kept(f"importance of {site}") or (None,)
            super().observe(state, call, site, fresh, cached)
            (after,) = call.kept(f"importance of {site}") or (None,)
            if site.name == "spatial.0.cross_attention" and after is not before:
                made.append(call.step.index)

    loop = guided("opensora")
    with session_on(loop, Watch(cross_interval=4, mlp_interval=2, warmup=2)):
        loop(num_steps=9)
    # Cross-attention runs in full in steps 0, 1, 4 and 8, the MLP on some tokens in 3, 5 and 7.
    assert made == [1, 4]


def test_text_beside_the_video_is_always_recomputed():
    loop = guided("cogvideox")
    with session_on(loop, ToCa(warmup=1, ratio=0.25, mlp_factor=1.0)) as session:
        loop(num_steps=2)
    (share,) = set(session.trace.share.values())
    num_video = 4 * 4 * 3
    assert share == (num_video // 4 + 5) / (num_video + 5)


class NoMlp(ToyAdapter):
    blocks = (BlockList("transformer_blocks", Kind.JOINT, partial={Part.ATTENTION: "video"}),)


def test_a_family_that_can_not_run_the_part_on_some_tokens_is_refused_at_the_first_forward():
    model = SmoothDiT(num_blocks=1)
    with (
        pytest.raises(ValueError, match=r"possible: attention\).*Or set mlp_factor=0"),
        ReuseEngine(NoMlp().bind(model), ToCa(score="norm"), timesteps=range(8)) as session,
    ):
        run_smooth(model, 8)
    assert session.trace.step[-1] == 0
    with ReuseEngine(NoMlp().bind(model), ToCa(mlp_factor=0.0, warmup=1), timesteps=range(8)) as session:
        run_smooth(model, 8)
    assert session.trace.decisions("joint.0.mlp") == "CRRCRRCR"


def test_attention_without_maps_is_refused_in_words():
    with pytest.raises(ValueError, match=r"joint\.0\.mlp has none. Use score='norm' or 'random'"):
        run_numbers(ToCa(**{**SIMPLE, "score": "attention"}), [[1.0, 2.0]], 2)
    loop = guided("allegro")
    with pytest.raises(ValueError, match="needs the weights of cross-attention: Allegro has no probe 'attention_map'"):
        with session_on(loop, ToCa(score="attention", warmup=1)):
            loop(num_steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp_interval": 0}, "toca: mlp_interval=0 must be at least 1"),
        ({"ratio": 1.5}, "toca: ratio=1.5 must be 0 to 1"),
        ({"cross_factor": -0.1}, "toca: cross_factor=-0.1 must be >= 0"),
        ({"age_weight": math.nan}, "toca: age_weight=nan must be >= 0"),
        ({"score": "entropy"}, "toca: score='entropy' must be one of attention, norm, random"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ToCa(**options)
