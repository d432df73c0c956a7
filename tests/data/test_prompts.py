import importlib.machinery
import json

import pytest

from fsframework.data import bouncing_digits
from fsframework.data import prompts as module
from fsframework.data.prompts import SETS, Prompt, load_prompts, plan_clips, to_jsonl, vbench_file


def texts(*arguments, **options) -> list[str]:
    return [prompt.text for prompt in load_prompts(*arguments, **options)]


def test_the_digits_set_holds_the_twenty_captions_of_the_benchmark():
    prompts = texts("digits")
    assert len(prompts) == len(set(prompts)) == 20
    assert "digit 6 is moving up and down" in prompts
    assert "digit 6 is moving left and right" in prompts


def test_the_training_and_the_held_out_captions_part_the_set_as_the_training_does():
    train, heldout = texts("digits-train"), texts("digits-heldout")
    assert heldout == [
        "digit 2 is moving up and down",
        "digit 5 is moving left and right",
        "digit 9 is moving up and down",
    ]
    assert len(train) == 17
    assert sorted(train + heldout) == sorted(texts("digits"))
    assert train == [bouncing_digits.caption(*pair) for pair in bouncing_digits.training_pairs()]


def test_limit_takes_the_first_prompts():
    assert texts("digits", limit=3) == texts("digits")[:3]


def test_explicit_texts_take_the_place_of_the_set():
    assert texts("digits", texts=["a cat ", "", "a dog"]) == ["a cat", "a dog"]


