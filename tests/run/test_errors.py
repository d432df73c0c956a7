"""What goes wrong on the user's side: one sentence, exit code 2, no traceback, nothing written."""

import json
import shutil
from pathlib import Path

import pytest

from fsframework.cli import main


@pytest.fixture
def fails(tmp_path, overrides, capsys):
    """Run `fsf run` with changes and give the one line it printed; checks everything that holds for all mistakes."""

    def go(*changes: str, config: str = "name: test\n") -> str:
        (tmp_path / "run.yaml").write_text(config)
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(["run", str(tmp_path / "run.yaml"), *overrides, *changes]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        lines = [line for line in output.err.splitlines() if "it/s]" not in line and line.strip()]
        assert lines[0].startswith("fsf: error: ")
        assert "Traceback" not in output.err
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return "\n".join(lines)

    return go


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("policy=foresigt", ["unknown policy 'foresigt'", "Did you mean 'foresight'?"]),
        ("policy.intervall=3", ["policy 'static' has no option 'intervall'", "Did you mean 'interval'?"]),
        ("policy.interval=often", ["policy.interval='often'", "Integer"]),
        ("policy.interval=0", ["interval=0 must be at least 1"]),
        ("policy.last_block=7", ["blocks 0..7 are not a range of this model's 4 blocks"]),
        ("policy.warmup=9", ["warmup of 9 steps", "longer than the run of 8 steps"]),
        ("policy.warmup=2.5", ["as a float is a fraction"]),
        ("model=tiny-late", ["unknown model 'tiny-late'", "Did you mean 'tiny-latte'?"]),
        ("model.dtype=float8", ["model.dtype='float8'"]),
        ("model.device=cuda:7", ["model.device='cuda:7' can not be used here"]),
        ("model.device=gpu", ["model.device='gpu' can not be used here"]),
        ("metrics=[psnrr]", ["unknown metric 'psnrr'", "Did you mean 'psnr'?"]),
        ("prompts={set: digit, texts: null}", ["unknown prompt set 'digit'", "Did you mean 'digits'?"]),
        ("sampling.num_stepz=3", ["Did you mean 'sampling.num_steps'?"]),
        ("policy.gamma", ["is not of the form section.key=value"]),
        ("sampling.height=33", ["LattePipeline can not generate with", "height=33", "divisible by 8"]),
        ("launch.num_processes=0", ["launch.num_processes=0 must be at least 1"]),
    ],
)
def test_a_wrong_name_or_value(fails, change, parts):
    message = fails(change)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_runs_directory_below_a_regular_file(fails, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    message = fails(f"output.runs_dir={tmp_path / 'file' / 'runs'}")
    assert f"{tmp_path / 'file'} is a file, not a folder" in message
    assert "output.runs_dir=FOLDER" in message


def test_a_run_directory_that_can_not_be_made_although_its_parent_can(fails, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    make = Path.mkdir

    def refuse(self, *args, **kwargs):
        if "runs" in self.parts:
            raise PermissionError(13, "Permission denied")
        return make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "can not write to the run directory" in fails()


def test_a_folder_that_is_no_pipeline(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no model_index.json" in fails(f"model.name={tmp_path / 'empty'}")


def copy_of(pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "copy"))


def test_truncated_weights(fails, pipeline_folder, tmp_path):
    folder = copy_of(pipeline_folder, tmp_path)
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    message = fails(f"model.name={folder}")
    assert "damaged or incomplete" in message
    assert str(folder) in message


def test_a_model_index_that_is_no_json(fails, pipeline_folder, tmp_path):
    folder = copy_of(pipeline_folder, tmp_path)
    (folder / "model_index.json").write_text("{")
    assert "model_index.json is not valid JSON" in fails(f"model.name={folder}")


def test_a_model_without_a_single_block(fails, pipeline_folder, tmp_path):
    folder = copy_of(pipeline_folder, tmp_path)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 0}))
    message = fails(f"model.name={folder}")
    assert "block list 'transformer_blocks' is empty" in message
    assert "block list 'temporal_transformer_blocks' is empty" in message


def test_a_pipeline_of_a_family_without_adapter(fails, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 4), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "unet")
    assert "no adapter for DDPMPipeline" in fails(f"model.name={tmp_path / 'unet'}")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("def f(:\n", ["line 1", "SyntaxError"]),
        ("import os\nimport nowhere_to_be_found\n", ["line 2", "ModuleNotFoundError"]),
        (
            "from dataclasses import dataclass\nfrom fsframework import POLICIES\n"
            "from fsframework.policies import StaticReuse\n"
            '@POLICIES.register("static")\n@dataclass(frozen=True)\nclass Mine(StaticReuse):\n    pass\n',
            ["policy 'static' is already", "another name"],
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_line(fails, tmp_path, source, parts):
    (tmp_path / "plugin.py").write_text(source)
    message = fails(config="plugins: [plugin.py]\n")
    for part in parts:
        assert part in message


def test_a_refused_option_of_a_plugins_policy_is_a_users_mistake_too(fails, tmp_path):
    (tmp_path / "plugin.py").write_text(
        "from dataclasses import dataclass\nfrom fsframework import POLICIES\n"
        "from fsframework.policies import StaticReuse\n"
        '@POLICIES.register("picky")\n@dataclass(frozen=True)\nclass Picky(StaticReuse):\n'
        "    level: int = 0\n"
        "    def __post_init__(self):\n"
        "        if self.level < 0: raise ValueError(f'picky: level={self.level} must be >= 0')\n"
    )
    changes = "policy={name: picky, level: -1}"
    assert "picky: level=-1 must be >= 0" in fails(changes, config="plugins: [plugin.py]\n")


def test_fsf_debug_shows_where_a_mistake_was_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("FSF_DEBUG", "1")
    with pytest.raises(ValueError, match="no such file"):
        main(["run", str(tmp_path / "nothing.yaml")])


def test_a_value_error_from_inside_a_library_is_our_defect_and_keeps_its_traceback(tmp_path, overrides, monkeypatch):
    (tmp_path / "run.yaml").write_text("name: test\n")
    monkeypatch.setattr("fsframework.run.job.sampling_of", lambda *_: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        main(["run", str(tmp_path / "run.yaml"), *overrides])


def test_a_training_config_with_an_unknown_key(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("name: x\nnokey: 1\n")
    assert main(["train", str(tmp_path / "train.yaml")]) == 2
    message = capsys.readouterr().err
    assert "nokey" in message
    assert "Traceback" not in message


def test_a_damaged_metrics_file_is_made_again_from_the_records(tmp_path, overrides, capsys):
    (tmp_path / "run.yaml").write_text("name: test\n")
    command = ["run", str(tmp_path / "run.yaml"), *overrides, "prompts.texts=[digit 6 is moving up and down]"]
    assert main(command) == 0
    (file,) = (tmp_path / "runs").glob("test-*/metrics.json")
    whole = json.loads(file.read_text())
    file.write_text(file.read_text()[:40])
    assert main(command) == 0
    assert json.loads(file.read_text())["psnr"] == whole["psnr"]
