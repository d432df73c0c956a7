"""Adapters, one file per DiT family, and the tiny trained checkpoints. Importing this package registers them by name.

Every module here that registers an adapter is imported, so a new family is a new file and nothing else; its class is an
attribute of the package (`fsframework.models.Latte`).
"""

if __name__ == "models":
    raise ImportError("import this package as fsframework.models: the bare name would load every file twice")

import importlib
import pkgutil
from typing import Any

from fsframework.core import ADAPTERS

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg and _module.name != "loading":
        importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    for _, adapter in ADAPTERS.items():
        if adapter.__name__ == name and adapter.__module__.startswith(f"{__name__}."):
            return adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(adapter.__name__ for _, adapter in ADAPTERS.items())
