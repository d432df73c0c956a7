"""What a visit costs, in counts that no neighbour on the machine can change: instructions, calls, containers, dispatches.

The numbers are upper limits, as counted with Python 3.11 (later versions execute fewer instructions for the same code).
Whoever makes the hot path longer has to raise one here, and say why.
"""

import gc
import warnings
from collections import Counter

import pytest
import torch
from counting import Counts, counted, dispatched, empty_session, per_visit

from fsframework.core import DISCARD, ReuseWarning
from fsframework.core.distance import mse
from fsframework.policies import Foresight, FullCompute, StaticReuse

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.ReuseWarning")
STATIC = StaticReuse(interval=2, warmup=2)  # C C R C R ...
FORESIGHT = Foresight(gamma=1.0, warmup=3, recompute_every=2)  # C C C R C R ... on blocks that never change
ENGINE = ("_block_forward", "ForwardRecord.", "Placing.", "ForwardCall.", "BlockKey.", "Trace.", "Slot.")
"""Functions of the engine's hot path; the cache and the distances have budgets of their own."""


def of_engine(counter: Counter[str]) -> int:
    return sum(count for name, count in counter.items() if name.startswith(ENGINE))


@pytest.mark.parametrize(
    ("policy", "step", "record", "instructions", "calls", "containers"),
    [
        # The wrapper, the visit and `decide`; the containers are the block's arguments on their way to its forward.
        pytest.param(FullCompute(), 3, False, 128, 3, 3, id="full, no trace"),
        pytest.param(FullCompute(), 3, True, 143, 3, 3, id="full"),
        pytest.param(STATIC, 3, False, 144, 3, 3, id="static recomputes, no trace"),
        pytest.param(STATIC, 3, True, 159, 3, 3, id="static recomputes"),
        # Passed over on the way to the last block, whose output is put in place: `decide` is not asked.
        pytest.param(STATIC, 2, False, 122, 5, 1, id="static jumps, no trace"),
        pytest.param(STATIC, 2, True, 147, 5, 1, id="static jumps"),
    ],
)
def test_a_visit_takes_no_more_than_this(policy, step, record, instructions, calls, containers):
    visit, operations = per_visit(policy, step, record)
    assert sum(visit.instructions.values()) <= instructions, visit.instructions
    assert sum(visit.calls.values()) <= calls, visit.calls
    assert sum(visit.containers.values()) <= containers, visit.containers
    assert operations == []  # and torch is not called at all


@pytest.mark.parametrize(
    ("record", "reused", "recomputed"), [(False, 144, 253), (True, 196, 312)], ids=["no trace", "with trace"]
)
def test_foresights_visits_take_no_more_than_this_in_the_engine(record, reused, recomputed):
    visit, operations = per_visit(FORESIGHT, 3, record)
    assert of_engine(visit.instructions) <= reused, visit.instructions
    assert operations == []
    visit, operations = per_visit(FORESIGHT, 4, record)
    assert of_engine(visit.instructions) <= recomputed, visit.instructions
    with torch.no_grad(), dispatched() as of_distance:
        mse(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    assert len(operations) <= len(of_distance) + 1, (
        operations
    )  # lambda or nothing: the distance is all that is computed


def test_a_forward_takes_no_more_than_this_beside_its_visits():
    with empty_session(FullCompute(), 2, 5, record=True) as (_, run):
        for step in range(3):
            run(step)
        with counted() as forward:
            run(3)
    others = ("ReuseCache.", "Lifetime.")
    beside = sum(count for name, count in forward.instructions.items() if not name.startswith(others))
    assert beside - 2 * 143 <= 1050, forward.instructions


def test_the_number_of_steps_of_a_run_does_not_make_a_forward_longer():
    """In a loop of one's own the step is looked up, not searched for."""
    found = []
    for num_steps in (5, 500):
        with empty_session(FullCompute(), 1, num_steps, record=False) as (_, run):
            run(0), run(1)
            with counted() as forward:
                run(2)
        found.append(sum(forward.instructions.values()))
    assert found[0] == found[1]


@pytest.mark.parametrize("record", [False, True], ids=["no trace", "with trace"])
def test_no_object_is_left_behind_by_a_visit(record):
    """The trace's columns are made longer once per forward; a row is three numbers in them."""
    left = []
    for num_blocks in (2, 42):
        with empty_session(FullCompute(), num_blocks, 6, record) as (_, run):
            for step in range(4):
                run(step)
            gc.collect()
            gc.disable()
            before = len(gc.get_objects())
            run(4)
            left.append(len(gc.get_objects()) - before)
            gc.enable()
    assert left[0] == left[1], f"a forward of 2 blocks leaves {left[0]} objects, one of 42 blocks {left[1]}"


def test_the_trace_has_a_row_per_visit_also_where_the_model_comes_to_a_block_twice():
    with empty_session(FullCompute(), 2, 2, record=True) as (session, run):
        model = session.bound.transformer
        plain = type(model).forward

        class Twice(type(model)):
            def forward(self, hidden_states, timestep):
                plain(self, hidden_states, timestep)
                return plain(self, hidden_states, timestep)

        model.__class__ = Twice
        run(0)
        assert session.trace.column("site") == ["joint.0", "joint.1"] * 2
        run(1)
        assert (len(session.trace), session.trace.step) == (8, [0] * 4 + [1] * 4)


def test_a_forward_that_fails_leaves_no_rows_beyond_its_visits():
    class Fails(FullCompute):
        def decide(self, state, call, site):
            if call.step.index == 1 and site.start == 1:
                raise RuntimeError("here")
            return DISCARD

    with empty_session(Fails(), 3, 2, record=True) as (session, run):
        run(0)
        with pytest.raises(RuntimeError, match="here"):
            run(1)
        assert session.trace.column("site")[3:] == ["joint.0", "joint.1"]
        run_again = session.trace.step
        assert run_again == [0, 0, 0, 1, 1]


def test_the_counter_sees_work_that_a_policy_adds():
    def idle():
        return None

    class Busy(FullCompute):
        def decide(self, state, call, site):
            call.log(shown=1.0)
            return DISCARD

    assert idle() is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReuseWarning)
        plain, busy = (per_visit(policy, 3, True)[0] for policy in (FullCompute(), Busy()))
    added: Counts = busy - plain
    # One call of `log`, which writes one value; FullCompute's own `decide` is gone, and Busy's is not in the project's files.
    assert added.calls == {"ForwardCall.log": 1, "Trace.log": 1, "FullCompute.decide": -1}
