import dataclasses

import pytest
from toys import Loop, tiny_transformer

import fsframework.models  # fills the registries
import fsframework.policies  # noqa: F401
from fsframework.core import ADAPTERS, POLICIES


@pytest.fixture(params=list(ADAPTERS), scope="module")
def adapter(request):
    """Every registered adapter."""
    return ADAPTERS[request.param]()


@pytest.fixture(params=[name for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")])
def policy(request):
    """Every registered policy with its defaults, but a warmup short enough for runs of a few steps."""
    policy = POLICIES[request.param]()
    has_warmup = any(field.name == "warmup" for field in dataclasses.fields(policy))
    return dataclasses.replace(policy, warmup=2) if has_warmup else policy


@pytest.fixture
def loop(adapter):
    """A guided DDIM loop over a random transformer of the family."""
    return Loop(adapter, tiny_transformer(adapter))
