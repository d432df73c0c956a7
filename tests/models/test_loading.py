import json
import shutil

import pytest
import torch
from pipelines import BUILDERS, save_pipeline

import fsframework as fsf
from fsframework.models.loading import checkpoints, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(BUILDERS["latte"](), tmp_path_factory.mktemp("model") / "random-latte")


def test_a_folder_is_loaded_and_generates_frames_in_zero_to_one(folder):
    model = load_model(str(folder))
    model.pipe.set_progress_bar_config(disable=True)
    assert type(model.adapter).__name__ == "Latte"
    sampling = dict(num_steps=3, num_frames=8, height=16, width=16)
    video = model.generate("digit 6 is moving up and down", seed=3, **sampling)
    assert video.shape == (8, 16, 16, 3)
    assert video.dtype == torch.float32
    assert 0 <= video.min() <= video.max() <= 1
    assert torch.equal(video, model.generate("digit 6 is moving up and down", seed=3, **sampling))
    assert not torch.equal(video, model.generate("digit 6 is moving up and down", seed=4, **sampling))


def test_an_argument_the_pipeline_does_not_take_is_named(folder):
    with pytest.raises(ValueError, match="LattePipeline takes no 'colour'"):
        load_model(str(folder)).generate("x", seed=0, colour="red")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-late", r"unknown model 'tiny-late'.*Did you mean 'tiny-latte'\?"),
        ("no/such/folder", "unknown model"),
    ],
)
def test_an_unknown_model_gets_the_nearest_name(name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_a_folder_that_is_no_pipeline_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="not a diffusers pipeline folder: it has no model_index.json"):
        load_model(str(tmp_path))


def test_a_truncated_checkpoint_is_one_clear_error(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="files are damaged or incomplete"):
        load_model(str(broken))


def test_a_damaged_index_is_one_clear_error(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(str(broken))


def test_a_pipeline_of_an_unknown_family_lists_what_is_known(folder, tmp_path):
    other = tmp_path / "unet"
    shutil.copytree(folder, other)
    index = json.loads((other / "model_index.json").read_text())
    index.pop("transformer")
    index["_class_name"] = "DiffusionPipeline"
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no adapter|could not load"):
        load_model(str(other))


def test_an_unknown_dtype_gets_the_nearest_name(folder):
    with pytest.raises(ValueError, match=r"unknown dtype 'float15'. Did you mean 'float16'"):
        load_model(str(folder), dtype="float15")


def test_every_checkpoint_belongs_to_one_family():
    known = checkpoints()
    assert {"tiny-latte", "latte-1", "cogvideox-2b", "cogvideox-5b"} <= set(known)
    assert known["latte-1"][0] is fsf.ADAPTERS["latte"]


def test_a_folder_takes_its_familys_usual_settings_but_the_pipelines_own_sizes(folder):
    checkpoint = load_model(str(folder)).checkpoint
    published = fsf.ADAPTERS["latte"].checkpoints["latte-1"]
    assert (checkpoint.dtype, checkpoint.num_steps) == (published.dtype, published.num_steps)
    assert checkpoint.height is None


def test_a_repository_that_can_not_be_reached_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="could not find model 'nobody/nothing': no such folder, and no such repository"
    ):
        load_model("nobody/nothing")
