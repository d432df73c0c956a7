"""`fsf demo` as a newcomer runs it: the bundled model, nothing given."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "models" / "tiny-latte" / "model_index.json"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MODEL.is_file(), reason="models/tiny-latte is not there")]


def seconds_of_demo(folder: Path) -> tuple[float, list[str]]:
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "fsframework", "demo"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begin, done.stdout.strip().splitlines()


def cell(line: str, number: int) -> float:
    return float(line.split()[number].rstrip("x"))


def test_demo_needs_at_most_three_minutes_cold_and_far_less_warm_and_reuse_pays(tmp_path):
    cold, lines = seconds_of_demo(tmp_path)
    assert cold < 180 * 2, "three minutes on two idle cores, allowing for other work"
    full, static, foresight = lines[1:4]
    assert (full.split()[0], static.split()[0], foresight.split()[0]) == ("full", "static", "foresight")
    assert "identical" in full
    assert 0.9 < cell(full, 1) < 1.1
    assert cell(static, 1) > 1.2
    assert cell(foresight, 1) > 1.2
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 100_000
    warm, again = seconds_of_demo(tmp_path)
    assert warm < cold / 2
    assert again[1:4] == lines[1:4]
