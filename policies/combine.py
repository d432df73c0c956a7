"""Several policies side by side, each about its own parts of the model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from torch import Tensor

from fsframework.core import (
    DISCARD,
    POLICIES,
    Call,
    Decision,
    Entry,
    Part,
    ReusePolicy,
    ReuseWarning,
    Run,
    Site,
    State,
)
from fsframework.core.calibration import Calibration
from fsframework.core.meter import Meter
from fsframework.core.policy import Storage, as_policy
from fsframework.core.registry import nearest


@dataclass
class CombinedState:
    """The policies' states, and how each sees the run and the forward in progress."""

    states: list[Any]
    runs: list[Run]
    owner: dict[Site, int]
    """Which policy a site belongs to."""
    calls: list[Call] = field(default_factory=list)
    """One view of the forward in progress per policy; empty between forwards."""


@POLICIES.register("combine")
@dataclass(frozen=True)
class Combined(ReusePolicy[CombinedState]):
    """Runs several policies at once, each deciding about the parts it asks about, or about those of them that `only` names.

    A site belongs to one policy. Outer parts are asked first (the whole model, the trunk, spans, blocks, sub-modules), and
    inner ones only where the outer was recomputed: a branch policy with a block policy, a block policy with one for
    sub-modules, attention by one rule and the MLP by another. Every policy sees the run with its own sites only, and has a
    state, posted values and kept tensors of its own, so none can tell that it is not alone; except that an inner one is
    not asked in steps in which an outer one reuses, and so may find its values older than it planned. Two schedules can
    miss each other for good (the inner one always recomputes when the outer one reuses); where both are known beforehand
    that is a warning.

    Granularity: each policy's, for its sites, and so are storage, depth and gates. Caches what they cache together. An outer
    value holds what the inner policies made of that step: reuse on top of reuse. Host reads: the sum of theirs.

    What can not be together is an error: two policies about the same sites, `eliminate_dead` (which asks for all blocks
    before anything runs, so nothing outside or inside them could be asked in its turn), and jumps over blocks beside spans or
    other policies' blocks, which they would pass over.
    """

    paper = "our own"
    signal = "each policy's"
    deviations = "Not published; several papers combine two methods in this way."
    divides = True
    policy_fields = ("policies",)
    example = {
        "policies": (
            {"name": "static", "storage": "residual", "interval": 3, "reuse_steps": 1, "warmup": 2},
            {"name": "taylorseer", "interval": 3, "first_steps": 2},
        )
    }
    never = {"policies": ("full",), "only": None}

    policies: Any = ("static",)
    """The policies: objects, names, or mappings with `name` and options. Their order does not matter."""
    only: Any = None
    """Per policy, which of the sites it asks about are its own: a pattern of site names as in the trace (`spatial.*`,
    `*.mlp`, `joint.1[0-9]`), several of them, or null for all. In the policies' order; None is all for every policy."""

    def __post_init__(self) -> None:
        given = self.policies
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            alone = isinstance(given, (str, Mapping, ReusePolicy))
            raise ValueError(
                "combine: policies must be a list of policies, such as [foresight, fora]; found "
                + (f"{_written(given)} alone, which needs no `combine`" if alone else _written(given))
            )
        policies = tuple(as_policy(one, f"combine: policies[{i}]") for i, one in enumerate(given))
        object.__setattr__(self, "policies", policies)
        if self.only is not None:
            object.__setattr__(self, "only", self._patterns())
        self._check_together()

    def _patterns(self) -> tuple[tuple[str, ...] | None, ...]:
        """`only`, checked: per policy a tuple of patterns, or None."""
        if isinstance(self.only, str) or not isinstance(self.only, Sequence) or len(self.only) != len(self.policies):
            raise ValueError(
                f"combine: only must have one entry for each of the {len(self.policies)} policies, such as ['*.mlp', null]; "
                f"found {self.only!r}"
            )
        out: list[tuple[str, ...] | None] = []
        for i, one in enumerate(self.only):
            patterns = (one,) if isinstance(one, str) else one
            if patterns is not None and (
                not isinstance(patterns, Sequence) or not patterns or not all(isinstance(p, str) for p in patterns)
            ):
                raise ValueError(f"combine: only[{i}]={one!r} must be a pattern of site names, a list of them, or null")
            out.append(None if patterns is None else tuple(patterns))
        return tuple(out)

    def _check_together(self) -> None:
        if len(self.policies) == 1:
            return
        for i, policy in enumerate(self.policies):
            if policy.eliminate_dead:
                raise ValueError(
                    f"combine: {self._name(i)} has eliminate_dead, which asks for all blocks before anything runs, so the "
                    f"other policies could not be asked in their turn. Set eliminate_dead to false."
                )
            for j, other in enumerate(self.policies[:i]):
                shared = policy.parts & other.parts
                if shared and self._filter(i) is None and self._filter(j) is None:
                    raise ValueError(
                        f"combine: {self._name(j)} and {self._name(i)} both ask about {_parts(shared)}; a site belongs to "
                        f"one policy. Choose other parts, or say with `only` which sites are whose."
                    )
                for a, b in ((i, j), (j, i)):
                    passed = self.policies[b].parts & {Part.SPAN, Part.BLOCK}
                    if self.policies[a].jumps and passed:
                        raise ValueError(
                            f"combine: {self._name(a)} jumps over blocks, and so over the {_parts(passed)} sites of "
                            f"{self._name(b)}. Use one that reuses block by block (storage='residual')."
                        )

    def _filter(self, index: int) -> tuple[str, ...] | None:
        return None if self.only is None else cast("tuple[str, ...] | None", self.only[index])

    def _name(self, index: int) -> str:
        name = POLICIES.name_of(type(self.policies[index]))
        twice = sum(type(p) is type(self.policies[index]) for p in self.policies) > 1
        return f"{name} (policies[{index}])" if twice else name

    # Whose site it is.

    def _owner(self, site: Site) -> int | None:
        """The policy a site belongs to; None where no pattern takes it."""
        name = dataclasses.replace(site, denoiser="").name
        owners = [
            i for i, policy in enumerate(self.policies) if site.part in policy.parts and _is_in(name, self._filter(i))
        ]
        if len(owners) > 1:
            raise ValueError(
                f"combine: {self._name(owners[0])} and {self._name(owners[1])} both ask about {site}; a site belongs to one "
                f"policy. Say with `only` which sites are whose."
            )
        return owners[0] if owners else None

    def _own_runs(self, run: Run) -> list[Run]:
        owners = [self._owner(site) for site in run.sites]
        return [
            dataclasses.replace(run, sites=[s for s, owner in zip(run.sites, owners, strict=True) if owner == i])
            for i in range(len(self.policies))
        ]

    # What the engine asks about the policy.

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Everything that any of them asks about."""
        return frozenset[Part]().union(*(policy.parts for policy in self.policies))

    @property
    def depth(self) -> int:  # type: ignore[override]
        """The deepest."""
        return max(policy.depth for policy in self.policies)

    @property
    def eliminate_dead(self) -> bool:  # type: ignore[override]
        """Of a single policy."""
        return any(policy.eliminate_dead for policy in self.policies)

    @property
    def jumps(self) -> bool:
        """Whether any of them does."""
        return any(policy.jumps for policy in self.policies)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether all of them are."""
        return all(policy.differentiable for policy in self.policies)

    @property
    def host_reads_per_step(self) -> int:  # type: ignore[override]
        """Their sum."""
        return sum(policy.host_reads_per_step for policy in self.policies)

    def storage_of(self, site: Site) -> Storage:
        """The owner's."""
        owner = self._owner(site)
        return "output" if owner is None else cast(Storage, self.policies[owner].storage_of(site))

    def depth_of(self, site: Site) -> int:
        """The owner's."""
        owner = self._owner(site)
        return 1 if owner is None else int(self.policies[owner].depth_of(site))

    def gate_of(self, site: Site) -> Literal["pre", "post"]:
        """The owner's."""
        owner = self._owner(site)
        return "pre" if owner is None else cast(Literal["pre", "post"], self.policies[owner].gate_of(site))

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """All of theirs, in execution order, outer before inner."""
        asked = [span for p in self.policies if Part.SPAN in p.parts for span in p.spans(num_blocks)]
        return sorted(set(asked), key=lambda span: (span[0], -span[1]))

    def schedule(self, run: Run) -> list[bool] | None:
        """A step recomputes everything iff all of them do; None unless all know."""
        schedules = [policy.schedule(own) for policy, own in zip(self.policies, self._own_runs(run), strict=True)]
        return None if any(s is None for s in schedules) else [all(step) for step in zip(*schedules, strict=True)]

    def num_cached(self, run: Run) -> int:
        """Their sum."""
        return sum(policy.num_cached(own) for policy, own in zip(self.policies, self._own_runs(run), strict=True))

    def num_kept(self, run: Run) -> int:
        """Their sum."""
        return sum(policy.num_kept(own) for policy, own in zip(self.policies, self._own_runs(run), strict=True))

    def num_host_reads(self, run: Run) -> int:
        """Their sum."""
        return sum(policy.num_host_reads(own) for policy, own in zip(self.policies, self._own_runs(run), strict=True))

    def calibration(self) -> Calibration | None:
        """That of the first which has one: whoever asks is told to calibrate it by itself."""
        found = (policy.calibration() for policy in self.policies)
        return next((calibration for calibration in found if calibration is not None), None)

    def inner(self, run: Run) -> Sequence[tuple[str, ReusePolicy[Any], Run]]:
        """Each policy with its own sites; in place of one that holds others, those."""
        out: list[tuple[str, ReusePolicy[Any], Run]] = []
        for i, (policy, own) in enumerate(zip(self.policies, self._own_runs(run), strict=True)):
            out += policy.inner(own) or [(self._name(i), policy, own)]
        return out

    # A forward.

    def start(self, run: Run) -> CombinedState:
        """Start each policy on its own sites; one without any is an error, as it is alone."""
        runs = self._own_runs(run)
        for i, own in enumerate(runs):
            asked = [dataclasses.replace(s, denoiser="") for s in run.sites if s.part in self.policies[i].parts]
            found = [site.name for site in asked]
            hint = _nearest_pattern(self._filter(i) or (), asked)
            if not own.sites:
                raise ValueError(
                    f"combine: {self._name(i)} asks about {_parts(self.policies[i].parts)}, and "
                    + (
                        f"only={list(self._filter(i) or ())} takes none of its sites. {hint}"
                        if found
                        else _no_such(run)
                    )
                )
            for pattern in self._filter(i) or ():
                if not any(_is_in(name, (pattern,)) for name in found):
                    warnings.warn(
                        f"combine: {pattern!r} in `only` of {self._name(i)} takes no site of this model. {hint}",
                        ReuseWarning,
                        stacklevel=2,
                    )
        self._check_schedules(runs)
        states = [policy.start(own) for policy, own in zip(self.policies, runs, strict=True)]
        owner = {site: i for i, own in enumerate(runs) for site in own.sites}
        return CombinedState(states, runs, owner)

    def _check_schedules(self, runs: list[Run]) -> None:
        """Warn where an inner policy's recomputes fall into the reuse steps of an outer one for much of the run."""
        plans = [policy.schedule(own) for policy, own in zip(self.policies, runs, strict=True)]
        for i, outer in enumerate(plans):
            for j, inner in enumerate(plans):
                if outer is None or inner is None or _level(self.policies[i]) >= _level(self.policies[j]):
                    continue
                lag, planned = _longest_lag([a and b for a, b in zip(inner, outer, strict=True)]), _longest_lag(inner)
                if lag > 2 * (planned + _longest_lag(outer)):
                    warnings.warn(
                        f"combine: {self._name(j)} plans to recompute at least every {planned + 1} steps, but is not asked "
                        f"when {self._name(i)} reuses, and so goes up to {lag} steps without. Choose another interval, "
                        f"phase or start for one of them.",
                        ReuseWarning,
                        stacklevel=2,
                    )

    def begin_forward(self, state: CombinedState, call: Call) -> None:
        """Each plans."""
        state.calls = [cast(Call, _OwnCall(call, i, own)) for i, own in enumerate(state.runs)]
        for policy, own_state, own_call in zip(self.policies, state.states, state.calls, strict=True):
            policy.begin_forward(own_state, own_call)

    def decide(self, state: CombinedState, call: Call, site: Site) -> Decision:
        """The owner decides."""
        owner = state.owner.get(site)
        if owner is None:
            return DISCARD
        return cast(Decision, self.policies[owner].decide(state.states[owner], state.calls[owner], site))

    def observe(self, state: CombinedState, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool | None:
        """The owner observes."""
        owner = state.owner.get(site)
        if owner is None:
            return None
        return cast(
            "bool | None", self.policies[owner].observe(state.states[owner], state.calls[owner], site, fresh, cached)
        )

    def end_forward(self, state: CombinedState, call: Call) -> None:
        """Each ends; nothing of the forward is held on to."""
        for policy, own_state, own_call in zip(self.policies, state.states, state.calls, strict=True):
            policy.end_forward(own_state, own_call)
        state.calls = []


class _OwnCall:
    """A `Call` as one of the policies sees it: with its sites, its state in other branches, and names of its own."""

    def __init__(self, call: Call, index: int, run: Run) -> None:
        self._call, self._index = call, index
        self.run = run
        self.meter = _OwnMeter(call.meter, index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def state_of(self, branch: str) -> object | None:
        """See `Call.state_of`."""
        state = self._call.state_of(branch)
        return state.states[self._index] if isinstance(state, CombinedState) else state

    def keep(self, name: str, value: State) -> None:
        """See `Call.keep`."""
        self._call.keep(f"{self._index}.{name}", value)

    def kept(self, name: str) -> State | None:
        """See `Call.kept`."""
        return self._call.kept(f"{self._index}.{name}")


class _OwnMeter:
    """A `Meter` whose posted values are one policy's own; reads count in the session's."""

    def __init__(self, meter: Meter, index: int) -> None:
        self._meter, self._index = meter, index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)

    def post(self, key: str, x: Tensor) -> None:
        """See `Meter.post`."""
        self._meter.post(f"{self._index}.{key}", x)

    def take(self, key: str) -> list[float] | None:
        """See `Meter.take`."""
        return self._meter.take(f"{self._index}.{key}")


def _written(policies: Any) -> str:
    """What was given as `policies`, as one would write it."""
    if isinstance(policies, ReusePolicy):
        return POLICIES.name_of(type(policies))
    return "an empty list" if isinstance(policies, Sequence) and not policies else repr(policies)


def _nearest_pattern(patterns: Sequence[str], sites: Sequence[Site]) -> str:
    """Did you mean ...? And the patterns that stand for a kind of block, or for a sub-module of every block."""
    known = dict.fromkeys(f"{s.kind.value}.*" if s.part in _IN_BLOCKS else s.name for s in sites)
    known |= dict.fromkeys(f"*.{s.part.value}" for s in sites if s.part.inside_block)
    names = {site.name for site in sites}
    wrong = next((p for p in patterns if not any(_is_in(name, (p,)) for name in names)), "")
    return nearest(wrong, list(known))


def _no_such(run: Run) -> str:
    found = _parts(frozenset(site.part for site in run.sites))
    return "the model has no such site" + (f"; of what is asked about it has {found}" if found else "")


def _is_in(name: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _level(policy: ReusePolicy[Any]) -> int:
    """How far inside the model a policy is asked first: 0 the whole, 1 trunk, 2 span, 3 block, 4 inside blocks."""
    levels = [Part.MODEL, Part.TRUNK, Part.SPAN, Part.BLOCK]
    return min(levels.index(part) if part in levels else len(levels) for part in policy.parts)


def _longest_lag(recomputes: Sequence[bool]) -> int:
    """The most steps in a row without a recompute."""
    longest = now = 0
    for full in recomputes:
        now = 0 if full else now + 1
        longest = max(longest, now)
    return longest


def _parts(parts: frozenset[Part]) -> str:
    return ", ".join(part.value for part in Part if part in parts)


_IN_BLOCKS = frozenset({Part.BLOCK, *(part for part in Part if part.inside_block)})
"""Parts whose sites are named by the kind of their block."""
