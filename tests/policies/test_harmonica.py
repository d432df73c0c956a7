"""What HarmoniCa does besides test_l2c.py: any step but the first may reuse."""

import pytest
from toys import SmoothDiT, run_smooth, toy_session

from fsframework.core import Artifact
from fsframework.core.gates import GateTable
from fsframework.policies.harmonica import HarmoniCa


def decisions(gates, **options):
    with toy_session(SmoothDiT(num_blocks=1), HarmoniCa(gates=gates, **options), len(gates)) as session:
        run_smooth(session.bound.transformer, len(gates))
    return session.trace.decisions("joint.0")


def test_any_step_may_reuse_but_the_first():
    assert decisions([0.0, 0.0, 0.0, 0.9, 0.0, 0.0]) == "CRRCRR"


def test_what_is_reused_is_the_last_value_that_was_computed():
    model = SmoothDiT(num_blocks=1)
    policy = HarmoniCa(gates=[1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    with toy_session(model, policy, 6) as session:
        run_smooth(model, 6)
    assert session.trace.column("lag") == [0, 0, 1, 0, 1, 2]
    assert policy.schedule(next(iter(session._last.runs.values()))) == [True, True, False, True, False, False]


def test_its_artifact_may_meet_any_budget_down_to_one_computed_step(tmp_path):
    path = tmp_path / "gates.json"
    table = GateTable({"joint.0": [1.0, 0.4, 0.1, 0.2, 0.3]}, {"joint.0": 1.0})
    Artifact("harmonica", table.values("block", "residual"), {}).save(path)
    policy = HarmoniCa(artifact=str(path), budget=0.6)
    with toy_session(SmoothDiT(num_blocks=1), policy, 5) as session:
        run_smooth(session.bound.transformer, 5)
    assert session.trace.decisions("joint.0") == "CCRRC"
    assert table.flops_fraction(table.within(0.2, "harmonica")) == pytest.approx(0.2)
