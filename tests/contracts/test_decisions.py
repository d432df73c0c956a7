"""One toy policy per kind of decision and per part, on models whose numbers can be worked out by hand."""

from dataclasses import dataclass, field

import pytest
import torch
from toys import Gated, ScriptedDiT, SmoothDiT, ToyAdapter, letters, run_scripted, run_smooth, toy_session

from fsframework.core import (
    Blend,
    Forecast,
    Kind,
    Part,
    Partial,
    Recompute,
    Reuse,
    ReuseEngine,
    ReusePolicy,
    Site,
    Synthesize,
)

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


@dataclass(frozen=True)
class Plan(ReusePolicy):
    """Answers from a table: step -> decision, for every site it is asked about; else recompute."""

    table: dict = field(default_factory=dict)
    parts: frozenset = frozenset({Part.BLOCK})
    storage: str = "output"
    depth: int = 1
    gate: str = "pre"
    eliminate_dead: bool = False
    span: tuple = (0, 1)
    only: int | None = None

    def decide(self, state, call, site):
        if self.only is not None and site.start != self.only:
            return Recompute()
        decision = self.table.get(call.step.index, Recompute())
        return decision(site) if callable(decision) else decision

    def spans(self, num_blocks):
        return (self.span,)


def block(number):
    return Site(Part.BLOCK, Kind.JOINT, number, number + 1, number)


def test_reuse_puts_the_value_of_the_last_recompute_in_place():
    session, model, out = run_scripted(Plan({2: Reuse(), 3: Reuse()}), lambda b, t: 10 + t, num_steps=5)
    assert out == [10, 11, 11, 11, 14]
    assert session.trace.decisions("joint.0") == "CCRRC"
    assert session.trace.column("lag") == [0, 0, 1, 2, 0]
    assert model.transformer_blocks[0].num_runs == 3


def test_reuse_of_nothing_is_a_recompute_marked_forced():
    session, _, out = run_scripted(Plan({0: Reuse()}), lambda b, t: t, num_steps=2)
    assert out == [0, 1]
    assert session.trace.column("forced") == [True, False]
    assert session.summary()["forced"] == 1


def test_a_jump_passes_over_blocks_and_restores_the_output_of_its_target():
    plan = Plan({2: Reuse(through=block(2))}, only=0)
    session, model, out = run_scripted(plan, lambda b, t: 100 * b + t, num_steps=3, num_blocks=4)
    assert letters(session) == {"joint.0": "CCR", "joint.1": "CCR", "joint.2": "CCR", "joint.3": "CCC"}
    assert [b.num_runs for b in model.transformer_blocks] == [2, 2, 2, 3]
    assert out == [300, 301, 302]  # block 3 ran at step 2


