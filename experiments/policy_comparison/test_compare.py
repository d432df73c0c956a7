import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_made_up_rows_give_the_table_that_can_be_reckoned_by_hand(tmp_path):
    """static has 30 dB at 0.4 and 40 dB at 0.6 of full compute; `other` 2 dB more; `few` lacks clips of one setting."""
    folder = tmp_path / "runs" / "made-up"
    folder.mkdir(parents=True)
    settings, lines = {}, []
    for method, more in (("static", 0), ("other", 2), ("few", 9)):
        settings[method] = []
        for interval, fraction, db in ((3, 0.4, 30), (2, 0.6, 40)):
            options = {"name": method, "interval": interval}
            settings[method].append({"options": options, "fraction": fraction})
            for clip in range(11 if method == "few" and interval == 2 else 12):
                lines.append(
                    {
                        "method": method, "options": options, "clip": clip, "prompt": f"caption {clip % 6}", "seed": clip,
                        "fraction": fraction, "cpu_seconds": 2 * (fraction + 0.1), "full_cpu_seconds": 2.0,
                        "psnr": db + more, "ssim": 0.9, "adherence": 1.0,
                    }
                )  # fmt: skip
    stale = {**lines[0], "options": {"name": "static", "interval": 9}, "psnr": 1.0}  # of an earlier tuning
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, stale]))
    command = [
        sys.executable,
        str(HERE / "compare.py"),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert "few" not in rows
    table = done.stdout.partition("On the Pareto front")[0].splitlines()
    other = next(line for line in table if line.startswith("| other"))
    assert "**37.0** (37.0 to 37.0)" in other
    assert "1.67x (1.67 to 1.67)" in other  # 1 / (0.5 + 0.1)
    assert "+2.0 (+2.0 to +2.0)" in other
    assert other.rstrip(" |").endswith("12 (6)")
    assert "(made-up): other." in done.stdout
    # static has 40 dB at 0.6; other 40 dB at 0.56.
    assert "other | **0.560** (0.560 to 0.560)" in done.stdout
    assert (tmp_path / "out" / "made-up.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "comparison.md").read_text() in done.stdout
