from dataclasses import dataclass, field

import numpy as np
import pytest

from fsframework.core.options import check_types


@dataclass(frozen=True)
class Options:
    threshold: float = 0.1
    warmup: float | int = 2
    interval: int = 2
    most: int | None = None
    on: bool = True
    name: str = "a"
    blocks: list[int] = field(default_factory=list)

    def __post_init__(self):
        check_types(self, "mine")


@dataclass(frozen=True)
class Postponed:
    """Annotations that are text, as with `from __future__ import annotations`."""

    interval: "int" = 2
    most: "int | None" = None


@pytest.mark.parametrize("options", [{"interval": 2.5}, {"most": 2.5}])
def test_annotations_that_are_text_are_read_too(options):
    check_types(Postponed(most=1), "mine")
    with pytest.raises(ValueError, match=r"=2.5 must be a whole number"):
        check_types(Postponed(**options), "mine")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 1},
        {"warmup": 0.5, "most": 3},
        {"interval": np.int64(3), "threshold": np.float32(0.5)},
        {"blocks": "not looked at"},
    ],
)
def test_options_of_their_type_pass(options):
    assert Options(**options) == Options(**options)


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
    ],
)
def test_an_option_of_another_type_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
