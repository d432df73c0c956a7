"""The grids of this folder hold: every cell parses, its policy is built, its model and metrics are known.

Nothing is generated.
"""

from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from fsframework.config.grid import load_ablation
from fsframework.metrics import METRICS
from fsframework.run.ablation import plan_cells

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BASES = ("run.yaml", "full_size.yaml")
NOT_GRIDS = (*BASES, "published.yaml")
GRIDS = sorted(path.stem for path in HERE.glob("*.yaml") if path.name not in NOT_GRIDS)
PUBLISHED = yaml.safe_load((HERE / "published.yaml").read_text())
TO_BE_TRAINED = ("depth_and_width", "training_progress")
"""Their models are folders that the README says how to make."""
FULL_SIZE = {"main_table_full_size", "generalisation"}
TINY = {"tiny-opensora", "tiny-latte", "tiny-cogvideox"}
NUM_CELLS = {
    "main_table": 21, "main_table_full_size": 21, "gamma": 6, "cycle": 7, "warmup": 10, "memory": 7, "heat_maps": 2,
    "resolution": 9, "matched_quality": 19, "generalisation": 16, "latency": 7, "image": 8, "where_in_depth": 5,
    "depth_and_width": 20, "training_progress": 16,
}  # fmt: skip


def known_models():
    """Every name of `fsf list models`."""
    import fsframework.models  # noqa: F401  fills the registry
    from fsframework.core import ADAPTERS

    return {name for _, adapter in ADAPTERS.items() for name in adapter.checkpoints}


@lru_cache
def load(grid, *overrides):
    return load_ablation(HERE / f"{grid}.yaml", overrides)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder where the models to be trained lie, the shipped one in place of each."""
    top = tmp_path_factory.mktemp("trained")
    for grid in TO_BE_TRAINED:
        for cell in load(grid).cells:
            folder = top / cell.config.model.name
            if cell.config.model.name not in TINY and not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.symlink_to(ROOT / "fsframework" / "models" / "tiny-opensora", target_is_directory=True)
    return top


def test_every_grid_of_this_folder_is_known_here_and_in_the_readme():
    assert sorted(NUM_CELLS) == GRIDS
    readme = (HERE / "README.md").read_text()
    assert [grid for grid in GRIDS if f"`{grid}.yaml`" not in readme] == []


@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_of_a_grid_is_a_run_of_its_own(grid, folders, monkeypatch):
    monkeypatch.chdir(folders)
    planned = plan_cells(load(grid))
    assert len(planned) == NUM_CELLS[grid]
    if grid not in TO_BE_TRAINED:  # there one model stands for all
        assert [p.cell.label for p in planned if p.same_as is not None] == []


@pytest.mark.parametrize("grid", sorted(set(GRIDS) - set(TO_BE_TRAINED)))
def test_models_and_metrics_are_known_by_name(grid):
    cells = load(grid).cells
    models = {cell.config.model.name for cell in cells}
    assert models <= known_models()
    assert models.isdisjoint(TINY) if grid in FULL_SIZE else models <= TINY
    assert {name for cell in cells for name in cell.config.metrics or ()} <= set(METRICS)


@pytest.mark.parametrize("grid", sorted(set(GRIDS) - set(TO_BE_TRAINED) - FULL_SIZE - {"main_table"}))
def test_a_real_checkpoint_is_one_key_away(grid):
    planned = plan_cells(load(grid, "model.name=opensora-1.2", "name=opensora"))
    assert {p.cell.config.model.name for p in planned} == {"opensora-1.2"}


def test_the_full_size_main_table_has_the_cells_of_the_tiny_one():
    tiny, full = (
        yaml.safe_load((HERE / f"{grid}.yaml").read_text()) for grid in ("main_table", "main_table_full_size")
    )
    assert tiny["cells"] == full["cells"]


def test_the_ranges_of_blocks_cover_the_depth_of_the_model():
    from fsframework.models.loading import load_model

    quarters = [cell.config.policy for cell in load("where_in_depth").cells if cell.group == "quarter"]
    blocks = [i for p in quarters for i in range(p["first_block"], p["last_block"] + 1)]
    assert blocks == list(range(len(load_model("tiny-opensora").bind().blocks)))


def test_published_numbers_say_where_they_are_from_and_belong_to_a_cell():
    own = {"foresight", "teacache", "pab fast", "pab slow", "foresight at the quality of pab"}
    for name, table in PUBLISHED.items():
        assert set(table["source"]) == {"paper", "read", "from"}, name
        assert table["source"]["read"] in ("first-hand", "second-hand"), name
        assert table["conditions"], name
        grid = "main_table_full_size" if name.startswith("main_table") else name
        cells = load(grid).cells
        labels = {cell.label for cell in cells} | {cell.group for cell in cells}
        for row in table["rows"]:
            assert row["setting"] in labels | own, f"{name}: {row['setting']}"
            assert row.get("model", "opensora-1.2") in known_models(), f"{name}: {row}"
            assert set(row) - {"setting", "model"}, f"{name}: {row['setting']} has no number"


@pytest.mark.parametrize(
    ("row", "psnr", "speedup"),
    [(("opensora-1.2", "foresight N1R2"), 29.67, 1.28), (("cogvideox-2b", "foresight N2R3"), 28.45, 1.63)],
)
def test_published_numbers_are_those_of_the_reference(row, psnr, speedup):
    found = [r for r in PUBLISHED["main_table"]["rows"] if (r["model"], r["setting"]) == row]
    assert [(r["psnr"], r["speedup"]) for r in found] == [(psnr, speedup)]
