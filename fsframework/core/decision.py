"""What a policy can answer when asked about a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from torch import Tensor

from fsframework.core.site import Branch, Site, State, Step

if TYPE_CHECKING:
    from fsframework.core.cache import Entry


@dataclass(frozen=True)
class Recompute:
    """Run the site. `keep=False`: do not store the result (it will never be reused)."""

    keep: bool = True


@dataclass(frozen=True)
class Reuse:
    """Do not run the site; put its cached value in place.

    `through` jumps: everything from this block up to and including block site `through` is passed over, and the cached
    *output* of `through` is restored. Legal for block sites with output storage, `through` at or after the site.
    With an empty cache the site is recomputed and the trace says `forced`.
    """

    through: Site | None = None


@dataclass(frozen=True)
class Forecast:
    """Do not run the site; put `fn(history, step)` in place.

    `history` is oldest to newest, at most `policy.depth` entries, at least one (else the site is recomputed, forced).
    `fn` returns a `State` in the policy's storage: an output, or a residual that the engine adds to the live input.
    """

    fn: Callable[[Sequence[Entry], Step], State]
    through: Site | None = None
    """A jump, as of `Reuse`, at whose end the forecast of the output of `through`, from its history, is put in place."""


@dataclass(frozen=True)
class Blend:
    """Run the site and return `weight * fresh + (1 - weight) * cached`; differentiable, for learning a router.

    `weight` is a scalar or broadcasts against every stream. `keep`: store the fresh value.
    """

    weight: Tensor
    keep: bool = False


@dataclass(frozen=True)
class Partial:
    """Run the site on some tokens only; the others keep their cached value.

    `index` is int64, [k] (the same tokens for the whole batch) or [B, k], into the token axis of the site's first
    input. A site that mixes tokens sees only the chosen ones. The merged value is stored.
    """

    index: Tensor


@dataclass(frozen=True)
class Synthesize:
    """Do not run guidance branch `branch`; make its prediction from the others'. Only for `Part.MODEL`.

    `fn` gets this step's predictions by branch name and returns the missing one, same shape. Under batched guidance
    the engine runs the other half of the batch alone. If a prediction it needs is absent the model is run (forced).
    """

    fn: Callable[[Mapping[str, Tensor]], Tensor]
    branch: str = Branch.UNCOND


Decision = Union[Recompute, Reuse, Forecast, Blend, Partial, Synthesize]


def wrong_decision(policy: object, site: Site, found: object, whom: str, takes: str) -> TypeError:
    """The error where `decide` answered with something that can not be carried out; `takes` says what can."""
    gave = f"{type(policy).__name__}.decide({site}) gave {found!r}"
    if found is None:
        return TypeError(f"{gave}; every way out of decide must return a decision: {whom} takes {takes}")
    if isinstance(found, type) and found.__name__ in takes:
        arguments = "" if found in (Recompute, Reuse) else "..."
        return TypeError(f"{gave}, the class; return an object: {found.__name__}({arguments})")
    return TypeError(f"{gave}, which {whom} can not carry out; it takes {takes}")


RECOMPUTE = Recompute()
DISCARD = Recompute(keep=False)
REUSE = Reuse()
