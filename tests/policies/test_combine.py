import warnings
from dataclasses import dataclass, field

import pytest
import torch
from toys import ScriptedDiT, SmoothDiT, letters, run_scripted, run_smooth, toy_session

from fsframework.core import Forecast, Kind, Part, Recompute, Reuse, ReusePolicy, ReuseWarning, Run, Site, Synthesize
from fsframework.policies import Foresight, ForesightRelease, FullCompute, MagCache, StaticReuse
from fsframework.policies.combine import Combined
from fsframework.policies.forecast import ForecastReuse
from fsframework.policies.taylorseer import TaylorSeer

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


@dataclass(frozen=True)
class Every(ReusePolicy):
    """Reuses its parts in steps that are no multiple of `every`; notes all it is asked and shown in `log`."""

    part: Part = Part.BLOCK
    every: int = 2
    storage: str = "output"
    depth: int = 1
    gate: str = "pre"
    host_reads_per_step: int = 0
    kept: int = 0
    span: tuple = (0, 2)
    log: list = field(default_factory=list, compare=False)

    @property
    def parts(self):
        return frozenset({self.part})

    def spans(self, num_blocks):
        return (self.span,)

    def start(self, run):
        return {"sites": [s.name for s in run.sites], "branch": run.branch, "taken": []}

    def begin_forward(self, state, call):
        taken = call.meter.take("x") if self.host_reads_per_step else None
        if taken:
            state["taken"] += taken

    def decide(self, state, call, site):
        self.log.append(("decide", call.step.index, site.name, [s.name for s in call.run.sites]))
        return Reuse() if call.step.index % self.every else Recompute()

    def observe(self, state, call, site, fresh, cached):
        self.log.append(("observe", call.step.index, site.name))

    def end_forward(self, state, call):
        if self.host_reads_per_step:
            call.meter.post("x", torch.tensor([float(self.every)]))
        if self.kept:
            call.keep("signal", (torch.full((self.kept,), float(self.every)),))
            self.log.append(("kept", call.kept("signal")[0].tolist()))

    def num_host_reads(self, run):
        return self.host_reads_per_step * len(run.sites)

    def num_kept(self, run):
        return 1 if self.kept else 0


def run(policy, num_steps=7, num_blocks=3):
    model = SmoothDiT(num_blocks=num_blocks)
    with toy_session(model, policy, num_steps) as session:
        out = run_smooth(model, num_steps)
    return session, out


def test_attention_by_one_rule_and_the_mlp_by_another():
    session, _ = run(Combined([Every(Part.ATTENTION, 2), Every(Part.MLP, 3)]), num_blocks=2)
    assert letters(session) == {
        "joint.0.attention": "CRCRCRC", "joint.0.mlp": "CRRCRRC", "joint.1.attention": "CRCRCRC", "joint.1.mlp": "CRRCRRC",
    }  # fmt: skip


def test_one_policy_combined_is_that_policy():
    for policy in (Foresight(gamma=2.0, warmup=3, eliminate_dead=True), StaticReuse(), TaylorSeer(interval=3)):
        (alone, out), (combined, same) = run(policy, 10), run(Combined([policy]), 10)
        assert letters(alone) == letters(combined)
        assert all(torch.equal(a, b) for a, b in zip(out, same, strict=True))
        assert alone.cache.peak_bytes == combined.cache.peak_bytes
        assert alone.meter.num_reads == combined.meter.num_reads


def test_inner_parts_are_asked_only_where_the_outer_was_recomputed():
    outer, inner = Every(Part.BLOCK, 2, storage="residual"), Every(Part.MLP, 4)
    session, _ = run(Combined([inner, outer]), num_blocks=1)
    assert session.trace.decisions("joint.0") == "CRCRCRC"
    assert session.trace.decisions("joint.0.mlp") == "CRCR"  # at steps 0, 2, 4, 6
    assert [entry[:3] for entry in inner.log] == [
        ("decide", 0, "joint.0.mlp"), ("observe", 0, "joint.0.mlp"), ("decide", 2, "joint.0.mlp"),
        ("decide", 4, "joint.0.mlp"), ("observe", 4, "joint.0.mlp"), ("decide", 6, "joint.0.mlp"),
    ]  # fmt: skip


