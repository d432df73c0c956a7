"""Recorded outputs of original code, compared with where they are present."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

ORACLES = Path(os.environ.get("FSF_ORACLES", Path(__file__).resolve().parents[1].parent / "shared" / "oracles"))


def load_oracle(name: str) -> Any:
    """A recorded file, tensors or JSON; skips the test, saying so, where it is absent."""
    path = ORACLES / name
    if not path.is_file():
        pytest.skip(f"the recorded outputs of the original code are not at {path}; set FSF_ORACLES to their folder")
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)
