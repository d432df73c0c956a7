"""Every built-in policy, one file each. Importing this package registers them by name.

Every module here is imported, so a new policy is a new file and nothing else. The explicit names below are for type
checkers and readers; a policy that is not among them is an attribute of its own module.
"""

if __name__ == "policies":
    raise ImportError("import this package as fsframework.policies: the bare name would load every file twice")

import importlib
import pkgutil

from fsframework.policies.foresight import Foresight as Foresight
from fsframework.policies.foresight_release import ForesightRelease as ForesightRelease
from fsframework.policies.full_compute import FullCompute as FullCompute
from fsframework.policies.static_reuse import StaticReuse as StaticReuse

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