def test_each_sees_the_run_with_its_own_sites_only():
    a, b = Every(Part.ATTENTION), Every(Part.MLP)
    run(Combined([a, b]), num_blocks=2)
    attention, mlp = ["joint.0.attention", "joint.1.attention"], ["joint.0.mlp", "joint.1.mlp"]
    assert all(e[3] == attention and e[2] in attention for e in a.log if e[0] == "decide")
    assert all(e[3] == mlp and e[2] in mlp for e in b.log if e[0] == "decide")


def test_posted_values_and_kept_tensors_are_each_ones_own():
    a = Every(Part.ATTENTION, 2, host_reads_per_step=1, kept=1)
    b = Every(Part.MLP, 3, host_reads_per_step=1, kept=2)
    policy = Combined([a, b])
    states = []

    class Spy(Combined):
        def end_forward(self, state, call):
            super().end_forward(state, call)
            states.append(state)

    session, _ = run(Spy([a, b]), num_steps=3, num_blocks=1)
    assert [s["taken"] for s in states[-1].states] == [[2.0, 2.0], [3.0, 3.0]]
    assert states[-1].calls == []  # nothing of a forward is held on to
    assert [e[1] for e in a.log if e[0] == "kept"] == [[2.0]] * 3
    assert [e[1] for e in b.log if e[0] == "kept"] == [[3.0, 3.0]] * 3
    assert policy.host_reads_per_step == 2
    assert session.meter.num_reads == 4
    assert session.cache.peak_bytes == 2 * 6 * 8 * 4 + 3 * 4  # two values [1, 6, 8], three numbers


def test_each_sees_its_own_state_of_the_other_branch():
    seen = []

    @dataclass(frozen=True)
    class Looks(Every):
        def begin_forward(self, state, call):
            seen.append((self.part.value, call.branch, call.state_of("cond"), call.state_of("nowhere")))

        def start(self, run):
            return f"{self.part.value} {run.branch}"

    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), toy_session(model, Combined([Looks(Part.BLOCK), Looks(Part.MODEL)]), 1) as session:
        for branch in ("cond", "uncond"):
            with session.branch(branch):
                model(torch.zeros(1, 1, 1), torch.tensor([0.0]))
    assert seen == [
        (part, branch, f"{part} cond", None) for branch in ("cond", "uncond") for part in ("block", "model")
    ]


def test_storage_depth_and_gate_are_the_owners():
    policy = Combined([
        Every(Part.BLOCK, storage="residual"), Every(Part.TRUNK, depth=3), Every(Part.MLP, gate="post", depth=2),
    ])  # fmt: skip
    session = toy_session(SmoothDiT(num_blocks=1), policy, 4)
    facts = {s.part.value: (policy.storage_of(s), policy.depth_of(s), policy.gate_of(s)) for s in session.sites}
    assert facts == {"trunk": ("output", 3, "pre"), "block": ("residual", 1, "pre"), "mlp": ("output", 2, "post")}
    assert [site.name for site in session.sites] == ["trunk", "joint.0", "joint.0.mlp"]
    assert session.residual_sites == {session.sites[1]}


def test_memory_and_host_reads_are_sums():
    policy = Combined([StaticReuse(storage="residual", warmup=2, interval=3, reuse_steps=1), TaylorSeer(interval=3)])
    session, _ = run(policy, 10)
    own = Run(10, range(10), session.sites)
    assert policy.num_cached(own) == 3 + 2 * 6
    assert session.cache.peak_bytes == policy.num_cached(own) * 6 * 8 * 4
    counted = Combined([Every(Part.ATTENTION, host_reads_per_step=1, kept=1), Every(Part.MLP, host_reads_per_step=2)])
    own = Run(7, range(7), toy_session(SmoothDiT(num_blocks=3), counted, 7).sites)
    assert (counted.num_host_reads(own), counted.num_kept(own)) == (3 + 6, 1)


