import json

import pytest

from fsframework.data.prompts import load_prompts, plan_clips


def test_the_digits_set_holds_the_twenty_captions_of_the_benchmark():
    prompts = load_prompts("digits")
    assert len(prompts) == len(set(prompts)) == 20
    assert "digit 6 is moving up and down" in prompts
    assert "digit 6 is moving left and right" in prompts


def test_limit_takes_the_first_prompts():
    assert load_prompts("digits", limit=3) == load_prompts("digits")[:3]


def test_explicit_texts_take_the_place_of_the_set():
    assert load_prompts("digits", texts=["a cat ", "", "a dog"]) == ["a cat", "a dog"]


def test_a_text_file_gives_a_prompt_per_line_without_blanks_and_comments(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("# cats\na cat\n\n  a dog \n")
    assert load_prompts(str(path)) == ["a cat", "a dog"]


def test_a_csv_file_gives_its_prompt_column_quotes_and_commas_included(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('id,prompt\n1,"a cat, sleeping"\n2,a dog\n')
    assert load_prompts(str(path)) == ["a cat, sleeping", "a dog"]


def test_a_json_file_gives_strings_or_the_prompt_key_of_objects(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(["a cat", {"prompt": "a dog", "id": 2}]))
    assert load_prompts(str(path)) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "id,caption\n1,a\n", "column named 'prompt'"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", '{"prompt": "a"}', "list of strings"),
        ("p.json", "[1]", "list of strings"),
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
    clips = plan_clips(["a", "b"], base_seed=10, per_prompt=2)
    assert [(c.index, c.prompt, c.seed) for c in clips] == [(0, "a", 10), (1, "b", 11), (2, "a", 12), (3, "b", 13)]