def test_a_text_file_gives_a_prompt_per_line_without_blanks_and_comments(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("# cats\na cat\n\n  a dog \n")
    assert load_prompts(str(path)) == [Prompt("a cat"), Prompt("a dog")]


def test_a_csv_file_gives_its_prompt_column_quotes_commas_and_line_breaks_included(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt\n"a cat, sleeping"\n"a dog\nand a ball"\n')
    assert load_prompts(str(path)) == [Prompt("a cat, sleeping"), Prompt("a dog\nand a ball")]


def test_seeds_of_a_csv_row_are_the_prompts_own_and_its_other_columns_are_facts(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,prompt,seeds,category\n1,a cat,7 8 9,animal\n2,a car,,\n")
    assert load_prompts(str(path)) == [
        Prompt("a cat", (7, 8, 9), {"id": "1", "category": "animal"}),
        Prompt("a car", (), {"id": "2"}),
    ]


def test_a_json_file_gives_strings_or_objects_with_seeds_and_facts(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps(["a cat", {"prompt": "a dog", "id": 2, "seeds": [5, 6]}, {"prompt": "a hen", "seed": 4}])
    )
    assert load_prompts(str(path)) == [Prompt("a cat"), Prompt("a dog", (5, 6), {"id": 2}), Prompt("a hen", (4,))]


def test_a_jsonl_file_gives_an_item_per_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('"a cat"\n\n{"prompt": "a dog", "seed": 3, "objects": ["dog"]}\n')
    assert load_prompts(str(path)) == [Prompt("a cat"), Prompt("a dog", (3,), {"objects": ["dog"]})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "id,caption\n1,a\n", "column named 'prompt'"),
        (
            "p.csv",
            "prompt,id\na cat, sleeping,1\n",
            "line 2: more cells than columns; put a prompt with commas in quotes",
        ),
        ("p.csv", "prompt,seed\na cat,first\n", "line 2: seed must be whole numbers >= 0, such as 7 or 7 8 9"),
        ("p.csv", "prompt,seed\na cat,-1\n", "line 2: seed must be whole numbers"),
        ("p.csv", "prompt,seed,seeds\na cat,1,2 3\n", "line 2: give `seed` or `seeds`, not both"),
        ("p.json", '[{"prompt": "a", "seeds": [1, 1]}]', "item 0: seeds names a seed twice"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "item 0: seed must be whole numbers"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", '{"prompt": "a"}', "list of strings"),
        ("p.json", "[1]", "item 0: must be one of a list of strings"),
        (
            "p.jsonl",
            '"a"\n{"text": "b"}\n',
            "line 2: must be one of a list of strings, or of objects with the key 'prompt'",
        ),
        ("p.jsonl", '"a"\n{\n', "line 2, is not valid JSON"),
        ("p.txt", "\n# only comments\n", "holds no prompt"),
    ],
)
def test_a_malformed_prompt_file_is_named_with_its_fault(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_prompts(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_unknown_set_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="no such prompt file"):
        load_prompts(str(tmp_path / "p.txt"))
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        load_prompts("digit")


def test_seed_of_a_video_is_the_base_seed_plus_its_number_and_prompts_come_in_rounds():
    clips = plan_clips([Prompt("a"), Prompt("b")], base_seed=10, per_prompt=2)
    assert [(c.index, c.prompt, c.seed) for c in clips] == [(0, "a", 10), (1, "b", 11), (2, "a", 12), (3, "b", 13)]


def test_a_prompt_with_seeds_of_its_own_gets_a_video_for_each_and_the_others_as_many_as_are_asked_for():
    prompts = [Prompt("a", (70, 80, 90), {"id": 1}), Prompt("b"), Prompt("c", (5,))]
    clips = plan_clips(prompts, base_seed=10, per_prompt=2)
    assert [(c.index, c.prompt, c.seed) for c in clips] == [
        (0, "a", 70), (1, "b", 11), (2, "c", 5),
        (3, "a", 80), (4, "b", 14),
        (5, "a", 90),
    ]  # fmt: skip
    assert [c.facts for c in clips] == [{"id": 1}, {}, {}, {"id": 1}, {}, {"id": 1}]


def test_the_written_videos_read_back_are_the_same_videos(tmp_path):
    prompts = [Prompt("a", (70, 80), {"id": 1, "who": "Ä"}), Prompt("b"), Prompt("b", (3,))]
    clips = plan_clips(prompts, base_seed=10, per_prompt=3)
    (tmp_path / "p.jsonl").write_text(to_jsonl(clips), encoding="utf-8")
    assert plan_clips(load_prompts(str(tmp_path / "p.jsonl")), base_seed=99, per_prompt=1) == clips


# VBench.


@pytest.fixture
def vbench(tmp_path, monkeypatch):
    """A package `vbench` as version 0.1.5 lies on disk, with three of its 946 prompts; importing it is an error."""
    package = tmp_path / "vbench"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs detectron2')")
    entries = [
        {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
        {
            "prompt_en": "a bench and a snowboard",
            "dimension": ["multiple_objects"],
            "auxiliary_info": {"multiple_objects": {"object": "bench and snowboard"}},
        },
        {"prompt_en": "a person swimming in ocean", "dimension": ["subject_consistency", "motion_smoothness"]},
    ]
    (package / "VBench_full_info.json").write_text(json.dumps(entries))
    find = importlib.machinery.PathFinder.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: find(name, [str(tmp_path)]))
    return package


def test_vbench_gives_the_prompts_of_its_package_without_importing_it(vbench):
    prompts = load_prompts("vbench")
    assert prompts[0].text == "In a still frame, a stop sign"
    assert prompts[1].facts == {
        "dimension": ["multiple_objects"],
        "auxiliary_info": {"multiple_objects": {"object": "bench and snowboard"}},
    }
    assert vbench_file() == vbench / "VBench_full_info.json"
    # The list of another environment, by its path.
    assert load_prompts(str(vbench / "VBench_full_info.json")) == prompts


def test_one_dimension_of_vbench_by_name(vbench):
    assert texts("vbench-motion_smoothness") == ["a person swimming in ocean"]
    with pytest.raises(
        ValueError, match="VBench has no dimension 'motion_smothness'. Did you mean 'motion_smoothness'"
    ):
        load_prompts("vbench-motion_smothness")


def test_without_vbench_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"pip install --no-deps vbench .* or give the path of the VBench_full_info.json"
    ):
        load_prompts("vbench")


@pytest.mark.skipif(vbench_file() is None, reason="vbench is not installed")
def test_the_installed_vbench_has_946_prompts_in_16_dimensions():
    prompts = load_prompts("vbench")
    assert len(prompts) == 946
    assert len({name for prompt in prompts for name in prompt.facts["dimension"]}) == 16
    assert len(load_prompts("vbench-human_action")) == 100


def test_every_set_has_a_line_that_says_what_it_is():
    assert list(SETS) == ["digits", "digits-train", "digits-heldout", "vbench"]
    assert all(summary for summary, _ in SETS.values())
