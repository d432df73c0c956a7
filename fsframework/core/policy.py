"""`ReusePolicy`: the interface to every reuse method, published or yours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor

from fsframework.core.decision import Decision
from fsframework.core.meter import Meter
from fsframework.core.options import check_types
from fsframework.core.registry import POLICIES
from fsframework.core.site import Part, Run, Site, State, Step

if TYPE_CHECKING:
    from fsframework.core.cache import Entry
    from fsframework.core.calibration import Calibration

S = TypeVar("S")
Storage = Literal["output", "residual"]


class Call(Protocol):
    """What a policy may know during one forward of one guidance branch. Reading any of it never waits for a device."""

    run: Run
    step: Step
    branch: str
    num_samples: int
    """Samples in this forward's batch. Streams may fold frames or tokens into it: [(B F), N, C]; B is outermost."""
    meter: Meter
    """The only door from device to host; see `Meter`."""

    def history(self, site: Site, branch: str | None = None) -> Sequence[Entry]:
        """What is cached for `site` in this branch, oldest to newest; each entry says at which step it was computed.

        `branch` asks for another one's, for policies that mix guidance branches. Where one half of a guidance batch runs
        alone, both halves can be asked for what the batch stored.
        """

    def predictions(self) -> Mapping[str, Tensor]:
        """What the model predicted in this step so far, by guidance branch: in `observe` of the MODEL site and in
        `end_forward` with this forward's own. The halves of a guidance batch are apart if it is known to be one
        (`run.facts["guided"]` is True), else it is one entry, `joint`. Empty unless the policy asks about `Part.MODEL`."""

    def input(self) -> State:
        """The streams entering the site being asked about (`decide`, `observe`), or the latent (`begin_forward`, and
        `decide` under `eliminate_dead`, which asks before any block runs)."""

    def canonical(self, site: Site, value: State) -> State:
        """A block's streams with an axis folded into the batch brought out, [B, F, N, C], so that the outputs of
        spatial and temporal blocks can be compared; unchanged where nothing is folded."""

    def probe(self, name: str) -> Tensor:
        """A tensor the adapter can provide by name: `latent`, `prompt_norm` (0-d: the size of the prompt's embedding, 1 where
        the model takes none), and what else its family states about the model or the block execution has come to."""

    def video_tokens(self, site: Site) -> Tensor:
        """The video tokens entering the site being asked about, [rows, N, C]: what the index of a `Partial` counts.
        ValueError where the site can not run on some tokens, naming the parts that can."""

    def state_of(self, branch: str) -> object | None:
        """Another branch's policy state, for policies that decide on one branch and follow on the others."""

    def keep(self, name: str, value: State) -> None:
        """Keep tensors of the policy's own for later steps of this branch, in place of what was kept under `name`: a
        signal to compare with, say. They count as cache bytes and follow the cache's dtype and device."""

    def kept(self, name: str) -> State | None:
        """What this branch last kept under `name`, or None."""

    def log(
        self, distance: Tensor | float | None = None, threshold: Tensor | float | None = None, **more: Tensor | float
    ) -> None:
        """Write the trace's `distance` or `threshold` for the site being visited, or any other named number (then found
        by `Trace.logged(name)`). Tensors, 0-d, are read after the video."""


