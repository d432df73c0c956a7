"""Names for where and when: `Site`, `Step`, `Branch`, `Run`, and `State`, what flows through a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import StrEnum
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

State = tuple[Tensor, ...]
"""The token streams at a site, video first: `(video,)` or `(video, text)`. Stored and restored together, always."""


class Part(StrEnum):
    """How much of the model a site covers, from the whole to a sub-module."""

    MODEL = "model"
    """Latent in, prediction out."""
    TRUNK = "trunk"
    """All blocks: after the embedding, before the head. The head still sees this step's timestep."""
    SPAN = "span"
    """Some consecutive blocks, in execution order."""
    BLOCK = "block"
    """One transformer block."""
    ATTENTION = "attention"
    """Self-attention (or joint attention) inside a block."""
    CROSS_ATTENTION = "cross_attention"
    """Attention to the text inside a block."""
    MLP = "mlp"
    """Feed-forward inside a block."""

    @property
    def inside_block(self) -> bool:
        """Whether the part is a sub-module of a block."""
        return self in (Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP)


class Kind(StrEnum):
    """What a block attends over. A site of several blocks of different kinds is `mixed`."""

    SPATIAL = "spatial"
    TEMPORAL = "temporal"
    JOINT = "joint"
    SINGLE = "single"
    CONTROL = "control"
    MIXED = "mixed"


class Branch(StrEnum):
    """One guidance forward. `joint` is batched guidance: both halves in one call, decided together."""

    COND = "cond"
    UNCOND = "uncond"
    JOINT = "joint"


_SITES: WeakValueDictionary[tuple[object, ...], Site] = WeakValueDictionary()
_LOCK = Lock()


class _OneObjectPerValue(type):
    """Makes equal sites one and the same object, so that comparing and hashing them is comparing and hashing an address.

    Sites key every dictionary on the hot path. A `__hash__` written in Python, even one that gives a stored number, costs a
    call for each look-up; the address of an object costs none.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        with _LOCK:
            return _SITES.setdefault(astuple(made), made)


@dataclass(frozen=True, eq=False)
class Site(metaclass=_OneObjectPerValue):
    """One skippable region of the model, fixed for a run. Equal sites are the same object, also after copying or pickling.

    `start` and `stop` count blocks in the model's own execution order (Latte runs s0 t0 s1 t1 ..., so temporal block 1
    is `start=3, stop=4`); `ordinal` is the block's index in its own list, which is what people call it by.
    """

    part: Part
    kind: Kind
    start: int
    stop: int
    ordinal: int = 0
    denoiser: str = ""
    """Which denoiser of a pipeline with several: the pipeline's attribute, empty for the first."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"a site covers blocks start..stop-1 with 0 <= start < stop; got {self.start}..{self.stop}"
            )
        # "block" is equal to Part.BLOCK, and whichever comes first would be what both get.
        object.__setattr__(self, "part", Part(self.part))
        object.__setattr__(self, "kind", Kind(self.kind))

    def __reduce__(self) -> tuple[type[Site], tuple[Any, ...]]:
        return Site, astuple(self)

    @property
    def name(self) -> str:
        """`spatial.3`, `temporal.3.mlp`, `span.0-12`, `trunk`, `model`: unique in a run, the trace's `site` column."""
        prefix = f"{self.denoiser}." if self.denoiser else ""
        if self.part in (Part.MODEL, Part.TRUNK):
            return prefix + self.part.value
        if self.part is Part.SPAN:
            return f"{prefix}span.{self.start}-{self.stop}"
        block = f"{prefix}{self.kind.value}.{self.ordinal}"
        return block if self.part is Part.BLOCK else f"{block}.{self.part.value}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Step:
    """One denoising step. `index` is 0-based and comes from the sampler; `timestep` is the scheduler's value."""

    index: int
    num_steps: int
    timestep: float


@dataclass(frozen=True)
class Run:
    """What is known before a video's first step."""

    num_steps: int
    timesteps: Sequence[float]
    sites: Sequence[Site]
    """Every site the policy asked about, in execution order, outer before inner."""
    branch: str = Branch.JOINT
    """The guidance branch this state is for; a policy's state is made once per branch."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Model, sampler and device as the adapter knows them; for artifacts to be checked against."""
    depth: int = 1
    """How many past values of a site a reuse draws on. More than 1 where a forecast takes the place of the policy's copy: one
    with a plan then keeps what the forecast goes through, not only the newest value."""

    def sites_of(self, *parts: Part) -> list[Site]:
        """The sites of the given parts, in execution order."""
        return [site for site in self.sites if site.part in parts]
