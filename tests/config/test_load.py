import subprocess
import sys
from pathlib import Path

import pytest

from fsframework.config import RunConfig, load_config


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(*args) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(*args)
    message = str(caught.value)
    assert "\n" not in message, "one sentence, one line"
    return message


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = write(tmp_path, "sampling: {num_steps: 30, height: 64}\nseeds: {base: 7}\n")
    config = load_config(path, ["sampling.num_steps=12"])
    assert config.sampling.num_steps == 12
    assert config.sampling.height == 64
    assert config.seeds.base == 7
    assert config.seeds.per_prompt == RunConfig().seeds.per_prompt == 1


def test_no_file_gives_the_documented_defaults():
    config = load_config()
    assert config.model.name == "tiny-latte"
    assert config.policy == {"name": "foresight"}
    assert config.prompts.set == "digits"
    assert config.tracking.wandb == "offline"
    assert config.metrics is None


def test_loading_a_config_imports_no_torch():
    load = "from fsframework.config import load_config; load_config(None, ['policy=static'])"
    code = f"import sys; {load}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_sections_written_as_one_word_stand_for_their_name():
    config = load_config(None, ["model=cogvideox-2b", "policy=static", "policy.interval=3", "prompts=[a b, c]"])
    assert config.model.name == "cogvideox-2b"
    assert config.policy == {"name": "static", "interval": 3}
    assert config.prompts.texts == ["a b", "c"]


def test_choosing_another_policy_on_the_command_line_drops_the_options_of_the_files_policy(tmp_path):
    path = write(tmp_path, "policy: {name: foresight, gamma: 0.25}\n")
    assert load_config(path, ["policy.name=static"]).policy == {"name": "static"}
    assert load_config(path, ["policy=static"]).policy == {"name": "static"}
    assert load_config(path, ["policy.gamma=1.0"]).policy == {"name": "foresight", "gamma": 1.0}


COMBINED = (
    "policy: {name: combine, policies: [static, {name: fora, interval: 3, mlp: false}], only: [null, ['*.mlp']]}\n"
)


def test_an_entry_of_a_list_is_reached_by_its_number(tmp_path):
    path = write(tmp_path, COMBINED)
    given = ["policy.policies.0.interval=2", "policy.policies[1].interval=4", "policy.only.1.0='*.attention'"]
    assert load_config(path, given).policy == {
        "name": "combine",
        "policies": [{"name": "static", "interval": 2}, {"name": "fora", "interval": 4, "mlp": False}],
        "only": [None, ["*.attention"]],
    }


def test_another_policy_in_a_list_drops_the_options_of_the_one_before(tmp_path):
    policies = load_config(write(tmp_path, COMBINED), ["policy.policies.1.name=taylorseer"]).policy["policies"]
    assert policies == ["static", {"name": "taylorseer"}]
    assert load_config(write(tmp_path, COMBINED), ["policy.policies.1=pab"]).policy["policies"] == ["static", "pab"]


def test_an_option_of_a_policy_written_as_its_name_alone_can_be_set(tmp_path):
    path = write(tmp_path, "policy: {name: forecast, base: static}\n")
    assert load_config(path, ["policy.base.interval=4"]).policy["base"] == {"name": "static", "interval": 4}