def test_a_step_recomputes_everything_iff_both_do():
    policy = Combined([
        StaticReuse(storage="residual", warmup=1, interval=2), TaylorSeer(interval=3, first_steps=1),
    ])  # fmt: skip
    sites = toy_session(SmoothDiT(), policy, 7).sites
    # static: C R C R C R C; taylorseer: C F F C F F C
    assert policy.schedule(Run(7, range(7), sites)) == [True, False, False, False, False, False, True]
    assert Combined([Foresight(), TaylorSeer()]).schedule(Run(30, range(30), sites)) is None


def test_a_pattern_gives_each_policy_its_sites():
    first, second = Every(Part.MLP, 2), Every(Part.MLP, 3)
    policy = Combined([first, second], only=["joint.0.*", ["joint.1.mlp", "joint.2.mlp"]])
    session, _ = run(policy)
    assert letters(session) == {"joint.0.mlp": "CRCRCRC", "joint.1.mlp": "CRRCRRC", "joint.2.mlp": "CRRCRRC"}
    assert first.log[0][3] == ["joint.0.mlp"]


def test_a_pattern_applies_to_a_later_denoiser_too():
    policy = Combined([Every(Part.MLP), Every(Part.MLP, depth=4)], only=["joint.0.*", "joint.1.*"])
    assert policy.depth_of(Site(Part.MLP, Kind.JOINT, 1, 2, 1, "transformer_2")) == 4


def test_sites_that_no_pattern_takes_are_recomputed_and_not_kept():
    session, _ = run(Combined([Every(Part.MLP, 2)], only=["joint.1.*"]))
    assert letters(session) == {"joint.0.mlp": "CCCCCCC", "joint.1.mlp": "CRCRCRC", "joint.2.mlp": "CCCCCCC"}
    assert session.cache.peak_bytes == 6 * 8 * 4


def test_spans_come_from_all_in_execution_order_outer_first():
    a, b = Every(Part.SPAN, span=(1, 2)), Every(Part.SPAN, span=(0, 3))
    policy = Combined([a, b], only=["span.1-2", "span.0-3"])
    session, _ = run(policy)
    assert [s.name for s in session.sites] == ["span.0-3", "span.1-2"]


@dataclass(frozen=True)
class Branches(ReusePolicy):
    """Makes the unconditional prediction from the conditional one in odd steps."""

    parts = frozenset({Part.MODEL})

    def decide(self, state, call, site):
        return Synthesize(lambda p: p["cond"]) if call.step.index % 2 else Recompute(keep=False)

    def num_cached(self, run):
        return 0


def test_a_branch_policy_with_a_block_policy_when_branches_run_one_by_one():
    policy = Combined([Branches(), Every(Part.BLOCK, 3)])
    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), toy_session(model, policy, 5) as session:
        for step in range(5):
            for branch in ("cond", "uncond"):
                with session.branch(branch):
                    model(torch.zeros(1, 1, 1), torch.tensor([float(step)]))
    assert session.trace.decisions("model", "cond") == "CCCCC"
    assert session.trace.decisions("model", "uncond") == "CSCSC"
    assert session.trace.decisions("joint.0", "cond") == "CRRCR"
    assert session.trace.decisions("joint.0", "uncond") == "CRR"  # at steps 0, 2, 4


def test_a_branch_policy_with_a_block_policy_on_a_guidance_batch():
    policy = Combined([Branches(), Foresight(gamma=5.0, warmup=4)])
    model, x = SmoothDiT(num_blocks=2), torch.randn(2, 6, 8)
    with torch.no_grad(), toy_session(model, policy, 10, guided=True) as session:
        for step in range(10):
            (out,) = model(x * (1 + 0.1 * step), torch.full((2,), float(step)))
            assert bool(out.isfinite().all())
    assert session.trace.decisions("model", "joint") == "CSCSCSCSCS"
    assert "R" in session.trace.decisions("joint.0")


def test_a_forecast_on_a_combination_and_a_combination_with_a_forecast_in_it():
    rules = [StaticReuse(storage="residual", warmup=2, interval=3), Every(Part.MLP, 2)]
    outside, out = run(ForecastReuse(Combined(rules)), 9)
    inside, same = run(Combined([ForecastReuse(rule) for rule in rules]), 9)
    assert outside.trace.decisions("joint.0") == "CCFFCFFCF"
    assert letters(outside) == letters(inside)
    assert all(torch.equal(a, b) for a, b in zip(out, same, strict=True))


