"""`fsf compare` on run directories made up so that every number can be checked by hand."""

import csv
import io
import json
import math

import pytest

from fsframework.cli import main
from fsframework.run.artifacts import to_json
from fsframework.run.compare import Options, compare, matched_tables
from fsframework.run.compare_data import find_runs, group

PROMPTS = ("a cat", "a dog", "a bird")
SAMPLING = {"num_steps": 20, "guidance_scale": 4.0, "height": 32, "width": 32, "num_frames": 8}


@pytest.fixture
def make(tmp_path):
    """A finished run directory: `fraction` of full compute, and `psnr` of the prompts, at each of two seeds alike."""

    def write(
        name,
        policy,
        fraction,
        psnr,
        *,
        sampling=None,
        prompts=PROMPTS,
        seeds=2,
        config=None,
        environment=None,
        facts=None,
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        sampling = {**SAMPLING, **(sampling or {})}
        tree = {
            "name": name.partition("-")[0], "model": {"name": "tiny", "device": "auto"}, "policy": policy, "sampling": sampling,
            "prompts": {"set": "x", "texts": list(prompts), "limit": None}, "seeds": {"base": 0, "per_prompt": seeds},
            "launch": {"num_threads": 1, "num_processes": 1}, "engine": {"cache_dtype": None}, **(config or {}),
        }  # fmt: skip
        (folder / "config.yaml").write_text(json.dumps(tree))
        clips = [(prompt, s * len(prompts) + i, i) for s in range(seeds) for i, prompt in enumerate(prompts)]
        rows = [
            {
                "index": index, "prompt": prompt, "seed": seed, "flops_executed": 100 * fraction, "flops_full": 100,
                "cpu_seconds": fraction + 0.1, "wall_seconds": 9.0, "reference_cpu_seconds": 1.0, "reference_wall_seconds": 9.0,
                "metrics": {"psnr": psnr[i], "ssim": 0.9},
            }
            for index, (prompt, seed, i) in enumerate(clips)
        ]  # fmt: skip
        (folder / "videos.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
        metrics = {
            "policy": policy["name"], "model": "tiny", "num_videos": len(rows), "sampling": sampling, "dtype": "float32",
            "device": "cpu", "model_fingerprint": "abc", "timing": {"clock_of_speedup": "process CPU seconds"},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics | (facts or {})))
        env = {"git": {"revision": "0123456789abcdef", "dirty": False}, "versions": {"torch": "2.13"}, "device": "cpu",
               "cpu": "a CPU", "cpu_count": 2, "threads": 1, "load_average": 0.5}  # fmt: skip
        (folder / "environment.json").write_text(json.dumps(env | (environment or {})))
        return folder

    return write


def static(make, interval, fraction, psnr, **options):
    return make(f"static-{interval}", {"name": "static", "interval": interval}, fraction, psnr, **options)


@pytest.fixture
def two_sweeps(make):
    """static is 30 dB at 0.4 and 40 dB at 0.6; foresight has 3 dB more; prompts 2 dB apart."""
    spread = (-2, 0, 2)
    runs = []
    for k, (fraction, db) in enumerate(((0.4, 30), (0.6, 40))):
        runs.append(static(make, 3 - k, fraction, [db + s for s in spread]))
        policy = {"name": "foresight", "gamma": 1.0 - k / 2, "storage": "output"}
        runs.append(make(f"foresight-{k}", policy, fraction, [db + 3 + s for s in spread]))
    return runs


def table(comparison, title, block=0):
    return next(t for t in comparison.blocks[block].tables if t.title == title)


def row(of, label):
    return next(r for r in of.rows if r.label == label)


def test_runs_that_differ_in_numbers_of_one_policy_are_a_sweep_read_off_between_them(two_sweeps):
    comparison = compare(two_sweeps, Options(baseline="static"))
    at = table(comparison, "At 0.5 of full compute")
    best = row(at, "foresight")
    pooled = -10 * math.log10(sum(10 ** (-db / 10) for db in (36, 38, 40)) / 3)
    assert best.cells[0].value == pytest.approx(pooled)
    assert (best.cells[0].num_videos, best.cells[0].num_prompts) == (6, 3)
    named = dict(zip(at.columns, best.cells))
    assert named["psnr dB minus static"].value == pytest.approx(3)
    assert named["psnr dB minus static"].low == pytest.approx(3)
    assert named["speedup"].value == pytest.approx(1 / 0.6)
    assert [row.label for row in at.rows] == ["foresight", "static"]
    quality = table(comparison, f"At the psnr of static: interval=2: {pooled + 2:.1f} dB")
    # foresight has static's quality of 0.6 where its own line is 3 dB lower: 0.06 of compute less.
    assert row(quality, "foresight").cells[0].value == pytest.approx(0.54, abs=1e-3)


def test_every_mean_in_the_markdown_has_its_interval_and_every_row_its_n(two_sweeps):
    text = compare(two_sweeps, Options(baseline="static")).text()
    line = next(line for line in text.splitlines() if line.startswith("| foresight: gamma=0.5 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[-1] == "6 (3)"
    assert all("(" in cell and " to " in cell for cell in cells[1:-1])
    assert cells[1] == "0.600 (0.600 to 0.600)"


def test_words_switches_engine_options_and_inner_policies_make_sweeps_of_their_own(make):
    runs = [
        make("a", {"name": "foresight", "gamma": 1.0, "storage": "output"}, 0.5, [30] * 3),
        make("b", {"name": "foresight", "gamma": 0.5, "storage": "output"}, 0.6, [30] * 3),
        make("c", {"name": "foresight", "gamma": 0.5, "storage": "residual"}, 0.6, [30] * 3),
        make("d", {"name": "forecast", "base": {"name": "static", "interval": 2}}, 0.6, [30] * 3),
        make("e", {"name": "forecast", "base": {"name": "foresight", "gamma": 0.5}}, 0.6, [30] * 3),
        make("f", {"name": "static", "interval": 2}, 0.6, [30] * 3),
        make("g", {"name": "static", "interval": 2}, 0.6, [30] * 3, config={"engine": {"cache_dtype": "bfloat16"}}),
    ]
    found = {one.sweep.name: list(one.sweep.settings) for one in group(find_runs(runs)[0])}
    assert list(found) == [
        "foresight, storage=output", "foresight, storage=residual", "forecast(static)", "forecast(foresight)",
        "static, engine.cache_dtype=null", "static, engine.cache_dtype=bfloat16",
    ]  # fmt: skip
    assert found["foresight, storage=output"] == ["gamma=1", "gamma=0.5"]


def test_two_swept_options_are_one_line_with_a_word_on_it_and_two_when_split(make):
    runs = [
        make(f"{r}-{g}", {"name": "foresight", "gamma": g, "recompute_every": r}, 0.9 - 0.1 * r - 0.1 * g, [30] * 3)
        for r in (2, 3)
        for g in (1.0, 2.0)
    ]
    joint = compare(runs)
    assert any("--split policy.recompute_every" in sentence for sentence in joint.blocks[0].statements)
    assert [s.name for s in joint.blocks[0].sweeps] == ["foresight"]
    split = compare(runs, Options(split=("policy.recompute_every",)))
    assert [s.name for s in split.blocks[0].sweeps] == ["foresight, recompute_every=2", "foresight, recompute_every=3"]
    assert list(split.blocks[0].sweeps[0].settings) == ["gamma=2", "gamma=1"]
    named = compare(runs, Options(series={"ours": "2-*"}))
    assert [s.name for s in named.blocks[0].sweeps] == ["ours", "foresight"]


@pytest.mark.parametrize(
    ("change", "word", "hint"),
    [
        ({"sampling": {"num_steps": 30}}, "sampling.num_steps: 20 in", "--by num_steps"),
        ({"sampling": {"height": 64}}, "sampling.height: 32", "--by resolution"),
        ({"facts": {"model_fingerprint": "xyz"}}, "model: tiny (abc)", "--by model"),
        ({"facts": {"dtype": "bfloat16"}}, "dtype: float32", "Give fewer runs"),
        ({"prompts": ("a cat", "a fish", "a bird")}, "prompts: 3 prompts, a bird, a cat, a dog", "fewer runs"),
        ({"seeds": 1}, "seeds: 6 videos, seeds 0, 1, 2, 3, ...", "fewer runs"),
    ],
)
def test_rows_with_other_references_are_refused_with_what_differs(make, change, word, hint):
    runs = [static(make, 2, 0.5, [30] * 3), static(make, 3, 0.4, [28] * 3, **change)]
    with pytest.raises(ValueError, match="same full-compute videos") as error:
        compare(runs)
    assert word in str(error.value)
    assert hint in str(error.value)
    allowed = compare(runs, Options(mixed_references=True)).blocks[0]
    assert any("different full-compute videos" in sentence for sentence in allowed.statements)


def test_by_resolution_gives_each_size_its_own_tables_and_says_what_else_changes(make):
    runs = []
    for size, steps in ((48, 20), (24, 30)):
        own = {"height": size, "width": size, "num_steps": steps}
        for interval, fraction in ((2, 0.6), (3, 0.4)):
            runs.append(
                make(
                    f"s{size}-{interval}", {"name": "static", "interval": interval}, fraction, [size] * 3, sampling=own
                )
            )
    comparison = compare(runs, Options(by=("resolution",)))
    assert [block.name for block in comparison.blocks] == ["resolution 24 x 24", "resolution 48 x 48"]
    for block, size in enumerate((24, 48)):
        assert table(comparison, "At 0.5 of full compute", block).rows[0].cells[0].value == pytest.approx(size)
    assert any("num_steps: " in note and "Between the tables" in note for note in comparison.notes)
    odd = make("odd", {"name": "pab"}, 0.5, [9] * 3, sampling={"height": 24, "width": 24})
    with pytest.raises(ValueError, match="with resolution 24 x 24 are not compared") as error:
        compare([*runs, odd], Options(by=("resolution",)))
    assert "--by num_steps" in str(error.value)
    both = compare([*runs, odd], Options(by=("resolution", "num_steps")))
    assert [block.name for block in both.blocks] == [
        "resolution 24 x 24, num_steps 20", "resolution 24 x 24, num_steps 30", "resolution 48 x 48, num_steps 20",
    ]  # fmt: skip


def test_by_a_key_that_no_run_states_names_what_there_is(make):
    with pytest.raises(ValueError, match="--by scheduler: no run states 'sampling.scheduler'.*sampling.num_steps"):
        compare([static(make, 2, 0.5, [30] * 3)], Options(by=("scheduler",)))


def test_by_prompt_adds_a_table_with_a_row_per_prompt(two_sweeps):
    comparison = compare(two_sweeps, Options(by=("prompt",), at=(0.5,)))
    prompts = table(comparison, "By prompt, at 0.5 of full compute")
    assert [r.label for r in prompts.rows] == ["a cat", "a dog", "a bird"]
    assert [c.value for c in prompts.rows[0].cells] == pytest.approx([33, 36])
    assert prompts.rows[0].cells[0].num_videos == 2
    spread = table(comparison, "Spread of psnr over prompts, at 0.5 of full compute").rows[0].cells
    assert (spread[0].text, spread[2].text) == ("a cat", "a bird")
    assert spread[3].value == pytest.approx(2)  # 33, 35, 37
    assert spread[4].value == pytest.approx(0, abs=1e-6)


def test_what_differs_is_said_in_sentences_and_nothing_when_nothing_does(make):
    same = [static(make, k, 0.9 - 0.1 * k, [30] * 3) for k in (2, 3)]
    assert any(s.startswith("Nothing else differs") for s in compare(same).blocks[0].statements)
    other = make(
        "pab-x", {"name": "pab"}, 0.5, [30] * 3, config={"launch": {"num_threads": 4, "num_processes": 1}},
        environment={"git": {"revision": "fedcba9876543210", "dirty": True}, "load_average": 3.5, "cpu": "another"},
    )  # fmt: skip
    said = "\n".join(compare([*same, other]).blocks[0].statements)
    assert "launch.num_threads: 1 in 2 runs; 4 in pab-x." in said
    assert "git revision: 0123456789 in 2 runs; fedcba9876 in pab-x." in said
    assert "uncommitted changes: false in 2 runs; true in pab-x." in said
    assert "cpu: a CPU in 2 runs; another in pab-x." in said
    assert "was 0.5 to 3.5 on 2 cores" in said
    assert "The same in all rows: model (by its files), dtype, sampling, prompts and seeds." in said
    assert "pab: one setting, so no line." in said


def test_runs_without_timed_full_compute_are_named_in_one_sentence(make):
    folders = [static(make, k, 0.9 - 0.1 * k, [30] * 3) for k in (2, 3, 4)]
    for folder in folders[:2]:
        rows = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if not key.startswith("reference_")} for row in rows]
        (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [s for s in compare(folders).blocks[0].statements if "timed beside" in s]
    assert len(said) == 1
    assert said[0].startswith("Full compute was timed beside 0 of 6 videos of ")
    assert [name in said[0] for name in ("static-2", "static-3", "static-4")] == [True, True, False]


def test_full_compute_is_shown_as_identical_and_joins_no_line(make, two_sweeps):
    full = make("full-1", {"name": "full"}, 1.0, [math.inf] * 3)
    comparison = compare([*two_sweeps, full])
    cells = row(table(comparison, "Every setting"), "full").cells
    assert cells[3].number == "identical"
    assert "full: 0 of 6 videos reach 0.5" in comparison.text()
    assert "<svg" in comparison.blocks[0].plot()


def test_a_run_that_is_not_finished_or_is_none_is_named(make, tmp_path):
    run = static(make, 2, 0.5, [30] * 3)
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"static-2 has no metrics.json. It was not finished"):
        compare([run])
    with pytest.raises(ValueError, match="no config.yaml"):
        compare([tmp_path])
    other = static(make, 3, 0.5, [30] * 3)
    (other / "videos.jsonl").write_text((other / "videos.jsonl").read_text().partition("\n")[0] + "\n")
    with pytest.raises(ValueError, match="1 videos in videos.jsonl and 6 in metrics.json"):
        compare([other])


def test_a_grid_folder_names_its_sweeps_by_cell_and_leaves_out_what_is_not_finished(make, tmp_path):
    cells = []
    for k, (group_name, steps) in enumerate((("plain", None), ("plain", None), ("one step in", 1))):
        policy = {"name": "static", "interval": 2 + k} | ({"reuse_steps": steps} if steps else {})
        folder = make(f"runs/g-{k}", policy, 0.7 - 0.2 * k, [40 - 5 * k] * 3)
        cells.append(
            {"directory": folder.name, "group": group_name, "cell": f"c{k}", "state": "finished", "same_as": None}
        )
    cells.append({"directory": "g-9", "group": "pab", "cell": "pab", "state": "failed", "same_as": None})
    grid = tmp_path / "runs" / "_ablations" / "g"
    grid.mkdir(parents=True)
    (grid / "ablation.json").write_text(json.dumps({"name": "g", "keys": [], "cells": cells}))
    comparison = compare([grid])
    assert [(s.name, len(s.settings)) for s in comparison.blocks[0].sweeps] == [("plain", 2), ("one step in", 1)]
    assert comparison.notes == ["1 of 4 cells of the grid g are left out: pab (failed)"]


def test_names_that_are_not_there_are_errors_with_the_nearest(two_sweeps):
    for options, message in (
        (Options(baseline="statik"), "Did you mean 'static'"),
        (Options(metrics=("pnsr",)), "Did you mean 'psnr'"),
        (Options(split=("policy.gama",)), "Did you mean 'policy.gamma'"),
        (Options(series={"x": "nothing-*"}), "named like 'nothing-\\*'"),
        (Options(at=(50,)), "share of full compute"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(two_sweeps, options)


def test_the_command_writes_every_format_and_the_numbers_agree(two_sweeps, tmp_path, capsys):
    out = [str(tmp_path / f"c{suffix}") for suffix in (".md", ".csv", ".tex", ".json")]
    code = main(
        ["compare", *map(str, two_sweeps), "--baseline", "static", "--quality", "psnr=36", "--at", "0.5", "--out", *out]
    )
    assert code == 0
    assert capsys.readouterr().out.count("comparison: ") == 5  # the four and the picture of the Markdown
    content = json.loads((tmp_path / "c.json").read_text())
    tables = {t["title"]: t for t in content["blocks"][0]["tables"]}
    cell = next(r for r in tables["At 0.5 of full compute"]["rows"] if r["name"] == "foresight")["cells"]["psnr dB"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    line = next(
        r for r in rows if (r["table"], r["row"], r["column"]) == ("At 0.5 of full compute", "foresight", "psnr dB")
    )
    assert float(line["value"]) == pytest.approx(cell["value"])
    assert (int(line["num_videos"]), int(line["num_prompts"])) == (cell["num_videos"], cell["num_prompts"]) == (6, 3)
    shown = f"{cell['value']:.1f}"
    assert f"**{shown}** ({cell['low']:.1f} to {cell['high']:.1f})" in (tmp_path / "c.md").read_text()
    assert (
        f"\\textbf{{{shown}}} {{\\scriptsize ({cell['low']:.1f} to {cell['high']:.1f})}}"
        in (tmp_path / "c.tex").read_text()
    )
    assert "At psnr 36 dB" in tables
    assert "![sweeps](c.svg)" in (tmp_path / "c.md").read_text()
    assert (tmp_path / "c.svg").read_text().count('class="own"') == 4  # two lines, and each in the legend


def test_the_command_says_a_users_mistake_in_one_sentence(two_sweeps, capsys):
    assert main(["compare", *map(str, two_sweeps), "--quality", "psnr"]) == 2
    assert "write it like psnr=35" in capsys.readouterr().err
    assert main(["compare", "nowhere"]) == 2
    assert "no such run directory or grid: nowhere" in capsys.readouterr().err
    assert main(["compare", *map(str, two_sweeps), "--out", "x.pdf"]) == 2
    assert ".md, .csv, .tex, .json, .svg" in capsys.readouterr().err


def test_matched_tables_are_plain_data_for_a_report(two_sweeps):
    tables, statements = matched_tables(two_sweeps, baseline="static")
    assert {t.key for t in tables} == {"compute", "quality"}
    assert any("static varies interval" in s for s in statements)
    assert matched_tables(two_sweeps[:1], baseline="absent")[0] == []


@pytest.mark.slow
def test_a_real_grid_is_compared_alike_by_its_file_its_folder_and_its_runs(tmp_path, overrides_below):
    from fsframework.config.grid import load_ablation
    from fsframework.config.load import load_config, to_dict
    from fsframework.run.ablation import ablate

    run = load_config(None, [*overrides_below(tmp_path), "seeds.per_prompt=2", "prompts.limit=2"])
    cells = [
        {"name": "static", "policy": "static", "grid": {"policy.interval": [2, 4]}},
        {"name": "foresight", "policy": "foresight", "grid": {"policy.gamma": [0.1, 100.0]}},
    ]
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({"base": to_dict(run) | {"policy": {"name": "full"}}, "cells": cells}))
    result = ablate(load_ablation(file))
    assert result.is_complete, result.text()
    by_file = compare([file], Options(baseline="static"))
    assert [(s.name, len(s.settings)) for s in by_file.blocks[0].sweeps] == [("static", 2), ("foresight", 2)]
    rows = table(by_file, "Every setting").rows
    recorded = {
        row["cell"]: row["metrics"] for row in json.loads((result.folder / "ablation.json").read_text())["cells"]
    }
    assert {row.label: round(row.cells[3].value, 6) for row in rows if row.label.startswith("static")} == {
        f"static: interval={k}": round(recorded[f"static, interval={k}"]["psnr"]["mean"], 6) for k in (2, 4)
    }
    interval_2 = next(row for row in rows if row.label == "static: interval=2").cells
    assert interval_2[1].value == pytest.approx(recorded["static, interval=2"]["flops_speedup"]["mean"])
    assert interval_2[2].value == pytest.approx(recorded["static, interval=2"]["speedup"]["mean"], rel=0.05)
    assert (interval_2[0].num_videos, interval_2[0].num_prompts) == (4, 2)
    assert compare([result.folder], Options(baseline="static")).text() == by_file.text()
    folders = [tmp_path / "runs" / row["directory"] for row in result.cells]
    assert compare(folders, Options(baseline="static")).text() == by_file.text()
    assert not [sentence for sentence in by_file.blocks[0].statements if "revision: " in sentence]


def test_schedulers_of_one_class_are_told_apart_by_the_settings_that_differ(make):
    """Runs that did not record theirs are of the sampler of their model, as others of it that chose none."""
    own = {"name": "DDIMScheduler", "options": {"timestep_spacing": "trailing", "steps_offset": 0}}
    leading = {"name": "DDIMScheduler", "options": {"timestep_spacing": "leading", "steps_offset": 0}}
    choice = {"scheduler": {"name": "DDIMScheduler", "timestep_spacing": "leading"}}
    runs = [
        static(make, 2, 0.6, [40] * 3, facts={"scheduler": own}),
        static(make, 3, 0.4, [30] * 3),
        make(
            "leading-2", {"name": "static", "interval": 2}, 0.6, [41] * 3, sampling=choice, facts={"scheduler": leading}
        ),
    ]
    comparison = compare(runs, Options(by=("scheduler",)))
    assert [block.name for block in comparison.blocks] == [
        "scheduler DDIMScheduler(timestep_spacing=leading)",
        "scheduler DDIMScheduler(timestep_spacing=trailing)",
    ]
    assert [[sweep.settings for sweep in block.sweeps] for block in comparison.blocks] == [
        [[""]], [["interval=3", "interval=2"]],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"sampling.scheduler: DDIMScheduler\(timestep_spacing=trailing\) in 2 runs; "):
        compare(runs, Options())
    assert len(compare(runs[:2], Options()).blocks) == 1
