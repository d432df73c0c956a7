from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from fsframework.core import POLICIES, Recompute, ReusePolicy
from fsframework.core.options import check_types
from fsframework.policies import DeltaDiT

Windows = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Options:
    threshold: float = 0.1
    warmup: float | int = 2
    interval: int = 2
    most: int | None = None
    on: bool = True
    name: str = "a"
    blocks: list[int] = field(default_factory=list)
    ratios: tuple[float, ...] | None = None
    windows: Windows | None = None
    steps: Mapping[str, list[int]] | None = None
    storage: Literal["output", "residual"] = "output"
    anything: Any = None
    other: Options | None = None

    def __post_init__(self):
        check_types(self, "mine")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 1},
        {"warmup": 0.5, "most": 3},
        {"interval": np.int64(3), "threshold": np.float32(0.5)},
        {"blocks": (1, 2), "ratios": [1, 0.5], "windows": [[1.0, 0.5]]},
        {"blocks": range(3), "ratios": []},
        {"steps": {"mlp": [1]}, "anything": object, "other": "not looked at"},
    ],
)
def test_options_of_their_type_pass(options):
    assert Options(**options) == Options(**options)


def test_numbers_of_numpy_become_pythons_so_that_a_fraction_is_told_from_a_count():
    options = Options(warmup=np.float32(0.25), interval=np.int64(3), most=np.int32(2))
    assert [(v, type(v)) for v in (options.warmup, options.interval, options.most)] == [
        (0.25, float),
        (3, int),
        (2, int),
    ]
    delta = DeltaDiT(boundary=np.float32(0.5), num_blocks=np.float32(0.25))
    assert delta.spans(8) == ((0, 2), (6, 8))
    assert delta == DeltaDiT(boundary=0.5, num_blocks=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "0.1"}, "mine: threshold='0.1' must be a number$"),
        ({"threshold": True}, "mine: threshold=True must be a number$"),
        ({"threshold": None}, "mine: threshold=None must be a number$"),
        ({"warmup": [1]}, r"mine: warmup=\[1\] must be a number$"),
        ({"interval": 2.0}, "mine: interval=2.0 must be a whole number$"),
        ({"most": 2.5}, "mine: most=2.5 must be a whole number or none$"),
        ({"on": 1}, "mine: on=1 must be True or False$"),
        ({"name": 3}, "mine: name=3 must be a string$"),
        ({"blocks": 3}, "mine: blocks=3 must be a list of whole numbers$"),
        ({"blocks": [1, 2.5]}, r"mine: blocks=\[1, 2.5\] must be a list of whole numbers$"),
        ({"ratios": "0.5"}, "mine: ratios='0.5' must be a list of numbers or none$"),
        ({"ratios": [0.5, True]}, r"mine: ratios=\[0.5, True\] must be a list of numbers or none$"),
        ({"windows": 3.0}, "mine: windows=3.0 must be a list or none$"),
        ({"steps": [1]}, r"mine: steps=\[1\] must be a mapping or none$"),
        ({"storage": 1}, "mine: storage=1 must be one of output, residual$"),
    ],
)
def test_an_option_of_another_type_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@dataclass(frozen=True)
class Plain(ReusePolicy[None]):
    """Says nothing about types."""

    interval: int = 2

    def decide(self, state, call, site):
        return Recompute()


@dataclass(frozen=True)
class Careful(Plain):
    """Compares its option, which asks for a number."""

    threshold: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.threshold < 0:
            raise ValueError("careful: threshold must be >= 0")


def test_every_policys_options_are_checked_before_it_looks_at_them_itself(monkeypatch):
    monkeypatch.setitem(POLICIES._entries, "careful", Careful)
    with pytest.raises(ValueError, match=r"^Plain: interval=2.5 must be a whole number$"):
        Plain(interval=2.5)
    with pytest.raises(ValueError, match=r"^careful: threshold='0.5' must be a number$"):
        Careful(threshold="0.5")
    with pytest.raises(ValueError, match=r"^careful: interval=2.5 must be a whole number$"):
        Careful(interval=2.5)
    with pytest.raises(ValueError, match=r"^careful: threshold must be >= 0$"):
        Careful(threshold=-1)
    assert Careful(threshold=1).threshold == 1