def test_a_combination_in_a_combination():
    inner = Combined([Every(Part.ATTENTION, 2, kept=1), Every(Part.MLP, 3, kept=1)])
    session, out = run(Combined([inner, Every(Part.BLOCK, 5, kept=1, storage="residual")]))
    flat, same = run(Combined([*inner.policies, Every(Part.BLOCK, 5, kept=1, storage="residual")]))
    assert letters(session) == letters(flat)
    assert session.cache.peak_bytes == flat.cache.peak_bytes
    assert all(torch.equal(a, b) for a, b in zip(out, same, strict=True))


def test_a_jump_with_sub_modules_inside():
    policy = Combined([StaticReuse(warmup=2, interval=2), Every(Part.MLP, 3)])
    assert policy.jumps
    session, _ = run(policy)
    assert session.trace.decisions("joint.2") == "CCRCRCR"
    assert session.trace.decisions("joint.2.mlp") == "CRCR"  # at steps 0, 1, 3, 5


def test_two_videos_in_one_session_equal_each_alone_with_another_number_of_steps_between():
    policy = Combined([Foresight(gamma=2.0, warmup=3, storage="residual"), TaylorSeer(interval=3)])

    def videos(seeds):
        model = SmoothDiT(num_blocks=2)
        with toy_session(model, policy, 9):
            return [run_smooth(model, 9, seed=seed) for seed in seeds]

    together = videos([1, 2])
    for seed, video in zip((1, 2), together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(video, videos([seed])[0], strict=True))
    session, _ = run(policy, 14)
    assert len(session.trace.decisions("joint.0")) == 14


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (
            [Foresight(), StaticReuse()],
            "combine: foresight and static both ask about block; a site belongs to one policy",
        ),
        ([TaylorSeer(), TaylorSeer()], r"taylorseer \(policies\[0\]\) and taylorseer \(policies\[1\]\) both ask"),
        ([TaylorSeer(part="model"), TaylorSeer(part="model")], "both ask about model"),
        (
            [Foresight(eliminate_dead=True), TaylorSeer()],
            "combine: foresight has eliminate_dead, which asks for all blocks before anything runs",
        ),
        ([], r"policies must be a list of policies, such as \[foresight, fora\]; found an empty list$"),
        ("static", "policies must be a list of policies, .*; found 'static' alone, which needs no `combine`$"),
        ({"name": "static"}, "found {'name': 'static'} alone, which needs no `combine`$"),
        (StaticReuse(), "found static alone, which needs no `combine`$"),
        (3, "found 3$"),
        ([3], r"combine: policies\[0\] must be a policy, its name, or a mapping"),
        (["foresite"], "unknown policy 'foresite'. Did you mean 'foresight'"),
    ],
)
def test_what_can_not_be_together_is_refused_at_once(policies, message):
    with pytest.raises(ValueError, match=message):
        Combined(policies)


