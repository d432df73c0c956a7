"""The bundled pipelines, as a user loads them."""

import json
from pathlib import Path

import numpy as np
import pytest

from fsframework.metrics.adherence import PromptAdherence
from fsframework.models.loading import load_model
from fsframework.train.config import load_config

BUNDLED = Path(__file__).parents[2] / "models"
NUM_BLOCKS = {"tiny-latte": 16, "tiny-cogvideox": 12, "tiny-opensora": 16}
MORE_ARGUMENTS = {"tiny-cogvideox": {"max_sequence_length": 16}}


@pytest.mark.slow
@pytest.mark.parametrize("name", NUM_BLOCKS)
@pytest.mark.parametrize("prompt", ["digit 6 is moving up and down", "digit 8 is moving left and right"])
def test_shipped_model_draws_the_digit_and_moves_it_as_told(name, prompt):
    model = load_model(name)
    model.pipe.set_progress_bar_config(disable=True)
    assert len(model.bind().blocks) == NUM_BLOCKS[name]
    frames = model.generate(prompt, seed=42, num_steps=25, **MORE_ARGUMENTS.get(name, {})).numpy()
    result = PromptAdherence().score(frames, prompt)
    assert (result.digit, result.motion) == (True, True)
    corners = frames[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) < 0.05  # black background, which needs zero terminal SNR


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_shipped_folder_is_small_and_has_its_record(name):
    folder = BUNDLED / name
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 12e6
    evaluation = json.loads((folder / "training" / "evaluation.json").read_text())
    assert evaluation["all"]["num_clips"] == len(evaluation["clips"]) >= 80
    assert evaluation["trained"]["both"]["share"] >= 0.95  # held-out pairs of digit and motion are harder
    assert load_config(str(folder / "training" / "config.yaml"), []).name == name
    assert (folder / "README.md").is_file()
    assert (folder / "samples.png").is_file()
