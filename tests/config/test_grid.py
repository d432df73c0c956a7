import dataclasses
from pathlib import Path

import pytest

from fsframework.config.grid import Executor, Resources, load_ablation, plain

BASE = """\
model: tiny-latte
policy: {name: foresight, gamma: 0.5, warmup: 3}
prompts: [a, b]
sampling: {num_steps: 30}
"""


@pytest.fixture
def ablation(tmp_path):
    """Write a grid beside a base run and load it."""
    (tmp_path / "run.yaml").write_text(BASE)

    def load(text: str, *overrides: str, name: str = "grid.yaml"):
        (tmp_path / name).write_text(text)
        return load_ablation(tmp_path / name, overrides)

    return load


def changes(found) -> list[dict]:
    return [cell.changes for cell in found.cells]


def test_a_grid_is_every_combination_with_the_last_key_fastest(ablation):
    found = ablation("base: run.yaml\ngrid: {policy.gamma: [0.25, 1.0], sampling.num_steps: [30, 50]}")
    assert changes(found) == [
        {"policy.gamma": 0.25, "sampling.num_steps": 30},
        {"policy.gamma": 0.25, "sampling.num_steps": 50},
        {"policy.gamma": 1.0, "sampling.num_steps": 30},
        {"policy.gamma": 1.0, "sampling.num_steps": 50},
    ]
    assert [cell.label for cell in found.cells][1] == "gamma=0.25, num_steps=50"
    config = found.cells[1].config
    assert config.policy == {"name": "foresight", "gamma": 0.25, "warmup": 3}
    assert (config.sampling.num_steps, config.prompts.texts, config.name) == (50, ["a", "b"], "grid")


def test_zipped_keys_vary_together_and_groups_multiply(ablation):
    found = ablation(
        "base: run.yaml\n"
        "zip:\n"
        "  - {policy.warmup: [2, 4], policy.recompute_every: [2, 3]}\n"
        "  - {sampling.height: [16, 32], sampling.width: [24, 48]}\n"
        "grid: {seeds.base: [0]}\n"
    )
    assert [list(c.values()) for c in changes(found)] == [
        [2, 2, 16, 24, 0], [2, 2, 32, 48, 0], [4, 3, 16, 24, 0], [4, 3, 32, 48, 0],
    ]  # fmt: skip


def test_named_cells_have_their_own_grids_and_share_the_outer_one(ablation):
    found = ablation(
        "base: run.yaml\n"
        "cells:\n"
        "  - {name: full, policy: full}\n"
        "  - name: static\n"
        "    policy: {name: static, warmup: 1}\n"
        "    grid: {policy.interval: [2, 3]}\n"
        "grid: {model.name: [tiny-latte, tiny-cogvideox]}\n"
    )
    assert [cell.label for cell in found.cells] == [
        "full, model=tiny-latte",
        "full, model=tiny-cogvideox",
        "static, interval=2, model=tiny-latte",
        "static, interval=2, model=tiny-cogvideox",
        "static, interval=3, model=tiny-latte",
        "static, interval=3, model=tiny-cogvideox",
    ]
    assert found.cells[0].config.policy == {"name": "full"}  # nothing of the base's foresight
    assert found.cells[4].config.policy == {"name": "static", "warmup": 1, "interval": 3}
    assert found.keys == ["policy", "model.name", "policy.interval"]


def test_a_value_reaches_a_policy_inside_another_and_an_item_of_a_list(ablation):
    base = "base:\n  policy: {name: skip, base: foresight, others: [{name: static, interval: 2}, full]}\n"
    found = ablation(
        base + "grid:\n  policy.base.gamma: [0.5]\n  policy.others.0.interval: [4]\n  policy.others.1.name: [static]\n"
    )
    assert found.cells[0].config.policy == {
        "name": "skip",
        "base": {"name": "foresight", "gamma": 0.5},
        "others": [{"name": "static", "interval": 4}, {"name": "static"}],
    }


def test_another_policy_name_drops_the_options_of_the_old_one(ablation):
    found = ablation("base: run.yaml\nzip: {policy.interval: [3], policy.name: [static]}")
    assert found.cells[0].config.policy == {"name": "static", "interval": 3}