def test_a_jump_beside_spans_or_other_blocks_is_refused():
    @dataclass(frozen=True)
    class Spans(FullCompute):
        parts = frozenset({Part.SPAN})

    with pytest.raises(ValueError, match=r"combine: static jumps over blocks, and so over the span sites of Spans"):
        Combined([Spans(), StaticReuse()])
    with pytest.raises(ValueError, match=r"static jumps over blocks, and so over the block sites of foresight"):
        Combined([StaticReuse(), Foresight()], only=["joint.0", "joint.[1-9]"])
    assert ForesightRelease().jumps
    with pytest.raises(ValueError, match=r"foresight_release jumps over blocks"):
        Combined([ForesightRelease(), StaticReuse(storage="residual")], only=["joint.0", "joint.1"])


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["joint.0.*"], "only must have one entry for each of the 2 policies"),
        ("joint.*", "only must have one entry"),
        ([3, None], r"only\[0\]=3 must be a pattern"),
        ([[], None], r"only\[0\]=\[\] must be a pattern"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(only, message):
    with pytest.raises(ValueError, match=message):
        Combined([TaylorSeer(), TaylorSeer()], only=only)


def test_patterns_that_overlap_are_an_error_at_the_sessions_start():
    policy = Combined([TaylorSeer(), TaylorSeer()], only=["joint.0.*", "*.mlp"])
    with pytest.raises(ValueError, match=r"taylorseer .* both ask about joint.0.mlp"):
        toy_session(SmoothDiT(), policy, 7)


def test_a_policy_left_without_sites_is_an_error():
    policy = Combined([TaylorSeer(), StaticReuse(storage="residual")], only=["spatial.*", None])
    with pytest.raises(
        ValueError,
        match=r"combine: taylorseer asks about .*, and only=\['spatial.\*'\] takes none of its sites. .*Known: \*.attention, "
        r"\*.mlp, joint.\*.$",
    ):
        run(policy)
    with pytest.raises(ValueError, match=r"Every asks about cross_attention, and the model has no such site"):
        run(Combined([TaylorSeer(part="block"), Every(Part.CROSS_ATTENTION)]))


def test_a_misspelt_pattern_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"takes none of its sites. Did you mean 'joint.\*'\? Known: "):
        run(Combined([TaylorSeer()], only=["jont.*"]))
    policy = Combined([TaylorSeer(interval=2, first_steps=1)], only=[["joint.0.*", "*.mlpp"]])
    with pytest.warns(
        ReuseWarning, match=r"'\*.mlpp' in `only` of taylorseer takes no site of .* Did you mean '\*.mlp'"
    ):
        session, _ = run(policy)
    assert session.trace.decisions("joint.0.attention") == "CFCFCFC"


def test_it_needs_calibration_if_one_inside_does():
    assert Combined([StaticReuse(), TaylorSeer()]).calibration() is None
    assert Combined([TaylorSeer(), MagCache(artifact="x.json")]).calibration() is not None


def test_names_and_mappings_will_do():
    policy = Combined([{"name": "static", "storage": "residual"}, "taylorseer"], only=[None, ["*.mlp"]])
    assert policy == Combined([StaticReuse(storage="residual"), TaylorSeer()], only=(None, "*.mlp"))
    assert hash(policy)
    assert Combined().policies == (StaticReuse(),)


def test_forecasts_come_through():
    session, _, out = run_scripted(
        Combined([TaylorSeer(part="block", storage="output", first_steps=2)]), lambda b, t: t, 6
    )
    assert out == [0, 1, 2, 3, 4, 5]
    assert session.trace.decisions("joint.0") == "CCFFFF"
    state = Combined([TaylorSeer()]).start(Run(5, range(5), toy_session(SmoothDiT(), TaylorSeer(), 5).sites))
    assert isinstance(state.states[0].forecast, Forecast)


def test_schedules_that_miss_each_other_are_a_warning():
    # static reuses at 2, 4, 6, ...; taylorseer would recompute at 2, 4, 6, ... only
    outer, inner = StaticReuse(storage="residual", warmup=2, interval=2), TaylorSeer(interval=2, first_steps=1)
    with pytest.warns(
        ReuseWarning, match="taylorseer plans to recompute at least every 2 steps, but is not asked when static"
    ):
        session, _ = run(Combined([inner, outer]), 12)
    assert session.trace.decisions("joint.0.mlp") == "CFFFFFF"  # at 0, 1, 3, 5, ...


def test_the_example_is_no_such_case_and_both_of_it_reuse():
    policy = Combined(**Combined.example)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReuseWarning)
        session, _ = run(policy, 8)
    assert session.trace.decisions("joint.0") == "CCRCCRCC"
    assert session.trace.decisions("joint.0.mlp") == "CCFCFC"  # at 0, 1, 3, 4, 6, 7


def test_with_its_never_options_it_recomputes_everything():
    session, _ = run(Combined(**{**Combined.example, **Combined.never}))
    assert letters(session) == dict.fromkeys(["joint.0", "joint.1", "joint.2"], "CCCCCCC")
