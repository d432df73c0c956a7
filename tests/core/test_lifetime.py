"""What no later step can read is not kept, and what none will read is not stored."""

import pytest
import torch
from toys import SmoothDiT, run_smooth, toy_session

from fsframework.core import RECOMPUTE, REUSE, Kind, Part, ReusePolicy, Run, Site
from fsframework.core.lifetime import Lifetime
from fsframework.policies import Combined, ForecastReuse, Foresight
from fsframework.policies.delta_dit import DeltaDiT

SITE = Site(Part.BLOCK, Kind.JOINT, 0, 1)
HIDDEN_STATE = 1 * 6 * 8 * 4
"""Bytes of SmoothDiT's [1, 6, 8] in float32."""


class Planned(ReusePolicy):
    """Recomputes and keeps every block in the steps of a plan marked C, reuses it in those marked R."""

    def __init__(self, plan, depth=1):
        self.plan = plan
        object.__setattr__(self, "depth", depth)

    def decide(self, state, call, site):
        return RECOMPUTE if self.plan[call.step.index] == "C" else REUSE

    def schedule(self, run):
        return [letter == "C" for letter in self.plan]


def unread(policy, num_steps):
    """Per step, x where what is cached when it is over will not be read."""
    lifetime = Lifetime(policy, Run(num_steps, list(range(num_steps)), [SITE]))
    return "".join("x" if SITE in lifetime.unread_after(step) else "." for step in range(num_steps))


def test_a_value_is_dead_once_as_many_recomputes_come_as_are_kept():
    plan = "CCCRCCRRC"
    assert unread(Planned(plan), 9) == "xx.xx..xx"
    assert unread(Planned(plan, depth=2), 9) == "x..x...xx"


def test_policies_that_compare_or_know_no_schedule_may_read_anything_at_any_step():
    assert unread(Foresight(warmup=2), 6) == "......"
    assert unread(ForecastReuse(Planned("CCRCCC")), 6) == "......"


def test_policies_side_by_side_are_looked_at_one_by_one():
    """Static reuses the block at steps 1 and 4. At 4 the attention in it planned to be computed, and at 5 still reads what it
    kept at 2: of what lies inside another's sites nothing is known."""
    block, attention = SITE, Site(Part.ATTENTION, Kind.JOINT, 0, 1)
    policy = Combined(
        policies=(
            {"name": "static", "interval": 3, "reuse_steps": 1, "warmup": 1, "storage": "residual"},
            {
                "name": "pab", "joint": 2, "cross_attention": 1, "mlp_windows": (), "mlp_blocks": (),
                "window_low": -1.0, "window_high": 9.0,
            },
        )
    )  # fmt: skip
    lifetime = Lifetime(policy, Run(7, list(range(7)), [block, attention]))
    after = [lifetime.unread_after(step) for step in range(7)]
    assert "".join("x" if block in sites else "." for sites in after) == ".xx.xxx"  # C R C C R C C
    assert "".join("x" if attention in sites else "." for sites in after) == "......."  # C - C R - R C


def test_bytes_held_after_each_step_of_a_plan():
    model, policy = SmoothDiT(), Planned("CCCRRCCRC")
    held = []
    with torch.no_grad(), toy_session(model, policy, 9) as session:
        for step in range(9):
            model(torch.randn(1, 6, 8), torch.tensor([float(step)]))
            held.append(session.cache.num_bytes // HIDDEN_STATE)
    # Four blocks. Steps 0 and 1 store nothing, for step 2 computes everything again; what the last reuse of a cycle read is
    # freed as the next step begins; step 8 stores nothing.
    assert held == [0, 0, 4, 4, 4, 0, 4, 4, 0]
    assert {session.trace.decisions(site.name) for site in session.sites} == {"CCCRRCCRC"}
    assert not any(session.trace.column("forced"))
    assert session.cache.peak_counts() == {"joint": (4, 0)}


def test_dropping_changes_no_prediction():
    """Against a session that is told that everything may be read."""
    model, policy = SmoothDiT(), DeltaDiT(interval=3, boundary=6, num_blocks=1)
    with toy_session(model, policy, 12) as session:
        dropped = run_smooth(model, 12)
        peak = session.cache.peak_bytes
    with toy_session(model, policy, 12) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lifetime, "unread_after", lambda self, step: frozenset())
        kept = run_smooth(model, 12)
        assert session.cache.peak_bytes == 2 * HIDDEN_STATE
    assert all(torch.equal(a, b) for a, b in zip(dropped, kept))
    assert peak == HIDDEN_STATE


def test_dropping_changes_no_prediction_of_policies_within_each_other():
    """TaylorSeer's steps 2, 5 and 8 fall to static reuse, so its forecasts reach back further than its schedule says."""
    model = SmoothDiT()
    static = {"name": "static", "storage": "residual", "warmup": 2, "interval": 3, "reuse_steps": 1}
    policy = Combined([static, {"name": "taylorseer", "interval": 3}])
    with pytest.warns(UserWarning, match="taylorseer plans to recompute"), toy_session(model, policy, 10) as session:
        dropped = run_smooth(model, 10)
        decisions = session.trace.decisions(session.sites[1].name)
    with toy_session(model, policy, 10) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lifetime, "unread_after", lambda self, step: frozenset())
        kept = run_smooth(model, 10)
        assert session.trace.decisions(session.sites[1].name) == decisions
    assert all(torch.equal(a, b) for a, b in zip(dropped, kept))
