import dataclasses

import pytest
from toys import Loop, tiny_transformer

import fsframework.models  # fills the registries
import fsframework.policies  # noqa: F401
from fsframework.core import ADAPTERS, POLICIES

QUICK = ("latte", "opensora", "cogvideox", "wan", "chroma")
"""One family per structure: blocks in turns with and without a folded batch, two streams, one stream with a call per
branch, streams that are joined on the way. The others run with the slow tests, and all through their pipelines in
tests/models/test_families.py."""


def families():
    """Every registered family."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ADAPTERS]


@pytest.fixture(params=families(), scope="module")
def adapter(request):
    """Every registered adapter."""
    return ADAPTERS[request.param]()


def jumps_over_kept_outputs(policy, adapter):
    """The combination is refused at the session's start; tests/core/test_engine.py shows it."""
    return policy.jumps and any(facts.kept_aside is True for facts in adapter.blocks)


@pytest.fixture(params=[pytest.param("static", marks=pytest.mark.slow), "foresight"])
def policy(request, adapter):
    """One policy with a schedule and one without, for what the engine guarantees; test_policies.py is about all of them, on
    the quick families. Their warmup is short enough for runs of a few steps."""
    policy = dataclasses.replace(POLICIES[request.param](), warmup=2)
    return dataclasses.replace(policy, storage="residual") if jumps_over_kept_outputs(policy, adapter) else policy


@pytest.fixture
def loop(adapter):
    """A guided DDIM loop over a random transformer of the family."""
    return Loop(adapter, tiny_transformer(adapter))