def test_a_jump_over_the_last_block_gives_its_old_output():
    plan = Plan({2: Reuse(through=block(3))}, only=1)
    _, _, out = run_scripted(plan, lambda b, t: 100 * b + t, num_steps=3, num_blocks=4)
    assert out == [300, 301, 301]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({1: Reuse(through=block(0))}, only=1), "ends at a block at or after its start"),
        (Plan({1: Reuse(through=block(1))}, only=0, storage="residual"), "needs storage='output'"),
    ],
)
def test_a_jump_that_can_not_be_is_an_error(plan, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(plan, lambda b, t: t, num_steps=2, num_blocks=2)


def test_residual_storage_adds_the_old_change_to_the_live_input():
    torch.manual_seed(0)
    model = SmoothDiT(num_blocks=2)
    first, second = model.transformer_blocks
    x = torch.randn(1, 6, 8)
    t0, t1 = torch.tensor([0.0]), torch.tensor([1.0])
    with torch.no_grad(), toy_session(model, Plan({1: Reuse()}, storage="residual", only=1), 2):
        model(x, t0)
        reused = model(2 * x, t1)[0]
    with torch.no_grad():
        h0 = first(x, t0)
        expected = first(2 * x, t1) + (second(h0, t0) - h0)
    assert torch.allclose(reused, expected, atol=1e-6)


def test_forecast_extrapolates_from_the_history():
    def linear(history, step):
        a, b = history[-2], history[-1]
        slope = (b.value[0] - a.value[0]) / (b.step - a.step)
        return (b.value[0] + slope * (step.index - b.step),)

    session, _, out = run_scripted(Plan({3: Forecast(linear), 4: Forecast(linear)}, depth=2), lambda b, t: 3 * t, 6)
    assert out == [0, 3, 6, 9, 12, 15]  # a line is forecast exactly
    assert session.trace.decisions("joint.0") == "CCCFFC"
    assert session.trace.column("lag") == [0, 0, 0, 1, 2, 0]


def test_blend_is_the_weighted_mean_and_sends_gradients_to_the_weight():
    weight = torch.tensor(0.25, requires_grad=True)

    class Router(Plan):
        differentiable = True

    model = ScriptedDiT(1, lambda b, t: 8 * t)
    with toy_session(model, Router({1: Blend(weight)}), 2) as session:
        with torch.no_grad():
            model(torch.zeros(1, 2, 2), torch.tensor([0.0]))
        out = model(torch.zeros(1, 2, 2), torch.tensor([1.0]))[0]
        out.mean().backward()
    assert out.mean().item() == 2.0  # 0.25 * 8 + 0.75 * 0
    assert weight.grad.item() == 8.0  # d/dw of w * 8 + (1 - w) * 0
    assert session.trace.decisions("joint.0") == "CB"


@pytest.mark.parametrize("storage", ["output", "residual"])
def test_partial_recomputes_the_chosen_tokens_and_keeps_the_others(storage):
    model = SmoothDiT(num_blocks=1)
    index = torch.tensor([1, 4])
    with torch.no_grad(), toy_session(model, Plan({1: Partial(index)}, parts=frozenset({Part.MLP})), 2) as session:
        x = torch.randn(1, 6, 8)
        model(x, torch.tensor([0.0]))
        mixed = model(2 * x, torch.tensor([1.0]))[0]
    with torch.no_grad():
        layer = model.transformer_blocks[0]
        h = {s: (s + 1) * x + layer.gate(torch.tensor([float(s)])) * layer.attn1((s + 1) * x) for s in (0, 1)}
        mlp = layer.ff(h[0])
        mlp[:, index] = layer.ff(h[1])[:, index]
        expected = h[1] + layer.gate(torch.tensor([1.0])) * mlp
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert session.trace.decisions("joint.0.mlp") == "CP"
    assert session.trace.share[len(session.trace) - 1] == pytest.approx(2 / 6)


@pytest.mark.parametrize("index", [torch.tensor([0, 3]), torch.tensor([[0, 3], [1, 2]])])
def test_partial_on_a_block_takes_one_set_of_tokens_or_one_per_sample(index):
    model = SmoothDiT(num_blocks=1)
    with torch.no_grad(), toy_session(model, Plan({1: Partial(index)}), 2):
        x = torch.randn(2, 6, 8)
        before = model(x, torch.zeros(2))[0]
        after = model(2 * x, torch.ones(2))[0]
    rows = index if index.ndim == 2 else index.expand(2, 2)
    changed = (before != after).any(dim=-1)
    expected = torch.zeros(2, 6, dtype=torch.bool).scatter(1, rows, True)
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("part", [Part.TRUNK, Part.SPAN])
@pytest.mark.parametrize("storage", ["output", "residual"])
def test_a_region_is_reused_as_one_and_its_blocks_are_not_run(part, storage):
    model = SmoothDiT(num_blocks=4)
    span = (0, 4) if part is Part.TRUNK else (1, 3)
    plan = Plan({1: Reuse()}, parts=frozenset({part}), storage=storage, span=span)
    x, t0, t1 = torch.randn(1, 6, 8), torch.tensor([0.0]), torch.tensor([1.0])
    with torch.no_grad(), toy_session(model, plan, 2) as session:
        model(x, t0)
        out = model(2 * x, t1)[0]
    with torch.no_grad():
        states = [x]
        for layer in model.transformer_blocks:
            states.append(layer(states[-1], t0))
        h = 2 * x
        for layer in model.transformer_blocks[: span[0]]:
            h = layer(h, t1)
        h = states[span[1]] if storage == "output" else h + states[span[1]] - states[span[0]]
        for layer in model.transformer_blocks[span[1] :]:
            h = layer(h, t1)
    assert torch.allclose(out, h, atol=1e-6)
    region = session.sites[0].name
    assert session.trace.decisions(region) == "CR"
    inside = [session.trace.decisions(f"joint.{i}") for i in range(*span)]
    assert inside == ["CR"] * (span[1] - span[0])
    assert session.cache.peak_bytes == 6 * 8 * 4  # one hidden state, whatever the number of blocks


@pytest.mark.parametrize("part", [Part.ATTENTION, Part.MLP])
def test_a_sub_module_is_reused_before_its_gate_by_default(part):
    model = SmoothDiT(num_blocks=1)
    layer = model.transformer_blocks[0]
    x, t0, t1 = torch.randn(1, 6, 8), torch.tensor([0.0]), torch.tensor([500.0])
    with torch.no_grad(), toy_session(model, Plan({1: Reuse()}, parts=frozenset({part})), 2) as session:
        model(x, t0)
        session.step(1)
        out = model(2 * x, t1)[0]
        h0 = x + layer.gate(t0) * layer.attn1(x)
        attention = layer.attn1(x) if part is Part.ATTENTION else layer.attn1(2 * x)
        h1 = 2 * x + layer.gate(t1) * attention
        mlp = layer.ff(h0) if part is Part.MLP else layer.ff(h1)
    assert torch.allclose(out, h1 + layer.gate(t1) * mlp, atol=1e-6)
    assert session.trace.decisions(f"joint.0.{part.value}") == "CR"


def test_after_the_gate_the_old_gate_stays_with_the_old_value():
    model = SmoothDiT(num_blocks=1)
    layer = model.transformer_blocks[0]
    x, t0, t1 = torch.randn(1, 6, 8), torch.tensor([0.0]), torch.tensor([500.0])
    plan = Plan({1: Reuse()}, parts=frozenset({Part.ATTENTION}), gate="post")
    with torch.no_grad(), toy_session(model, plan, 2) as session:
        model(x, t0)
        session.step(1)
        out = model(2 * x, t1)[0]
        h1 = 2 * x + layer.gate(t0) * layer.attn1(x)
    assert torch.allclose(out, h1 + layer.gate(t1) * layer.ff(h1), atol=1e-5)


def test_the_whole_model_can_be_reused_and_forecast():
    plan = Plan(
        {2: Reuse(), 3: Forecast(lambda history, step: (history[-1].value[0] + 5,))}, parts=frozenset({Part.MODEL})
    )
    session, model, out = run_scripted(plan, lambda b, t: t, num_steps=5)
    assert out == [0, 1, 1, 6, 4]
    assert session.trace.decisions("model") == "CCRFC"
    assert model.transformer_blocks[0].num_runs == 3


def test_a_branch_is_made_from_the_other_when_they_run_one_after_the_other():
    plan = Plan({1: Synthesize(lambda p: p["cond"] + 100, branch="uncond")}, parts=frozenset({Part.MODEL}))
    model = ScriptedDiT(1, lambda b, t: t)
    out = {"cond": [], "uncond": []}
    with torch.no_grad(), toy_session(model, plan, 2) as session:
        for step in range(2):
            for branch in ("cond", "uncond"):
                with session.branch(branch):
                    out[branch].append(float(model(torch.zeros(1, 1, 1), torch.tensor([float(step)]))[0]))
    assert out == {"cond": [0, 1], "uncond": [0, 101]}
    assert session.trace.decisions("model", "uncond") == "CS"
    assert session.trace.decisions("model", "cond") == "CC"


def test_a_branch_whose_source_has_not_run_yet_is_run_itself():
    plan = Plan({0: Synthesize(lambda p: p["cond"], branch="uncond")}, parts=frozenset({Part.MODEL}))
    model = ScriptedDiT(1, lambda b, t: 7.0)
    with torch.no_grad(), toy_session(model, plan, 1) as session, session.branch("uncond"):
        assert float(model(torch.zeros(1, 1, 1), torch.tensor([0.0]))[0]) == 7.0
    assert session.trace.column("forced")[0] is True


def test_half_of_a_guidance_batch_is_made_from_the_other_half():
    plan = Plan({1: Synthesize(lambda p: -p["cond"], branch="uncond")}, parts=frozenset({Part.MODEL}))
    model = SmoothDiT(num_blocks=2)
    x = torch.randn(2, 6, 8)
    with torch.no_grad(), toy_session(model, plan, 2, guided=True) as session:
        model(x, torch.zeros(2))
        out = model(x, torch.ones(2))[0]
        alone = [layer for layer in model.transformer_blocks]
        expected = alone[1](alone[0](x[1:], torch.ones(1)), torch.ones(1))
    assert torch.allclose(out[1:], expected, atol=1e-6)
    assert torch.equal(out[:1], -out[1:])
    assert session.trace.forwards == [(0, "joint", 1.0, ""), (1, "cond", 0.5, "")]
    full, executed = session.summary()["flops_full"], session.summary()["flops_executed"]
    assert executed / full == pytest.approx(0.75)


def test_dead_blocks_are_not_run_and_the_result_is_the_same():
    def run(eliminate):
        model = SmoothDiT(num_blocks=4)
        plan = Plan({3: lambda site: Reuse() if site.start in (0, 2) else Recompute()}, eliminate_dead=eliminate)
        with toy_session(model, plan, 4) as session:
            out = run_smooth(model, 4)
        return session, out

    (dead, out), (live, expected) = run(True), run(False)
    assert all(torch.equal(a, b) for a, b in zip(out, expected))
    assert letters(live) == {"joint.0": "CCCR", "joint.1": "CCCC", "joint.2": "CCCR", "joint.3": "CCCC"}
    assert letters(dead) == {"joint.0": "CCCR", "joint.1": "CCCE", "joint.2": "CCCR", "joint.3": "CCCC"}
    assert dead.summary()["flops_saved"] == pytest.approx(3 / 16)
    assert live.summary()["flops_saved"] == pytest.approx(2 / 16)


@pytest.mark.parametrize("part", [Part.BLOCK, Part.MLP, Part.TRUNK, Part.MODEL])
def test_an_answer_that_makes_no_sense_for_the_part_is_an_error_that_names_policy_and_site(part):
    wrong = Blend(torch.tensor(0.5)) if part in (Part.TRUNK, Part.MODEL) else Synthesize(lambda p: p["cond"])
    model = SmoothDiT(num_blocks=1)
    with (
        pytest.raises(TypeError, match=r"Plan.decide\(.*\) gave"),
        toy_session(model, Plan({1: wrong}, parts=frozenset({part})), 2),
    ):
        run_smooth(model, 2)


def test_the_policy_sees_the_input_the_history_and_the_other_branch():
    seen = []

    class Curious(Plan):
        def start(self, run):
            return run.branch

        def begin_forward(self, state, call):
            assert call.input()[0].shape == (1, 3, 1)  # the latent

        def decide(self, state, call, site):
            seen.append((call.branch, call.input()[0].shape[1], len(call.history(site)), call.state_of("cond")))
            return Recompute()

    model = ScriptedDiT(1, lambda b, t: t)
    with torch.no_grad(), toy_session(model, Curious(), 2) as session:
        for step in range(2):
            for branch in ("cond", "uncond"):
                with session.branch(branch):
                    model(torch.zeros(1, 3, 1), torch.tensor([float(step)]))
    assert seen == [("cond", 3, 0, "cond"), ("uncond", 3, 0, "cond"), ("cond", 3, 1, "cond"), ("uncond", 3, 1, "cond")]


def test_a_jump_to_a_block_the_model_then_skips_is_an_error_not_a_wrong_video():
    class Skips(SmoothDiT):
        def forward(self, hidden_states, timestep):
            blocks = list(self.transformer_blocks)
            for layer in blocks[:-1] if float(timestep[0]) == 1 else blocks:
                hidden_states = layer(hidden_states, timestep)
            return (hidden_states,)

    model = Skips()
    with toy_session(model, Plan({1: Reuse(through=block(3))}, only=0), 2):
        with pytest.raises(RuntimeError, match="passed over up to joint.3, but the model did not come to that block"):
            run_smooth(model, 2)


def test_two_prompts_without_guidance_are_not_taken_for_two_guidance_halves():
    plan = Plan({1: Synthesize(lambda p: -p["cond"], branch="uncond")}, parts=frozenset({Part.MODEL}))
    model, x = SmoothDiT(num_blocks=2), torch.randn(2, 6, 8)
    for guided in (False, None):
        with torch.no_grad(), toy_session(model, plan, 2, guided=guided) as session:
            model(x, torch.zeros(2))
            out = model(x, torch.ones(2))[0]
        assert torch.equal(out, run_bare(model, x, torch.ones(2)))
        assert session.trace.column("forced")[3] is True


def run_bare(model, x, t):
    with torch.no_grad():
        return model(x, t)[0]


@pytest.mark.parametrize("part", [Part.BLOCK, Part.MODEL, Part.MLP, Part.TRUNK])
@pytest.mark.parametrize("kind", ["reuse", "forecast"])
def test_a_captured_value_that_was_written_to_is_never_handed_out(part, kind):
    class Dirty(Gated):
        def forward(self, hidden_states, timestep):
            out = super().forward(hidden_states, timestep)
            self.held = out
            return out

    model = SmoothDiT(num_blocks=1)
    model.transformer_blocks[0] = layer = Dirty(8)
    layer.ff.register_forward_hook(lambda module, args, out: setattr(layer, "mlp", out))
    decision = Reuse() if kind == "reuse" else Forecast(lambda history, step: history[-1].value)
    with torch.no_grad(), toy_session(model, Plan({1: decision}, parts=frozenset({part})), 2):
        out = model(torch.randn(1, 6, 8), torch.zeros(1))[0]
        kept = out.clone()
        if part is Part.MODEL:
            out.mul_(10)  # what the model returned is the caller's own
            assert torch.equal(model(torch.randn(1, 6, 8), torch.ones(1))[0], kept)
            return
        (layer.mlp if part is Part.MLP else layer.held).mul_(10)
        with pytest.raises(RuntimeError, match="modified in place afterwards"):
            model(torch.randn(1, 6, 8), torch.ones(1))


@pytest.mark.parametrize("part", [Part.BLOCK, Part.SPAN, Part.TRUNK])
def test_a_residual_is_not_taken_from_an_input_that_was_written_to(part):
    class WritesIntoItsInput(Gated):
        def forward(self, hidden_states, timestep):
            hidden_states += 0.5
            return hidden_states * 1.0

    model = SmoothDiT(num_blocks=1)
    model.transformer_blocks[0] = WritesIntoItsInput(8)
    x, t = torch.randn(1, 6, 8), torch.zeros(1)
    with torch.no_grad(), toy_session(model, Plan(parts=frozenset({part}), storage="residual"), 1):
        with pytest.raises(RuntimeError, match="the input of site .* was modified in place while it ran"):
            model(x, t)
    with torch.no_grad(), toy_session(model, Plan(parts=frozenset({part})), 1):
        model(x, t)  # outputs are right all the same


def test_kept_tensors_are_checked_not_to_have_been_written_to():
    class KeepsTheLatent(Plan):
        def begin_forward(self, state, call):
            if call.kept("latent") is None:
                call.keep("latent", (call.probe("latent"),))

    model, x, t = SmoothDiT(num_blocks=1), torch.randn(1, 6, 8), torch.zeros(1)
    with torch.no_grad(), toy_session(model, KeepsTheLatent(), 2):
        model(x, t)
        x.mul_(1.1)
        with pytest.raises(RuntimeError, match="kept as 'latent' at step 0 was modified in place"):
            model(x, t + 1)


def test_a_policy_may_find_out_only_while_observing_that_a_value_is_not_to_be_kept():
    class FirstBlock(Plan):
        """First-block caching: keep block 0's output only if the rest is then computed."""

        def start(self, run):
            return {"reuse": False, "lags": []}

        def decide(self, state, call, site):
            if site.part is Part.SPAN and state["reuse"]:
                return Reuse()
            return Recompute()

        def observe(self, state, call, site, fresh, cached):
            if site.part is Part.BLOCK and site.start == 0:
                state["reuse"] = cached is not None and float((fresh[0] - cached.value[0]).abs().mean()) < 2.5
                state["lags"].append(None if cached is None else call.step.index - cached.step)
                return not state["reuse"]
            return None

    policy = FirstBlock(span=(1, 3), parts=frozenset({Part.BLOCK, Part.SPAN}))
    session, model, out = run_scripted(policy, lambda b, t: t + 100 * b, num_steps=7, num_blocks=3)
    assert session.trace.decisions("span.1-3") == "CRRCRRC"  # drift 1 a step against the last *computed* step
    assert out == [200, 200, 200, 203, 203, 203, 206]
    assert model.transformer_blocks[2].num_runs == 3


def test_storage_and_depth_may_differ_from_site_to_site():
    class Mixed(Plan):
        """Watches block outputs, reuses the trunk's residual."""

        def storage_of(self, site):
            return "residual" if site.part is Part.TRUNK else "output"

        def depth_of(self, site):
            return 2 if site.part is Part.BLOCK else 1

        def decide(self, state, call, site):
            return Reuse() if site.part is Part.TRUNK and call.step.index == 3 else Recompute()

        def observe(self, state, call, site, fresh, cached):
            if cached is not None and call.step.index == 2:
                seen[site.name] = (len(call.history(site)), cached.value[0], call.input()[0], fresh[0])

    seen = {}
    model, x = SmoothDiT(num_blocks=2), torch.randn(1, 6, 8)
    with torch.no_grad(), toy_session(model, Mixed(parts=frozenset({Part.BLOCK, Part.TRUNK})), 4) as session:
        outs = [model(x, torch.tensor([float(s)]))[0] for s in (0, 1, 2)]
        again = model(2 * x, torch.tensor([3.0]))[0]
    depth, cached, _, _ = seen["joint.1"]
    assert depth == 2
    assert torch.equal(cached, outs[1])
    depth, cached, _, _ = seen["trunk"]
    assert depth == 1
    assert torch.allclose(cached, outs[1] - x, atol=1e-6)
    assert torch.allclose(again, 2 * x + outs[2] - x, atol=1e-6)
    assert session.trace.decisions("trunk") == "CCCR"


def test_a_probe_may_ask_about_the_block_execution_has_come_to():
    class Probing(ToyAdapter):
        def probe(self, name, transformer, arguments, block):
            return (
                block["hidden_states"] if name == "block_input" else super().probe(name, transformer, arguments, block)
            )

    seen = []

    class Curious(Plan):
        def decide(self, state, call, site):
            seen.append(torch.equal(call.probe("block_input"), call.input()[0]))
            return Recompute()

    model = SmoothDiT(num_blocks=2)
    with torch.no_grad(), ReuseEngine(Probing().bind(model), Curious(), timesteps=[0]) as session:
        model(torch.randn(1, 6, 8), torch.zeros(1))
    assert seen == [True, True]
    with pytest.raises(ValueError, match="Probing has no probe 'temb'"):
        session.bound.adapter.probe("temb", model, {}, {})


def test_sub_modules_are_left_alone_while_their_block_runs_on_some_tokens():
    class Both(Plan):
        def decide(self, state, call, site):
            if site.part is Part.BLOCK:
                return Partial(torch.tensor([0, 2])) if call.step.index == 1 else Recompute()
            return Reuse() if call.step.index == 2 else Recompute()

    model = SmoothDiT(num_blocks=1)
    with toy_session(model, Both(parts=frozenset({Part.BLOCK, Part.MLP})), 3) as session:
        run_smooth(model, 3)
    assert session.trace.decisions("joint.0.mlp") == "CR"
    assert session.trace.decisions("joint.0") == "CPC"


@pytest.mark.parametrize("where", ["start", "begin_forward", "decide", "observe", "end_forward"])
def test_an_exception_in_the_policy_leaves_the_model_as_it_was(where):
    def fail(*args):
        raise ZeroDivisionError(where)

    policy = type("Failing", (Plan,), {where: fail})()
    model = SmoothDiT(num_blocks=2)
    expected = run_smooth(model, 2)
    with pytest.raises(ZeroDivisionError), toy_session(model, policy, 2):
        run_smooth(model, 2)
    assert all(torch.equal(a, b) for a, b in zip(run_smooth(model, 2), expected))
    assert "forward" not in model.__dict__


def test_a_forward_that_failed_may_be_tried_again():
    model = SmoothDiT(num_blocks=1)
    with torch.no_grad(), toy_session(model, Plan({1: Reuse()}), 2) as session:
        x = torch.randn(1, 6, 8)
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 6, 5), torch.zeros(1))
        first = model(x, torch.zeros(1))[0]
        assert torch.equal(model(2 * x, torch.ones(1))[0], first)
    assert session.trace.decisions("joint.0")[-1] == "R"


def test_the_model_returns_what_was_asked_for_also_where_it_was_not_run():
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    class Output(SmoothDiT):
        def forward(self, hidden_states, timestep, return_dict=True):
            (out,) = super().forward(hidden_states, timestep)
            return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    plan = Plan({1: Reuse(), 2: Reuse(), 4: Reuse()}, parts=frozenset({Part.MODEL}))
    model, x = Output(num_blocks=1), torch.randn(1, 6, 8)
    kinds = []
    with torch.no_grad(), toy_session(model, plan, 5):
        for step, return_dict in enumerate([False, False, True, True, True]):
            kinds.append(type(model(x, torch.tensor([float(step)]), return_dict=return_dict)).__name__)
    assert kinds == [
        "tuple",
        "tuple",
        "Transformer2DModelOutput",
        "Transformer2DModelOutput",
        "Transformer2DModelOutput",
    ]
