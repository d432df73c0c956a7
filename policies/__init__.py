"""Every built-in policy, one file each. Importing this package registers them by name."""

if __name__ == "policies":
    raise ImportError("import this package as fsframework.policies: the bare name would load every file twice")

from fsframework.policies.foresight import Foresight as Foresight
from fsframework.policies.foresight_release import ForesightRelease as ForesightRelease
from fsframework.policies.full_compute import FullCompute as FullCompute
from fsframework.policies.static_reuse import StaticReuse as StaticReuse