def test_a_set_of_prompts_takes_the_place_of_the_bases_texts(ablation, tmp_path):
    (tmp_path / "mine.txt").write_text("a cat\n")
    found = ablation("base: run.yaml\ngrid: {prompts.set: [digits, mine.txt]}")
    assert [cell.config.prompts.texts for cell in found.cells] == [None, None]
    assert [cell.config.prompts.set for cell in found.cells] == ["digits", str(tmp_path / "mine.txt")]


def test_paths_in_the_grid_are_beside_the_grid_and_paths_in_the_base_beside_the_base(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "base.yaml").write_text("plugins: [p.py]\npolicy: {name: teacache, artifact: a.json}\n")
    for file in ("runs/p.py", "runs/a.json", "b.json"):
        (tmp_path / file).write_text("")
    (tmp_path / "grid.yaml").write_text("base: runs/base.yaml\ncells: [{name: a}, {name: b, policy.artifact: b.json}]")
    found = load_ablation(tmp_path / "grid.yaml")
    assert [Path(cell.config.policy["artifact"]) for cell in found.cells] == [
        tmp_path / "runs" / "a.json", tmp_path / "b.json",
    ]  # fmt: skip
    assert found.cells[0].config.plugins == [str(tmp_path / "runs" / "p.py")]


def test_overrides_change_every_cell_and_name_the_ablation(ablation):
    found = ablation("base: run.yaml\ngrid: {policy.gamma: [0.25, 1.0]}", "policy.warmup=5", "name=mine")
    assert [cell.config.policy["warmup"] for cell in found.cells] == [5, 5]
    assert [cell.config.policy["gamma"] for cell in found.cells] == [0.25, 1.0]
    assert {found.name, found.cells[0].config.name} == {"mine"}
    assert found.content["base"]["sampling"] == {"num_steps": 30}
    assert found.content["overrides"] == ["policy.warmup=5", "name=mine"]


@pytest.mark.parametrize("override", ["policy.gamma=2", "policy=full"])
def test_an_override_that_would_undo_the_grid_is_refused(ablation, override):
    with pytest.raises(ValueError, match=r"would undo the grid, which varies policy\.gamma"):
        ablation("base: run.yaml\ngrid: {policy.gamma: [0.25, 1.0]}", override)


def test_wandb_gets_the_ablation_as_group_and_the_cell_as_job_type(ablation):
    found = ablation("base: run.yaml\ngrid: {policy.gamma: [0.25]}")
    assert (found.cells[0].config.tracking.group, found.cells[0].config.tracking.job_type) == ("grid", "gamma=0.25")
    found = ablation("base: {tracking: {group: g}}\ngrid: {policy.gamma: [0.25]}")
    assert found.cells[0].config.tracking.group == "g"


def test_the_name_is_the_files_or_the_folders_of_an_ablation_yaml(ablation, tmp_path):
    text = "base: run.yaml\ngrid: {policy.gamma: [0.25]}"
    assert ablation(text, name="gamma.yaml").name == "gamma"
    assert ablation(text, name="ablation.yaml").name == tmp_path.name
    assert ablation("name: other\n" + text).name == "other"


