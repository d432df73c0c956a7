"""An answer of `decide` that is no decision is told with what to return instead."""

from dataclasses import dataclass
from typing import Any

import pytest
from toys import SmoothDiT, run_smooth, toy_session

from fsframework.core import Forecast, Part, ReusePolicy, Synthesize
from fsframework.core.decision import Reuse


@dataclass(frozen=True)
class Gives(ReusePolicy):
    """Answers with `answer`."""

    answer: Any = None
    part: Part = Part.BLOCK

    @property
    def parts(self):
        return frozenset({self.part})

    def decide(self, state, call, site):
        return self.answer


@pytest.mark.parametrize(
    ("part", "whom"),
    [(Part.MODEL, "the model"), (Part.TRUNK, "a region"), (Part.BLOCK, "a block"), (Part.MLP, "a sub-module")],
)
def test_what_is_no_decision_is_refused_in_the_first_step_and_the_mend_is_told(part, whom):
    def message(answer):
        model = SmoothDiT(num_blocks=1)
        with pytest.raises(TypeError) as error, toy_session(model, Gives(answer, part), 2):
            run_smooth(model, 1)
        return str(error.value)

    assert f"gave None; every way out of decide must return a decision: {whom} takes Recompute, Reuse" in message(None)
    assert message(Reuse).endswith("the class; return an object: Reuse()")
    assert message(Forecast).endswith("the class; return an object: Forecast(...)")
    assert f"gave True, which {whom} can not carry out; it takes Recompute, Reuse, Forecast" in message(True).replace(
        "Reuse or", "Reuse,"
    )
    if part is not Part.MODEL:
        assert f"which {whom} can not carry out" in message(Synthesize(lambda predictions: predictions["cond"]))
