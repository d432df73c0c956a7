"""Sites, decisions, policies, adapters and the engine that brings them together.

Depends on torch and the standard library only. It knows no policy, no model, no config file and no logger.
"""

from fsframework.core.adapter import BlockList as BlockList
from fsframework.core.adapter import ModelAdapter as ModelAdapter
from fsframework.core.bound import BoundModel as BoundModel
from fsframework.core.cache import Entry as Entry
from fsframework.core.cache import ReuseCache as ReuseCache
from fsframework.core.calibration import Artifact as Artifact
from fsframework.core.calibration import Calibration as Calibration
from fsframework.core.calibration import Curve as Curve
from fsframework.core.calibration import Fit as Fit
from fsframework.core.calibration import HeatMap as HeatMap
from fsframework.core.checkpoint import Checkpoint as Checkpoint
from fsframework.core.checkpoint import LoadedModel as LoadedModel
from fsframework.core.decision import DISCARD as DISCARD
from fsframework.core.decision import RECOMPUTE as RECOMPUTE
from fsframework.core.decision import REUSE as REUSE
from fsframework.core.decision import Blend as Blend
from fsframework.core.decision import Decision as Decision
from fsframework.core.decision import Forecast as Forecast
from fsframework.core.decision import Partial as Partial
from fsframework.core.decision import Recompute as Recompute
from fsframework.core.decision import Reuse as Reuse
from fsframework.core.decision import Synthesize as Synthesize
from fsframework.core.engine import ReuseEngine as ReuseEngine
from fsframework.core.meter import Meter as Meter
from fsframework.core.policy import Call as Call
from fsframework.core.policy import ReusePolicy as ReusePolicy
from fsframework.core.registry import ADAPTERS as ADAPTERS
from fsframework.core.registry import POLICIES as POLICIES
from fsframework.core.registry import Registry as Registry
from fsframework.core.review import ReuseWarning as ReuseWarning
from fsframework.core.site import Branch as Branch
from fsframework.core.site import Kind as Kind
from fsframework.core.site import Part as Part
from fsframework.core.site import Run as Run
from fsframework.core.site import Site as Site
from fsframework.core.site import State as State
from fsframework.core.site import Step as Step
from fsframework.core.staged import StagedSession as StagedSession
from fsframework.core.trace import Trace as Trace
