"""A video of NaN is blamed on what made it, not on the metric that meets it first."""

from dataclasses import dataclass

import pytest
import torch

from fsframework.config import load_config
from fsframework.core import POLICIES, Forecast, Recompute, ReusePolicy
from fsframework.run import runner


@dataclass(frozen=True)
class PutsNaN(ReusePolicy):
    """Puts NaN in place of every block in the last step."""

    def decide(self, state, call, site):
        if call.step.index < call.step.num_steps - 1:
            return Recompute()
        return Forecast(lambda history, step: tuple(torch.full_like(v, torch.nan) for v in history[-1].value))


def test_a_video_of_nan_names_the_policy(tmp_path, overrides, loaded_model, monkeypatch):
    monkeypatch.setitem(POLICIES._entries, "puts-nan", PutsNaN)
    given = [o for o in overrides if not o.startswith("policy")]
    with pytest.raises(
        ValueError, match=r"^policy puts-nan gave a video of which 100% is not finite .*Full compute does not"
    ):
        runner.run(load_config(None, [*given, "policy=puts-nan", "prompts.limit=1"]), loaded_model)
