"""The cache over the steps: from a trace's columns to a panel whose places can be worked out."""

import json
import math
import re
import shutil

import numpy as np
import pandas as pd

from fsframework.run.artifacts import RunDirectory
from fsframework.run.report import write_report
from fsframework.run.report_cache import cache_panels, cache_payload
from fsframework.run.report_data import load_run
from fsframework.run.report_trace import read_trace


def a_trace(path, held, most, video=0):
    """Two rows in each step, as of two sites."""
    rows = [
        {"video": video, "step": step, "timestep": 1.0, "branch": "joint", "site": f"joint.{site}", "decision": "recompute",
         "forced": False, "lag": 0, "distance": math.nan, "threshold": math.nan, "cache_bytes": held[step],
         "cache_bytes_peak": most[step]}
        for step in range(len(held)) for site in range(2)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_bytes_per_step_are_means_over_videos_and_a_step_without_an_end_is_left_out(tmp_path):
    first = pd.read_parquet(a_trace(tmp_path / "0.parquet", [0.0, 100.0, 40.0], [10.0, 100.0, 100.0]))
    second = pd.read_parquet(a_trace(tmp_path / "1.parquet", [0.0, 300.0, math.nan], [30.0, 300.0, math.nan], video=1))
    pd.concat([first, second]).to_parquet(tmp_path / "both.parquet")
    cache = read_trace(tmp_path / "both.parquet").cache
    assert cache.held_T.tolist() == [0, 200, 40]
    assert cache.most_T.tolist() == [20, 200, 100]
    assert (cache.peak, cache.peak_step, cache.num_videos) == (200, 1, 2)


def test_static_and_foresight_hold_what_their_metrics_say(runs):
    """Eight sites; static keeps the last one's output from the last warmup step on, Foresight one of each from the first."""
    static, foresight = (load_run(folder, mark) for folder, mark in ((runs.static, "A"), (runs.foresight, "B")))
    assert foresight.trace.cache.peak == foresight.mean("cache_bytes_peak") == 8 * static.mean("cache_bytes_peak")
    assert static.trace.cache.held_T.tolist() == [0] * 2 + [foresight.trace.cache.peak / 8] * 18
    assert (static.trace.cache.peak_step, foresight.trace.cache.peak_step) == (2, 0)


def test_panel_has_its_peak_where_the_scale_of_all_runs_puts_it(runs):
    found = [load_run(folder, mark) for folder, mark in ((runs.full, "A"), (runs.static, "B"), (runs.foresight, "C"))]
    html = cache_panels(found)
    assert re.findall(r'<figure data-row="(\d)"', html) == ["1", "2"]
    assert "A holds nothing." in html
    peak = found[2].trace.cache.peak
    assert f"peak {peak / 1e3:.3g} kB at step 0" in html
    # From x = 46 to 252 and from y = 102 (nothing) to 10 (the most of any run); static holds an eighth.
    places = re.findall(r'<circle class="mark run-\d" cx="([\d.]+)" cy="([\d.]+)"', html)
    assert places == [(f"{46 + 2.5 / 20 * 206:.1f}", f"{102 - 92 / 8:.1f}"), (f"{46 + 0.5 / 20 * 206:.1f}", "10.0")]
    held = cache_payload(found[1])["held"]
    assert held == [0, 0] + [round(peak / 8)] * 18
    assert cache_payload(found[0]) is None


def test_run_of_an_earlier_release_has_no_panel_and_the_page_says_so(runs, tmp_path):
    folder = shutil.copytree(runs.foresight, tmp_path / runs.foresight.name)
    old = pd.read_parquet(folder / "trace.parquet").drop(columns=["cache_bytes", "cache_bytes_peak"])
    old.to_parquet(folder / "trace.parquet")
    assert load_run(folder, "A").trace.cache is None
    page = write_report([runs.static, folder], tmp_path / "page.html").read_text()
    assert "Not known for B: a trace of an earlier release does not say." in page
    assert page.count('data-cache="') == 1
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.S)[1])
    assert [entry is None for entry in data["cache"]] == [False, True]
    alone = write_report([folder], tmp_path / "alone.html").read_text()
    assert "Cache over the steps" not in alone


def test_a_run_that_a_release_without_the_columns_began_is_joined_with_what_was_made_since(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.trace_part(0).parent.mkdir()
    old = pd.read_parquet(a_trace(tmp_path / "old.parquet", [1.0, 2.0], [1.0, 2.0]))
    new = pd.read_parquet(a_trace(tmp_path / "new.parquet", [3.0, 4.0], [5.0, 6.0], video=1))
    directory.write_trace_part(0, old.drop(columns=["cache_bytes", "cache_bytes_peak"]))
    directory.write_trace_part(1, new)
    directory.join_traces([0, 1])
    joined = pd.read_parquet(directory.trace)
    assert joined["video"].tolist() == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(joined["cache_bytes"], [math.nan] * 4 + [3.0, 3.0, 4.0, 4.0])
    cache = read_trace(directory.trace).cache
    assert (cache.held_T.tolist(), cache.num_videos) == ([3, 4], 1)
