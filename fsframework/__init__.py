"""fsframework: a research framework for feature reuse in diffusion transformers.

The names below load on first use, so that `import fsframework` and `fsf --help` answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsframework.core import (
        ADAPTERS,
        POLICIES,
        Blend,
        BlockList,
        Branch,
        Call,
        Checkpoint,
        Decision,
        Entry,
        Forecast,
        Kind,
        LoadedModel,
        ModelAdapter,
        Part,
        Partial,
        Recompute,
        Reuse,
        ReuseEngine,
        ReusePolicy,
        Run,
        Site,
        StagedSession,
        State,
        Step,
        Synthesize,
        Trace,
    )
    from fsframework.core.review import ReuseWarning
    from fsframework.models.loading import load_model
    from fsframework.run.attach import reuse

__version__ = "0.1.0"

_CORE = (
    "ADAPTERS POLICIES Blend BlockList Branch Call Checkpoint Decision Entry Forecast Kind LoadedModel ModelAdapter Part "
    "Partial Recompute Reuse ReuseEngine ReusePolicy Run Site StagedSession State Step Synthesize Trace"
)
_HOME = {
    "reuse": "fsframework.run.attach",
    "load_model": "fsframework.models.loading",
    "ReuseWarning": "fsframework.core.review",
    **dict.fromkeys(_CORE.split(), "fsframework.core"),
}

__all__ = [
    "ADAPTERS",
    "POLICIES",
    "Blend",
    "BlockList",
    "Branch",
    "Call",
    "Checkpoint",
    "Decision",
    "Entry",
    "Forecast",
    "Kind",
    "LoadedModel",
    "ModelAdapter",
    "Part",
    "Partial",
    "Recompute",
    "Reuse",
    "ReuseEngine",
    "ReusePolicy",
    "ReuseWarning",
    "Run",
    "Site",
    "StagedSession",
    "State",
    "Step",
    "Synthesize",
    "Trace",
    "__version__",
    "load_model",
    "reuse",
]

_FILLED_BY = {"POLICIES": "fsframework.policies", "ADAPTERS": "fsframework.models"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fsframework' has no attribute {name!r}")
    if name in _FILLED_BY:
        import_module(_FILLED_BY[name])
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
