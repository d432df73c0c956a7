"""What the policy promises."""

from pathlib import Path

import pytest

from fsframework.run.resolve import build_policy, load_plugin

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def plugin():
    load_plugin(HERE / "policy.py")


def letters(policy, num_steps=12):
    """Decisions of the first block of a random Latte transformer over a run, C recompute, R reuse."""
    import torch
    from diffusers import LatteTransformer3DModel

    import fsframework as fsf
    from fsframework.models import Latte

    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(**Latte.tiny_config).eval()
    inputs = Latte().example_inputs(transformer, 1, torch.Generator().manual_seed(0))
    timesteps = [float(t) for t in range(1000, 0, -1000 // num_steps)][:num_steps]
    with torch.no_grad(), fsf.reuse(transformer, policy, timesteps=timesteps) as session:
        for timestep in timesteps:
            transformer(**inputs, timestep=torch.tensor([timestep]))
    return session.trace.decisions("spatial.0")


def test_last_steps_are_recomputed_and_steps_before_them_are_as_foresight_decides():
    plain = letters(build_policy({"name": "foresight", "gamma": 1e6, "warmup": 3}))
    delayed = letters(build_policy({"name": "delayed_foresight", "gamma": 1e6, "warmup": 3, "last_steps": 4}))
    assert plain == "CCCRCRCRCRCR"
    assert delayed == "CCCRCRCRCCCC"


def test_negative_last_steps_is_refused():
    with pytest.raises(ValueError, match="last_steps=-1 must be at least 0"):
        build_policy({"name": "delayed_foresight", "last_steps": -1})
