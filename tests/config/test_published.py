import pytest
import yaml

from fsframework.config.grid import load_ablation
from fsframework.config.published import Published, check_table, published_tables

TABLE = {"source": "A paper, table 1", "rows": [{"setting": "static", "psnr": 25}]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump({"sweep": TABLE, "other": TABLE}))
    return path


def test_a_path_takes_the_table_of_the_grids_name_and_tables_names_others(file):
    assert list(published_tables("numbers.yaml", file.parent, "sweep", "g")) == ["sweep"]
    assert list(published_tables({"file": "numbers.yaml", "tables": ["other", "sweep"]}, file.parent, "x", "g")) == [
        "other",
        "sweep",
    ]
    assert published_tables(TABLE, file.parent, "mine", "g") == {"mine": TABLE}
    assert published_tables(None, file.parent, "sweep", "g") == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.yaml", "no such file"),
        ("numbers.yaml", "has no table 'swep'. Did you mean 'sweep'"),
        ({"file": "numbers.yaml", "table": "sweep"}, "unknown key 'table'. Did you mean 'tables'"),
        ({"file": "numbers.yaml", "tables": []}, "list of names"),
        (3, "published is the path of a YAML file"),
    ],
)
def test_what_can_not_be_found_is_said(file, value, message):
    with pytest.raises(ValueError, match=message):
        published_tables(value, file.parent, "swep", "g.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "needs a source"),
        ({"source": {"read": "first-hand"}}, "needs a source"),
        ({"source": {"paper": "p", "reed": "x"}}, "unknown key 'reed'. Did you mean 'read'"),
        ({"rows": []}, "rows is a list"),
        ({"rows": [{"psnr": 1}]}, r"rows\[0\] needs a setting"),
        ({"rows": [{"setting": "a"}]}, r"rows\[0\], 'a', has no number"),
        ({"rows": [{"setting": "a", "psnr": "25"}]}, "psnr must be a finite number; found '25'"),
        ({"rows": [{"setting": "a", "psnr": float("nan")}]}, "psnr must be a finite number"),
        ({"rowz": []}, "unknown key 'rowz'. Did you mean 'rows'"),
        ({"conditions": ["A100"]}, "conditions is a mapping"),
        ({"conditions": {"unverified": "steps"}}, "conditions.unverified is a list"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_the_place(change, message):
    with pytest.raises(ValueError, match=message):
        check_table(TABLE | change, "numbers.yaml: sweep")


def test_a_table_in_words():
    table = TABLE | {
        "conditions": {"device": "A100", "unverified": ["steps", "seeds"]},
        "missing": ["full"],
        "note": "A note.",
    }
    found = Published.of("t", table)
    assert found.words() == [
        "Source: A paper, table 1.",
        "Conditions: device A100.",
        "Not known of the source's runs: steps, seeds.",
        "Rows not found: full.",
        "A note.",
    ]
    assert (found.rows[0].setting, found.rows[0].model, found.rows[0].values) == ("static", None, {"psnr": 25.0})


def test_a_grid_carries_the_tables_it_names(file):
    grid = file.parent / "sweep.yaml"
    grid.write_text("base: {policy: static}\ngrid: {policy.interval: [2, 3]}\npublished: numbers.yaml\n")
    assert load_ablation(grid).published == {"sweep": TABLE}
    assert load_ablation(grid, ["name=other-name"]).published == {"sweep": TABLE}  # by the file's name
    grid.write_text(grid.read_text().replace("numbers.yaml", "gone.yaml"))
    with pytest.raises(ValueError, match="no such file"):
        load_ablation(grid)
