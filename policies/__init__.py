"""Every built-in policy, one file each. Importing this package registers them by name.

Every module here is imported, so a new policy is a new file and nothing else. The explicit names below are for type
checkers and readers; a policy that is not among them is an attribute of its own module.
"""

if __name__ == "policies":
    raise ImportError("import this package as fsframework.policies: the bare name would load every file twice")

import importlib
import pkgutil

from fsframework.policies.adacache import AdaCache as AdaCache
from fsframework.policies.blockdance import BlockDance as BlockDance
from fsframework.policies.bwcache import BWCache as BWCache
from fsframework.policies.combine import Combined as Combined
from fsframework.policies.dbcache import DBCache as DBCache
from fsframework.policies.dbprune import DBPrune as DBPrune
from fsframework.policies.delta_dit import DeltaDiT as DeltaDiT
from fsframework.policies.easycache import EasyCache as EasyCache
from fsframework.policies.fastercache import FasterCache as FasterCache
from fsframework.policies.first_block_cache import FirstBlockCache as FirstBlockCache
from fsframework.policies.fora import Fora as Fora
from fsframework.policies.forecast import ForecastReuse as ForecastReuse
from fsframework.policies.foresight import Foresight as Foresight
from fsframework.policies.foresight_release import ForesightRelease as ForesightRelease
from fsframework.policies.full_compute import FullCompute as FullCompute
from fsframework.policies.lemica import LeMiCa as LeMiCa
from fsframework.policies.magcache import MagCache as MagCache
from fsframework.policies.pab import PyramidAttentionBroadcast as PyramidAttentionBroadcast
from fsframework.policies.plan import SitePlan as SitePlan
from fsframework.policies.predictor import Predictor as Predictor
from fsframework.policies.smoothcache import SmoothCache as SmoothCache
from fsframework.policies.static_reuse import StaticReuse as StaticReuse
from fsframework.policies.taylorseer import TaylorSeer as TaylorSeer
from fsframework.policies.teacache import TeaCache as TeaCache
from fsframework.policies.tgate import TGate as TGate
from fsframework.policies.toca import DuCa as DuCa
from fsframework.policies.toca import ToCa as ToCa

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