@pytest.mark.parametrize(
    ("override", "end"),
    [
        ("policy.policies.2.interval=2", "policy.policies has no entry 2; its 2 entries count from 0"),
        (
            "policy.policies.static.interval=2",
            "policy.policies is a list; give it whole, policy.policies=[...], or an entry by its number, policy.policies.0",
        ),
        (
            "policy=[static,fora]",
            "policy is one policy; for several write policy={name: combine, policies: [static, fora]}",
        ),
    ],
)
def test_a_list_answers_in_a_sentence(tmp_path, override, end):
    assert error_of(write(tmp_path, COMBINED), [override]) == f"the override {override!r}: {end}"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sampling.num_stepz=3", ["'sampling.num_stepz'", "Did you mean 'sampling.num_steps'?"]),
        ("samplin.num_steps=3", ["unknown key 'samplin'", "Did you mean 'sampling'?"]),
        ("sampling.num_steps=many", ["sampling.num_steps must be a whole number; found 'many'"]),
        ("sampling.num_steps=1.5", ["sampling.num_steps must be a whole number; found 1.5"]),
        ("sampling.guidance_scale=big", ["sampling.guidance_scale must be a number; found 'big'"]),
        ("model.offload=maybe", ["model.offload must be true or false; found 'maybe'"]),
        ("sampling=3", ["sampling is a section of keys, found 3"]),
        ("name=on", ["name must be a string; found True: put the word in quotes"]),
        ("metrics=psnr", ["metrics must be a list of strings", "found 'psnr'"]),
        ("tracking.wandb=ofline", ["Did you mean 'offline'?"]),
        ("seeds.per_prompt=0", ["seeds.per_prompt=0 must be at least 1"]),
        ("sampling.num_steps=0", ["sampling.num_steps=0 must be at least 1"]),
        ("name=a/b", ["folder name"]),
        ("prompts.texts=[]", ["holds no prompt"]),
        ("policy=null", ["policy must be set"]),
        ("policy.gamma", ["'policy.gamma' is not of the form section.key=value"]),
        ("=3", ["'=3' is not of the form section.key=value"]),
        ("policy..gamma=3", ["is not of the form section.key=value"]),
        ("policy.gamma=[1,", ["the value is not valid YAML"]),
        ("sampling.num_steps=${nope}", ["'nope' not found"]),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_it(override, parts):
    message = error_of(None, [override])
    for part in parts:
        assert part in message


def test_an_unknown_key_in_a_file_is_reported_with_the_file(tmp_path):
    path = write(tmp_path, "seeds: {basis: 1}\n")
    assert str(path) in error_of(path)
    assert "Did you mean 'seeds.base'?" in error_of(path)


def test_bad_yaml_is_reported_with_its_line(tmp_path):
    message = error_of(write(tmp_path, "name: a\nsampling: {num_steps: 3\nseeds: 1\n"))
    assert "line 3" in message
    assert "not valid YAML" in message


def test_a_file_that_is_a_list_is_refused(tmp_path):
    assert "top level" in error_of(write(tmp_path, "- a\n- b\n"))


def test_a_missing_file_is_reported_with_the_nearest_one_beside_it(tmp_path):
    write(tmp_path, "name: a\n", "static.yaml")
    message = error_of(tmp_path / "statik.yaml")
    assert "no such file" in message
    assert str(tmp_path / "static.yaml") in message


def test_a_folder_in_place_of_the_file_is_explained(tmp_path):
    assert "run.yaml" in error_of(tmp_path)


def test_plugins_and_prompt_files_are_relative_to_the_yaml_file(tmp_path, monkeypatch):
    folder = tmp_path / "theme"
    folder.mkdir()
    (folder / "policy.py").write_text("")
    (folder / "mine.txt").write_text("a\n")
    path = write(folder, "plugins: [policy.py]\nprompts: mine.txt\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.plugins == [str(folder / "policy.py")]
    assert config.prompts.set == str(folder / "mine.txt")


def test_a_prompt_file_on_the_command_line_is_found_from_where_one_is(tmp_path, monkeypatch):
    folder = tmp_path / "theme"
    folder.mkdir()
    (tmp_path / "mine.txt").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(write(folder, "name: a\n"), ["prompts=mine.txt"])
    assert config.prompts.set == str(tmp_path / "mine.txt")


def test_a_missing_plugin_is_an_error_at_load(tmp_path):
    path = write(tmp_path, "plugins: [polcy.py]\n")
    (tmp_path / "policy.py").write_text("")
    assert "Did you mean" in error_of(path)


def test_naming_a_prompt_set_or_file_replaces_the_texts_of_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("prompts: [one, two]\n")
    assert load_config(file).prompts.texts == ["one", "two"]
    assert load_config(file, ["prompts.set=digits"]).prompts.texts is None
    chosen = load_config(file, ["prompts=digits"]).prompts
    assert (chosen.set, chosen.texts) == ("digits", None)
    assert load_config(file, ["prompts=[three]"]).prompts.texts == ["three"]