class ReusePolicy(ABC, Generic[S]):
    """Decides, per denoising step and site, whether to run a part of the model or to reuse what it gave before.

    A policy is *frozen hyper-parameters*: subclass as `@dataclass(frozen=True)` with documented fields, so that the
    class itself is its config schema. What changes during a video lives in a separate state `S`, which the engine makes
    with `start` for every video and guidance branch and drops afterwards: nothing can leak between prompts.

    For every forward of the transformer the engine calls, in this order::

        begin_forward(state, call)                 plan; at most one host read, through call.meter
          for each site, in execution order, outer before inner:
            decide(state, call, site) -> Decision  the only abstract method
            [the site runs, if the decision says so]
            observe(state, call, site, fresh, cached)   only if it really ran, before the cache entry is replaced
        end_forward(state, call)

    An outer site that is not recomputed is not descended into. The engine turns a reuse of an empty cache into a
    recompute and marks it `forced`, so a policy may answer `Reuse()` freely.

    Nothing here may wait for the device: no `.item()`, `float(tensor)` or `if tensor`. Hand device scalars to
    `call.meter` and read them a step later.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the types of the options be checked before the class checks their values."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get(_CHECK)
        if own is not None:
            setattr(cls, _CHECK, _after_types(own))

    def __post_init__(self) -> None:
        """Check that each option is of the type it is annotated with; a class that checks values need not call this.

        Raises:
            ValueError: one is not.
        """
        check_types(self, POLICIES.name_of(type(self)))

    paper: ClassVar[str] = ""
    """Where the method is from: name, arXiv number or repository."""
    signal: ClassVar[str] = ""
    """What a decision rests on, in a few words, and when that is known: "the step's number", "relative L1 change of the
    modulated input, before the first block"."""
    deviations: ClassVar[str] = ""
    """Where this differs from the paper or the released code, in a sentence or two."""

    parts: ClassVar[frozenset[Part]] = frozenset({Part.BLOCK})
    """Which parts of the model the policy is asked about. A property where the options decide."""

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings published for a model: checkpoint or family name -> option -> value. They take the place of options that
    are left at None (`option`); the entry "" is for every other model."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Options with which it runs for some steps on any model that has its parts, where the defaults do not (they need a
    calibration, say): for the contract suites."""
    never: ClassVar[Mapping[str, Any]] = {}
    """Options, besides `example`, with which it never reuses: for the contract suites, where that must change nothing."""

    divides: ClassVar[bool] = False
    """Whether it only shares the sites out among policies inside (`inner`) and passes calls on to them."""

    policy_fields: ClassVar[tuple[str, ...]] = ()
    """Options that hold a policy, or a list of them; in a config each is a mapping with a `name`."""

    storage: Storage = "output"
    """Whether the cache keeps a site's output, or its output minus its input (added to the live input on reuse).
    Sub-modules always keep their output, which is the block's residual."""

    depth: int = 1
    """How many past values of each site are kept (for forecasts)."""

    def storage_of(self, site: Site) -> Storage:
        """`storage`, where it differs from site to site (block outputs but the trunk's residual, say)."""
        return self.storage

    def depth_of(self, site: Site) -> int:
        """`depth`, where it differs from site to site."""
        return self.depth

    gate: Literal["pre", "post"] = "pre"
    """Sub-module values before or after the block's gate. `post` needs an adapter that states its gates."""

    def gate_of(self, site: Site) -> Literal["pre", "post"]:
        """`gate`, where it differs from site to site."""
        return self.gate

    eliminate_dead: bool = False
    """With output storage, a reused block throws away what the blocks before it computed in that step. `True` lets the
    engine not run them; `decide` is then asked for all blocks at the start of the forward."""

    @property
    def jumps(self) -> bool:
        """Whether `decide` may answer `Reuse(through=...)` a later block. Not every model can be jumped over; with this
        it is found out at the session's start and not in the middle of a video."""
        return False

    differentiable: ClassVar[bool] = False
    """Whether the policy works under autograd (`Blend`). Others are bypassed, with a warning, when gradients are on."""

    host_reads_per_step: ClassVar[int] = 0
    """The most device-to-host reads per denoising step of one guidance branch; a contract test counts them."""

    def num_host_reads(self, run: Run) -> int:
        """`host_reads_per_step`, where it depends on the model (one per block, say)."""
        del run
        return self.host_reads_per_step

    @abstractmethod
    def decide(self, state: S, call: Call, site: Site) -> Decision:
        """What to do at `site` now. Must not depend on anything but `state`, `call` and the policy's own fields."""

    def start(self, run: Run) -> S:
        """A fresh state for one video and branch. Raise `ValueError` here when the policy does not fit the run."""
        del run
        return None  # type: ignore[return-value]

    def begin_forward(self, state: S, call: Call) -> None:
        """Called before the first site of a forward."""

    def observe(self, state: S, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool | None:
        """Called after `site` really ran. `fresh` is its output, `cached` what was stored before (None at first).

        Return False to not store `fresh` although the decision said to keep it: a policy may find out only here.
        For TRUNK and SPAN sites `fresh`, `cached` and `call.input()` are in canonical layout (see `Call.canonical`).
        """

    def end_forward(self, state: S, call: Call) -> None:
        """Called after the last site of a forward."""

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """The (start, stop) of the SPAN sites to be asked about, in execution order. Only with `Part.SPAN`."""
        del num_blocks
        return ()

    def schedule(self, run: Run) -> list[bool] | None:
        """Per step, whether everything is recomputed, for policies that know before the run; else None."""
        del run
        return None

    def num_cached(self, run: Run) -> int:
        """How many site values are cached at once, at most, per branch; with `run.depth` of them per site where a forecast
        draws on so many. By default every step may be computed and stored."""
        return sum(min(max(self.depth_of(site), run.depth), run.num_steps) for site in run.sites)

    def num_kept(self, run: Run) -> int:
        """How many tensors are kept with `Call.keep` at once, at most, per branch."""
        del run
        return 0

    def calibration(self) -> Calibration | None:
        """How the numbers this policy needs are measured for a model (`fsf calibrate`); None where it needs none."""
        return None

    def inner(self, run: Run) -> Sequence[tuple[str, ReusePolicy[Any], Run]]:
        """The policies inside that decide about sites of their own: each one's name, itself, and the run as it sees it, so
        that a review can say of each whether it reused. By default those of the policies in `policy_fields`, which all see
        the whole run; one that shares the sites out says here how."""
        held = [getattr(self, name) for name in self.policy_fields]
        policies = [p for value in held for p in (value if isinstance(value, (list, tuple)) else [value])]
        return [one for policy in policies for one in policy.inner(run)]

    def option(self, name: str, run: Run) -> Any:
        """An option's value for a run: as given, or where it is None as published for the run's checkpoint or family.

        Raises:
            ValueError: it is None and nothing was published for this model.
        """
        given = getattr(self, name)
        if given is not None:
            return given
        known = (run.facts.get("checkpoint"), run.facts.get("family"), "")
        for model in known:
            if isinstance(model, str) and name in self.published.get(model, {}):
                return self.published[model][name]
        models = ", ".join(model or "any" for model, options in self.published.items() if name in options)
        calibration = self.calibration()
        is_measured = calibration is not None and name not in calibration.fit_options  # those are given to it
        hint = " Or measure it: `fsf calibrate`." if is_measured else ""
        raise ValueError(
            f"{type(self).__name__}: {name} was published for {models or 'no model'}, not for "
            f"{known[0] or known[1] or 'this model'}; set {name} yourself.{hint}"
        )


_CHECK = "__post_init__"


def _after_types(check_values: Callable[[Any], None]) -> Callable[[Any], None]:
    """A class's own `__post_init__`, behind the check of types."""

    @wraps(check_values)
    def check(policy: Any) -> None:
        check_types(policy, POLICIES.name_of(type(policy)))
        check_values(policy)

    return check


def as_policy(value: Any, option: str) -> ReusePolicy[Any]:
    """What an option in `policy_fields` may be given as: a policy, its registered name, or a mapping with `name` and options.

    Raises:
        ValueError: it is none of these, or names no policy. `option` says where, as in "forecast: base".
    """
    if isinstance(value, ReusePolicy):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        found = f"a list of {len(value)}" if isinstance(value, (list, tuple)) else repr(value)
        raise ValueError(
            f"{option} must be a policy, its name, or a mapping such as {{name: static, interval: 3}}; found {found}"
        )
    return POLICIES[value["name"]](**{key: given for key, given in value.items() if key != "name"})
