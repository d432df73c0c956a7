import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from fsframework.run import report_videos
from fsframework.run.report import write_report
from fsframework.run.report_data import load_run
from fsframework.run.report_load import letters
from fsframework.run.report_pareto import Point, pareto
from fsframework.run.report_reproduce import differences
from fsframework.run.report_svg import log_ticks, power, ticks
from fsframework.run.report_table import csv_lines, latex_lines, number
from fsframework.run.report_trace import read_trace, short_names
from fsframework.run.report_videos import embed


@pytest.fixture(scope="module")
def html(runs, tmp_path_factory) -> str:
    return write_report(list(runs), tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the Foresight run to damage, beside its references."""
    shutil.copytree(runs.foresight.parent / "_reference", tmp_path / "_reference")
    return shutil.copytree(runs.foresight, tmp_path / runs.foresight.name)


def page_of(*folders, tmp_path):
    return write_report(folders, tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def visible(html: str) -> str:
    """The page's words, without markup, style, script and data."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", html, flags=re.S))


def test_page_is_one_small_file_that_refers_to_nothing_outside(html):
    assert len(html) < 3_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert "@import" not in html
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-", html)
    assert '<meta name="viewport"' in html


def test_summary_shows_each_mean_with_unit_direction_interval_and_n(html, runs):
    words = visible(html)
    for title in (
        "Speedup, process CPU\u00a0▲",
        "FLOPs saved\u00a0▲",
        "PSNR\u00a0▲",
        "SSIM\u00a0▲",
        "Cache\u00a0▼",
        "dB",
    ):
        assert title in words
    psnr = json.loads((runs.foresight / "metrics.json").read_text())["psnr"]
    assert f"{psnr['mean']:.1f}" in words
    assert f"{psnr['low']:.1f}–{psnr['high']:.1f}" in words
    assert html.count('<td data-value="6">6</td>') == 3


def test_headline_is_one_sentence_with_numbers_and_conditions(html, runs):
    headline = visible(re.search(r'<p class="headline">.*?</p>', html)[0])
    speedup = json.loads((runs.static / "metrics.json").read_text())["speedup"]["mean"]
    for part in (
        "tiny-latte",
        "20 steps",
        "6 videos of 3 prompts with 2 seeds each",
        "cpu",
        "float32",
        f"{speedup:.2f}×",
    ):
        assert part in headline
    assert "process CPU time" in headline


def test_a_policy_is_named_with_the_options_that_are_not_default(html):
    assert "foresight(gamma=0.3, storage=residual, lag_correction=true)" in html
    assert "interval=2" not in re.search(r'<table id="summary-table">.*?</table>', html, re.S)[0]


def test_what_differs_between_the_rows_is_listed_and_what_does_not_is_not(html):
    table = visible(re.search(r"What differs between the rows</h4>.*?</table>", html, re.S)[0])
    assert "policy.gamma" in table
    assert "num_steps" not in table
    assert "policy.interval" not in table  # at its default in the only run that has it


def test_commands_and_configs_are_there_to_reproduce_each_row(html, runs):
    words = visible(html)
    assert "fsf run experiments/quickstart/run.yaml policy.name=foresight" in words
    assert str(runs.static / "config.yaml") in words


def test_the_same_directories_give_the_same_bytes(runs, tmp_path):
    a, b = (write_report(list(runs), tmp_path / name / "report.html") for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_a_prompt_that_is_html_is_text(run, tmp_path):
    evil = "</script><script>window.hacked = 1</script><img src=x onerror=hacked=1>"
    rows = [json.loads(line) for line in (run / "videos.jsonl").read_text().splitlines()]
    rows[0]["prompt"] = evil
    (run / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "environment.json").write_text(json.dumps({"command": evil, "device": evil, evil: evil}))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("tiny-latte", json.dumps(evil)))
    html = page_of(run, tmp_path=tmp_path)
    assert "<script>window.hacked" not in html
    assert "<img src=x" not in html
    assert html.count("<script") == 2
    assert html.count("</script>") == 2


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.json", "videos.jsonl", "trace.parquet"])
def test_a_missing_or_broken_file_is_said_on_the_page(run, tmp_path, name):
    (run / name).write_bytes(b"\x00{broken")
    broken = visible(page_of(run, tmp_path=tmp_path))
    assert name in broken
    (run / name).unlink()
    missing = visible(page_of(run, tmp_path=tmp_path))
    assert "There is no" in missing
    assert name in missing


def test_what_a_run_says_about_itself_and_what_the_engine_warned_of_is_shown(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["notes"] = ["speedups are of 2 of 6 videos."]
    metrics["timing"] = {"clock_of_speedup": "wall seconds", "how": "side by side"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    rows = [json.loads(line) for line in (run / "videos.jsonl").read_text().splitlines()]
    for row in rows[:2]:
        row["warnings"] = ["a distance is not finite"]
    (run / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = visible(page_of(run, tmp_path=tmp_path))
    assert "A: speedups are of 2 of 6 videos." in words
    assert "Warning in 2 of 6 videos: a distance is not finite" in words
    assert "Seconds: side by side." in words
    assert "Speedup, wall" in words
    assert "process CPU" not in words


def test_a_condition_that_was_not_recorded_is_not_claimed(run, tmp_path):
    config = (run / "config.yaml").read_text().replace("dtype: float32", "dtype: null")
    (run / "config.yaml").write_text(config)
    environment = json.loads((run / "environment.json").read_text())
    del environment["dtype"]
    (run / "environment.json").write_text(json.dumps(environment))
    words = visible(page_of(run, tmp_path=tmp_path))
    assert "float32" not in words
    assert "not recorded" not in words


def test_missing_videos_are_counted(run, tmp_path):
    (run / "videos" / "002.mp4").unlink()
    (run / "videos" / "003.mp4").write_bytes(b"no video")
    assert "1 of 6 video files are missing, the first of them for 2" in visible(page_of(run, tmp_path=tmp_path))


def test_an_empty_directory_gives_a_page_that_says_so(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    words = visible(page_of(tmp_path / "empty", tmp_path=tmp_path))
    for sentence in ("There is no config.yaml.", "no readable trace", "No run has readable videos."):
        assert sentence in words
    assert "There is no metrics.json" in visible(page_of(*runs, tmp_path / "empty", tmp_path=tmp_path))


def test_an_interrupted_run_is_summarised_from_its_videos(run, runs, tmp_path):
    lines = (run / "videos.jsonl").read_text().splitlines()
    (run / "videos.jsonl").write_text("\n".join(lines[:4]) + '\n{"index": 4, "pro')
    (run / "metrics.json").unlink()
    frame = pd.read_parquet(run / "trace.parquet")
    (run / "trace.parquet").unlink()
    (run / "trace.parts").mkdir()
    for video in range(4):
        frame[frame["video"] == video].to_parquet(run / "trace.parts" / f"{video:04d}.parquet")
    loaded = load_run(run, "A")
    assert loaded.measures["psnr"].interval.n == 4
    assert loaded.trace.num_videos == 4
    words = visible(page_of(run, runs.static, tmp_path=tmp_path))
    assert "was interrupted: its numbers are computed here from the 4 videos it finished" in words
    assert "4 of 6 videos" in words
    assert "The rows cover different videos" in words


def test_values_that_were_not_measured_are_dashes_and_one_video_has_no_interval(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["adherence"]
    metrics["ssim"] = {"mean": None, "low": None, "high": None, "n": 0, "unit": "", "better": "higher"}
    metrics["psnr"] |= {"mean": 31.25, "low": None, "high": None, "n": 1}
    (run / "metrics.json").write_text(json.dumps(metrics))
    html = page_of(run, tmp_path=tmp_path)
    row = re.search(r"<tbody>.*?</tbody>", html, re.S)[0]
    assert row.count("not measured") == 1  # adherence, which no run has, is no column at all
    assert "31.2" in row
    assert "no interval" in row
    assert "n 1" in row


def test_no_directory_and_a_place_that_can_not_be_written_are_clear_errors(runs, tmp_path):
    with pytest.raises(ValueError, match="at least one run directory"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="no run directory '.*nowhere'"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can not write the report to"):
        write_report([runs.full], tmp_path / "file" / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_heat_map_is_the_share_of_videos_in_which_a_site_was_reused(runs, read_trace):
    frame, grid = read_trace(runs.foresight), read_trace_grid(runs.foresight)
    assert grid.sites == [f"{kind}.{i}" for i in range(4) for kind in ("spatial", "temporal")]
    at = frame[(frame["site"] == "spatial.1") & (frame["step"] == 9)]
    assert grid.reuse_ST[2, 9] == (at["decision"] == "reuse").mean()
    assert 0 < np.nanmean(grid.reuse_ST) < 1


def test_static_reuse_is_all_or_nothing_in_every_step(runs):
    grid = read_trace_grid(runs.static)
    assert set(grid.reuse_T.tolist()) == {0.0, 1.0}
    assert grid.reuse_T[:3].sum() == 0
    assert not grid.curves


def test_distance_is_shown_only_where_it_was_measured(runs, read_trace):
    frame, curves = read_trace(runs.foresight), read_trace_grid(runs.foresight).curves["joint"]
    at = frame[(frame["site"] == "temporal.0") & frame["distance"].notna()].groupby("step")["distance"]
    assert set(np.flatnonzero(curves.count_ST[1] > 0)) == set(at.mean().index)
    step = int(at.count().idxmax())
    assert curves.distance_ST[1, step] == pytest.approx(at.mean()[step])
    assert math.isnan(curves.distance_ST[1, 0])
    assert curves.low_ST[1, step] <= curves.distance_ST[1, step] <= curves.high_ST[1, step]


def test_forced_and_eliminated_are_shown(run, tmp_path):
    frame = pd.read_parquet(run / "trace.parquet")
    frame.loc[frame["step"] == 5, "decision"] = "eliminated"
    frame.loc[frame["step"] == 3, "forced"] = True
    frame.to_parquet(run / "trace.parquet")
    words = visible(page_of(run, tmp_path=tmp_path))
    assert "eliminated: dead, so not run" in words
    assert "recompute forced" in words


def test_branches_have_curves_of_their_own(run, tmp_path):
    frame = pd.read_parquet(run / "trace.parquet")
    both = pd.concat([frame.assign(branch="cond"), frame.assign(branch="uncond", distance=frame["distance"] * 2)])
    both.to_parquet(run / "trace.parquet")
    assert list(read_trace_grid(run).curves) == ["cond", "uncond"]
    assert "Blue: cond; green: uncond." in visible(page_of(run, tmp_path=tmp_path))


def test_site_names_are_short_unless_that_is_ambiguous():
    assert short_names(["spatial.0", "temporal.0", "spatial.1.mlp"]) == ["s0", "t0", "s1.mlp"]
    assert short_names(["model", "joint.11", "span.0-4"]) == ["model", "j11", "span.0-4"]
    assert short_names(["spatial.0", "single.0"]) == ["spatial.0", "single.0"]


def test_csv_has_unrounded_numbers_and_latex_is_escaped(runs):
    loaded = [load_run(folder, letter) for folder, letter in zip(runs, "ABC")]
    head, *rows = csv_lines(loaded)
    values = dict(zip(head.split(","), rows[1].split(",")))
    speedup = json.loads((runs.static / "metrics.json").read_text())["speedup"]
    assert float(values["speedup_mean"]) == speedup["mean"]
    assert values["speedup_n"] == "6"
    assert values["policy"] == "static"
    top, lines, _ = latex_lines(loaded)
    assert "\\begin{tabular}" in top
    assert "lag\\_correction=true" in lines[2]
    assert top.count("&") == lines[0].count("&")


def test_each_video_file_is_embedded_once(runs):
    loaded = [load_run(folder, letter) for folder, letter in zip(runs, "ABC")]
    videos = embed(loaded)
    # 6 references, which are also the videos of full compute, and 6 videos of each other run
    assert len(videos.files) == 18
    assert [cell["title"] for cell in videos.clips[0]["cells"]] == ["reference", "A full", "B static", "C foresight"]
    assert (videos.fps, videos.num_frames, videos.num_left_out) == (8.0, 16, 0)


def test_videos_beyond_the_budget_are_left_out_but_worst_and_best_stay(runs):
    loaded = [load_run(runs.static, "A")]
    videos = embed(loaded, max_bytes=20_000)
    assert videos.num_left_out == 6 - len(videos.clips) > 0
    ranked = report_videos.by_psnr(loaded[0].clips)
    assert videos.position((ranked[0].prompt, ranked[0].seed)) is not None


def test_large_videos_are_made_smaller(runs, monkeypatch):
    monkeypatch.setattr(report_videos, "SHRINK_ABOVE_BYTES", 1000)
    monkeypatch.setattr(report_videos, "SHRUNK_SIDE", 64)
    videos = embed([load_run(runs.static, "A")])
    assert videos.shrunk
    assert videos.num_frames == 16
    assert embed([load_run(runs.static, "A")]).files == videos.files


def test_a_run_identical_to_its_reference_has_a_line_of_its_own_in_the_plot():
    nan = math.nan
    points = [
        Point(0, "A", "full", (1.0, nan, nan), (math.inf, nan, nan)),
        Point(1, "B", "b", (1.5, 1.4, 1.6), (30.0, 29.0, 31.0)),
        Point(2, "C", "c <&>", (1.2, 1.1, 1.3), (20.0, nan, nan)),
    ]
    picture = pareto(points, "x", "y", True, 600, 400, "wide")
    assert "identical to the reference" in picture
    assert "∞" in picture
    assert "c &lt;&amp;&gt;" in picture
    assert "front" not in picture  # B beats C, and A is off the scale
    assert "nan" not in picture
    assert "inf" not in picture
    assert "No run has both values" in pareto([], "x", "y", True, 600, 400, "wide")


def test_ticks_are_round_and_inside():
    assert ticks(0.93, 1.92, 5) == [1.0, 1.2, 1.4, 1.6, 1.8]
    assert ticks(3, 3) == [3]
    assert log_ticks(3e-5, 2e-3) == pytest.approx([1e-4, 1e-3])
    assert len(log_ticks(2e-3, 7e-3)) >= 2
    assert (power(1e-4), power(3e-4)) == ("10⁻⁴", "3·10⁻⁴")


def test_numbers_are_written_in_their_column_style():
    assert number(1.7749, "x") == "1.77×"
    assert number(0.441, "percent") == "44.1"
    assert (number(32768, "bytes"), number(12, "bytes")) == ("32.8 kB", "12 B")
    assert (number(math.inf, ".1f"), number(math.nan, ".1f")) == ("∞", "–")


def test_rows_have_letters_beyond_z():
    assert [letters(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_differences_name_what_is_not_set():
    trees = [{"a": {"b": 1}, "same": 2}, {"a": {"b": 1.5, "c": True}, "same": 2}]
    assert differences(trees) == {"a.b": ["1", "1.5"], "a.c": ["not set", "true"]}


def read_trace_grid(folder):
    return read_trace(folder / "trace.parquet")
