"""A grid's report: names of its cells, several models, published numbers, memory, and words for every metric."""

import html
import json
import re
import shutil

import pytest

from fsframework.config.published import Published
from fsframework.metrics import METRICS, Interval
from fsframework.run.costs import COST_UNITS
from fsframework.run.report import write_report
from fsframework.run.report_data import Measure, RunData, load_run
from fsframework.run.report_load import load_runs
from fsframework.run.report_memory import memory_section
from fsframework.run.report_pareto import Point, pareto
from fsframework.run.report_published import ELSEWHERE, FULL_SIZE, order_words, pairs, published_section
from fsframework.run.report_table import MAX_QUALITY, column, columns_of, csv_lines, latex_lines

TABLE = {
    "source": {"paper": "A paper, arXiv:0000.00000", "read": "second-hand", "from": "a summary"},
    "conditions": {"device": "NVIDIA A100", "unverified": ["steps"]},
    "units": {"latency": "s"},
    "rows": [
        {"setting": "ours", "model": "latte-1", "psnr": 29.67, "latency": 18.7},
        {"setting": "static", "model": "latte-1", "psnr": 25.5},
        {"setting": "pab", "model": "latte-1", "psnr": 20.125},
        {"setting": "static", "model": "opensora-1.2", "psnr": 24},
    ],
    "missing": ["full"],
}


@pytest.fixture
def grid(runs, tmp_path):
    """The folder of a grid whose cells are copies of the three runs, and a fourth that failed."""
    cells = []
    for run, group in zip(runs, ("full", "static", "ours")):
        shutil.copytree(run, tmp_path / "runs" / run.name)
        cells.append({"cell": f"{group}, seeds=2", "group": group, "directory": run.name, "state": "finished"})
    shutil.copytree(runs.full.parent / "_reference", tmp_path / "runs" / "_reference")
    cells += [
        dict(cells[1], cell="the same as static"),
        dict(cells[0], cell="broken", directory="gone", state="failed"),
    ]
    folder = tmp_path / "runs" / "_ablations" / "sweep"
    folder.mkdir(parents=True)
    content = {"name": "sweep", "cells": cells, "published": {"main_table": TABLE}}
    (folder / "ablation.json").write_text(json.dumps(content))
    return folder


def a_run(mark, model="tiny-latte", group=None, policy="static", **means) -> RunData:
    run = RunData(None, mark, policy=policy, model=model, group=group)
    for key, mean in means.items():
        low, high = (mean, mean) if not isinstance(mean, tuple) else mean[1:]
        mean = mean if not isinstance(mean, tuple) else mean[0]
        run.measures[key] = Measure(Interval(mean, low, high, 4), "", "higher")
    return run


def words_of(page: str) -> str:
    """Its words, without markup, style, script and data."""
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", page, flags=re.S))
    return " ".join(html.unescape(text).split())


def test_a_grids_folder_stands_for_its_finished_cells_under_their_names(grid, runs):
    loaded = load_runs([grid])
    assert [(run.mark, run.title, run.cell) for run in loaded.runs] == [
        ("A", "full", "full, seeds=2"),
        ("B", "static", "static, seeds=2"),  # not a second time for the cell that came to the same run
        ("C", "ours", "ours, seeds=2"),
    ]
    assert loaded.runs[2].label == "ours: foresight(gamma=0.3, storage=residual, lag_correction=true)"
    assert loaded.notes == ["Not every cell of sweep is finished: 1 failed. They are no rows here."]
    assert [table.name for table in loaded.published] == ["main_table"]


def test_runs_given_before_their_grid_keep_their_order_and_get_its_names(grid):
    first = next(grid.parents[1].glob("foresight-*"))
    assert [run.title for run in load_runs([first, grid]).runs] == ["ours", "full", "static"]


def test_a_damaged_or_unfinished_grid_is_a_clear_error(grid):
    content = json.loads((grid / "ablation.json").read_text())
    for cell in content["cells"]:
        cell["state"] = "pending"
    (grid / "ablation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no cell is finished; run `fsf ablate`"):
        load_runs([grid])
    (grid / "ablation.json").write_text('{"cells": [{}]}')
    with pytest.raises(ValueError, match="ablation.json could not be read: KeyError.*writes it anew"):
        load_runs([grid])


def test_a_grids_page_shows_published_numbers_as_what_they_are(grid, tmp_path):
    page = write_report([grid], tmp_path / "report.html").read_text()
    section = re.search(r'<section id="published">.*?</section>', page, re.S)[0]
    words = words_of(section)
    assert FULL_SIZE in words
    assert "Source: A paper, arXiv:0000.00000 (second-hand, a summary)." in words
    assert "Not known of the source's runs: steps." in words
    assert "Rows not found: full." in words
    assert '<a href="#published">' in page
    cells = csv_lines(load_runs([grid]).runs)
    assert cells[0].startswith("run,cell,policy")
    assert '"ours, seeds=2",foresight' in cells[3]


def test_a_published_row_stands_beside_the_run_of_its_setting_and_family():
    runs = [
        a_run("A", group="static", psnr=31.0),
        a_run("B", group="ours", psnr=35.5),
        a_run("C", "tiny-opensora", "static"),
    ]
    table = Published.of("main_table", TABLE)
    found = pairs(table, runs)
    # latte-1 is of tiny-latte's family, opensora-1.2 of tiny-opensora's; no run here is called pab
    assert [(pair.row.setting, pair.run) for pair in found] == [
        ("ours", 1),
        ("static", 0),
        ("pab", None),
        ("static", 2),
    ]
    rows = re.findall(r"<tr.*?</tr>", published_section([table], runs), re.S)[2:]
    assert [words_of(row) for row in rows] == [
        "B ours static ours latte-1 35.5 all equal 29.67 18.7",
        "A static static latte-1 31.0 all equal 25.5 –",
        "no row here pab latte-1 – 20.125 –",
        "C static static opensora-1.2 – 24 –",
    ]