def test_cells_say_what_they_need_where_the_executor_places_them(ablation):
    found = ablation(
        "base: run.yaml\nexecutor: {name: ray, num_cpus: 2}\n"
        "cells: [{name: small}, {name: big, resources: {num_gpus: 0.5}, sampling.num_steps: 50}]"
    )
    assert found.executor == Executor("ray", num_cpus=2)
    assert [cell.resources for cell in found.cells] == [Resources(2, 0), Resources(2, 0.5)]
    assert ablation("base: run.yaml\nexecutor: ray\ngrid: {seeds.base: [0]}").executor.name == "ray"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {policy.gamma: [1]}", "needs a `base`"),
        ("base: rnu.yaml\ngrid: {policy.gamma: [1]}", "no such file: rnu.yaml"),
        ("base: run.yaml", "varies nothing"),
        ("base: run.yaml\ngird: {policy.gamma: [1]}", "unknown key 'gird'. Did you mean 'grid'?"),
        ("model: tiny-latte\npolicy: full", "unknown key 'model'. `fsf run` runs it."),
        ("base: {polcy: full}\ngrid: {policy.gamma: [1]}", "unknown key 'polcy'. Did you mean 'policy'?"),
        ("base: run.yaml\ngrid: {polcy.gamma: [1]}", "unknown key 'polcy.gamma'. Did you mean 'policy'?"),
        ("base: run.yaml\ngrid: {sampling.steps: [1, 2]}", "unknown key 'sampling.steps'. Did you mean"),
        ("base: run.yaml\ngrid: {name: [a, b]}", "unknown key 'name'"),
        ("base: run.yaml\ngrid: {policy.gamma: 0.5}", "policy.gamma must be a list of the values to try"),
        ("base: run.yaml\ngrid: {policy.gamma: []}", "policy.gamma must be a list of the values to try"),
        ("base: run.yaml\ngrid: {zip: {policy.gamma: [1]}}", "`zip` stands beside `grid`, not in it"),
        ("base: run.yaml\nzip: {policy.gamma: [1, 2], seeds.base: [1]}", "policy.gamma has 2, seeds.base has 1"),
        ("base: run.yaml\nzip: {policy.gamma: [1]}\ngrid: {policy.gamma: [2]}", "policy.gamma is varied twice"),
        ("base: run.yaml\ncells: [{policy: full}]", "cells[0] needs a name"),
        ("base: run.yaml\ncells: [{name: a}, {name: a}]", "cells[1]: there is a cell named 'a' already"),
        ("base: run.yaml\ncells: [{name: a, sampling.num_step: 3}]", "unknown key 'sampling.num_step'. Did you mean"),
        ("base: run.yaml\ncells: [{name: a, resources: {gpus: 1}}]", "unknown key 'gpus'. Did you mean 'num_gpus'?"),
        ("base: run.yaml\nexecutor: rya\ngrid: {seeds.base: [0]}", "Did you mean 'ray'?"),
        ("base: run.yaml\nexecutor: {jobs: 0}\ngrid: {seeds.base: [0]}", "executor.jobs=0 must be at least 1"),
        ("base: run.yaml\nexecutor: {jobs: two}\ngrid: {seeds.base: [0]}", "executor.jobs must be a whole number"),
        ("base: run.yaml\ngrid: {output.runs_dir: [a, b]}", "output.runs_dir can not vary"),
        ("base: run.yaml\ngrid: {launch.num_processes: [1, 2]}", "launch.num_processes can not vary"),
        ("base: {policy: {name: x, list: [full]}}\ngrid: {policy.list.3.name: [a]}", "it has no item '3'"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(ablation, text, message):
    with pytest.raises(ValueError) as caught:
        ablation(text)
    assert message in str(caught.value)


def test_all_cells_that_are_wrong_are_named_and_one_mistake_is_said_once(ablation):
    with pytest.raises(ValueError) as caught:
        ablation("base: run.yaml\ngrid: {sampling.num_steps: [0, 30, fast], seeds.base: [0, 1]}")
    text = str(caught.value)
    assert "4 of 6 cells are wrong" in text
    assert "cell 'num_steps=0, base=0' and 1 more: sampling.num_steps=0 must be at least 1" in text
    assert "cell 'num_steps=fast, base=0' and 1 more" in text


def test_labels_say_values_as_they_are_typed():
    assert plain({"name": "static", "interval": 2}) == "static(interval=2)"
    assert [plain(v) for v in (None, True, 2.0, [1, "a"], {"name": "full"})] == ["null", "true", "2", "[1, a]", "full"]


def test_the_config_of_a_cell_can_be_written_and_read_again(ablation):
    from fsframework.config.load import build_config, to_dict

    cell = ablation("base: run.yaml\ngrid: {policy.gamma: [0.25]}").cells[0]
    assert build_config([(to_dict(cell.config), "here")], Path.cwd()) == cell.config
    assert dataclasses.is_dataclass(cell.config)
