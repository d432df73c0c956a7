"""The steps of a video never make the host wait: on a CPU as the interceptor of host reads sees it, on a GPU as CUDA does.

CUDA's own check (`torch.cuda.set_sync_debug_mode("error")`) also finds what does nothing on a CPU: blocking copies in either
direction, and numbers that go to the device from ordinary memory. Waiting for a single event, as `Meter.take` does for a copy
that was posted a step ago, is no such thing: work that was given to the device since then goes on.
"""

from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from toys import SmoothDiT, toy_session

from fsframework.core import Meter, ReuseEngine, ReusePolicy
from fsframework.policies import ForecastReuse, Foresight, FullCompute, StaticReuse
from fsframework.run.bench_counts import host_reads

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.ReuseWarning")
NUM_STEPS = 10


@contextmanager
def intercepted(allowed: int) -> Iterator[None]:
    """Raises unless so many values are read."""
    with host_reads() as found:
        yield
    if len(found) != allowed:
        raise RuntimeError(f"synchronizing operations: {found}, and not {allowed}")


@contextmanager
def synchronizing_raises(allowed: int) -> Iterator[None]:
    """CUDA raises at the operation that would wait for all that it was given. Those `allowed` must not wait either."""
    del allowed
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


Guard = Callable[[int], AbstractContextManager[None]]
on_each_device = pytest.mark.parametrize(
    ("device", "guard"),
    [
        pytest.param("cpu", intercepted, id="cpu"),
        pytest.param(
            "cuda",
            synchronizing_raises,
            id="cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)


def run_guarded(policy: ReusePolicy, device: str, guard: Guard, posted: Container[int] = ()) -> ReuseEngine:
    """Two videos, each step of the second guarded; in the `posted` steps one value that was posted may be taken.

    The first is not, for there libraries are loaded and kernels compiled. The session is told the step, so that it need not
    look it up.
    """
    model = SmoothDiT(num_blocks=3).to(device)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)).to(device)
    inputs = [x * (1 + 0.01 * step) for step in range(NUM_STEPS)]
    timesteps = [torch.full((2,), float(step), device=device) for step in range(NUM_STEPS)]
    with torch.no_grad(), toy_session(model, policy, NUM_STEPS) as session:
        for video in range(2):
            for step in range(NUM_STEPS):
                session.step(step)
                with guard(int(step in posted)) if video == 1 else nullcontext():
                    model(inputs[step], timesteps[step])
    return session


@on_each_device
@pytest.mark.parametrize(
    ("policy", "num_reused"),
    [
        # Of 3 blocks in 10 steps.
        pytest.param(FullCompute(), 0, id="full"),
        pytest.param(StaticReuse(interval=2, warmup=2), 4 * 3, id="static"),
        pytest.param(StaticReuse(interval=2, warmup=2, storage="residual"), 4 * 3, id="static, residuals"),
        pytest.param(ForecastReuse(StaticReuse(interval=2, warmup=3)), 4 * 3, id="forecast"),
    ],
)
def test_a_policy_with_a_schedule_never_waits(policy, num_reused, device, guard):
    session = run_guarded(policy, device, guard)
    assert sum(decision != "recompute" for decision in session.trace.column("decision")) == num_reused
    assert session.meter.num_reads == 0


@on_each_device
@pytest.mark.parametrize("options", [{}, {"storage": "residual"}, {"reduce": "max"}], ids=["output", "residual", "max"])
def test_foresight_waits_for_nothing_and_takes_what_was_posted_once_in_a_step_that_may_reuse(options, device, guard):
    policy = Foresight(gamma=1e6, warmup=3, recompute_every=2, **options)
    session = run_guarded(policy, device, guard, posted={3, 5, 7, 9})
    assert session.trace.decisions("joint.0") == "CCCRCRCRCR"
    assert session.meter.num_reads == 4


class ReadsBack(FullCompute):
    """Looks at a value in one step, past the meter."""

    def end_forward(self, state, call):
        if call.step.index == 4:
            call.arguments["hidden_states"].mean().item()


@on_each_device
def test_a_policy_that_waits_is_found_out(device, guard):
    with pytest.raises(RuntimeError, match="synchronizing"):
        run_guarded(ReadsBack(), device, guard)


@on_each_device
def test_fetching_waits_and_posting_does_not(device, guard):
    x = torch.arange(3, device=device, dtype=torch.float64)
    meter = Meter()
    with guard(0):
        meter.post("x", x)
    assert meter.take("x") == [0, 1, 2]
    with pytest.raises(RuntimeError, match="synchronizing"), guard(0):
        meter.fetch(x)