def test_numbers_of_the_very_model_are_not_called_full_size():
    runs = [a_run("A", "latte-1", "static", psnr=31.0), a_run("B", "opensora-1.2", "static")]
    section = published_section([Published.of("main_table", TABLE)], runs)
    assert FULL_SIZE not in section
    assert ELSEWHERE in section


def test_order_is_compared_by_pairs_whose_intervals_part():
    table = Published.of("t", {
        "source": "s",
        "rows": [{"setting": name, "psnr": psnr} for name, psnr in (("a", 1), ("b", 2), ("c", 3), ("d", 3))],
    })  # fmt: skip
    runs = [
        a_run("A", group="a", psnr=(10.0, 9.0, 11.0)),
        a_run("B", group="b", psnr=(20.0, 19.0, 21.0)),
        a_run("C", group="c", psnr=(8.0, 7.0, 9.5)),
        a_run("D", group="d", psnr=(float("inf"), float("nan"), float("nan"))),  # identical to the reference: above all
    ]
    # a < b as here, a < c undecided (9.0 to 11.0 and 7.0 to 9.5), b < c reversed, a < d and b < d as here; c and d are equal
    assert order_words(table, pairs(table, runs), runs) == [
        "PSNR: of 5 pairs of settings 3 in the published order, 1 reversed, 1 undecided here (the 95 % intervals overlap)."
    ]


def test_rows_of_several_models_say_which_and_do_not_compete():
    nan = float("nan")
    points = [
        Point(0, "A", "a", (1.5, nan, nan), (30.0, nan, nan), "one"),
        Point(1, "B", "b", (1.2, nan, nan), (35.0, nan, nan), "one"),
        Point(2, "C", "c", (1.4, nan, nan), (29.0, nan, nan), "two"),  # A beats it, but is of another model
        Point(3, "D", "d", (1.1, nan, nan), (31.0, nan, nan), "two"),
    ]
    assert pareto(points, "x", "y", True, 600, 400, "wide").count('class="front"') == 2
    alone = [Point(p.run, p.mark, p.tip, p.x, p.y) for p in points]
    assert pareto(alone, "x", "y", True, 600, 400, "wide").count('class="front"') == 1


def test_headline_has_a_result_for_each_model(grid, tmp_path):
    other = tmp_path / "runs" / next(grid.parents[1].glob("static-*")).name
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("model: tiny-latte", "model: tiny-opensora"))
    page = write_report([grid], tmp_path / "report.html").read_text()
    headline = words_of(re.search(r'<p class="headline">.*?</p>', page)[0])
    assert "On tiny-opensora, static reaches a speedup of" in headline
    assert "On tiny-latte, ours reaches a speedup of" in headline
    assert "The rows are of different models: compare those of one model." in words_of(page)
    assert "on tiny-<wbr>opensora" in page or "on tiny-opensora" in page


def test_memory_stands_beside_full_computes(runs):
    run = load_run(runs.static, "A")
    for key, mean in (("memory_bytes_growth", 15e6), ("reference_memory_bytes_growth", 12e6)):
        run.measures[key] = Measure(Interval(mean, mean, mean, 6), "bytes", "lower")
    cache = run.mean("cache_bytes_peak")
    half = load_run(runs.static, "B")
    half.measures = {"cache_bytes_peak": Measure(Interval(cache / 2, cache / 2, cache / 2, 6), "bytes", "lower")}
    first, second = re.findall(r'<tr data-row="\d".*?</tr>', memory_section([run, half]), re.S)
    assert "width:100.0%" in first
    assert words_of(first).endswith("15 MB all equal 12 MB all equal 1.25×")
    assert "width:50.0%" in second
    assert words_of(second).endswith("– – –")
    nothing = load_run(runs.static, "A")
    nothing.measures = {}
    assert "No run has its cache counted." in memory_section([nothing])


def test_every_metric_and_every_cost_has_a_title_and_says_what_it_is():
    keys = [key for _, metric in METRICS.items() for key in metric.value_names()]
    keys += [prefix + cost for cost in COST_UNITS for prefix in ("", "reference_")]
    bare = [key for key in keys if column(key).title == key.replace("_", " ") or len(column(key).about) < 10]
    assert bare == []
    assert column("lpips").about.startswith("Learned perceptual distance")
    assert column("reference_energy_joules").title == "Energy, full compute"
    assert column("mine_own").title == "mine own"


def test_summary_has_the_quality_metrics_that_were_measured_as_far_as_there_is_room():
    run = a_run("A", speedup=1.5, lpips=0.1, vmaf=90.0, zeta=1.0)
    keys = [c.key for c in columns_of([run])]
    assert keys[4:-2] == ["psnr", "ssim", "lpips", "vmaf", "zeta"]
    run.measures |= dict.fromkeys(("fvd", "flicker", "haarpsi", "adherence"), run.measures["lpips"])
    assert len([c for c in columns_of([run]) if c.key not in keys or c.key in keys[4:-2]]) == MAX_QUALITY
    top, lines, _ = latex_lines([run])
    assert "LPIPS" in top
    assert top.count("&") == lines[0].count("&")
