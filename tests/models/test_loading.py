import json
import shutil

import pytest
import torch
from pipelines import BUILDERS, save_pipeline
from toys import tiny_transformer

import fsframework as fsf
from fsframework.core import ADAPTERS, Checkpoint, LoadedModel
from fsframework.models import Latte
from fsframework.models.loading import checkpoints, load_model
from fsframework.policies import FullCompute


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


class OneImage:
    """A pipeline with no guidance scale and no frames, as of a distilled image model."""

    def __call__(self, prompt, num_inference_steps=4, negative_prompt=None, generator=None, output_type="pt"):
        self.called_with = (prompt, num_inference_steps, negative_prompt)
        image = torch.rand(1, 3, 4, 6, generator=generator)
        return type("Output", (), {"images": image})()


def test_defaults_a_pipeline_does_not_take_are_left_out_and_an_image_is_a_video_of_one_frame():
    checkpoint = Checkpoint("x/y", num_steps=9, guidance_scale=5.0, arguments={"negative_prompt": " "})
    model = LoadedModel("x", Latte(), OneImage(), checkpoint, "x/y")
    assert model.generate("a cat", seed=0).shape == (1, 4, 6, 3)
    assert model.pipe.called_with == ("a cat", 9, " ")
    model.generate("a cat", seed=0, num_steps=2, negative_prompt="a dog")
    assert model.pipe.called_with == ("a cat", 2, "a dog")
    with pytest.raises(ValueError, match="OneImage takes no 'guidance_scale'"):
        model.generate("a cat", seed=0, guidance_scale=3.0)


def test_a_pipeline_without_prompts_says_how_to_use_it():
    class ByClass:
        def __call__(self, class_labels, generator=None, output_type="pt"):
            raise AssertionError

    with pytest.raises(ValueError, match=r"takes no text prompt, but 'class_labels'; call the pipeline itself"):
        LoadedModel("x", Latte(), ByClass(), Checkpoint("x/y"), "x/y").generate("7", seed=0)


def test_a_pipeline_that_can_not_be_followed_says_why():
    adapter = ADAPTERS["skyreels-v2"]()
    transformer = tiny_transformer(adapter)
    pipe = type("SkyReelsV2DiffusionForcingPipeline", (), {"transformer": transformer})()
    with pytest.raises(ValueError, match="can not be used with reuse: each frame has its own timestep"):
        fsf.reuse(pipe, FullCompute())


def test_an_unknown_family_gets_an_adapter_to_paste():
    class Pipe:
        def __init__(self):
            self.transformer = Unknown()
            self.components = {"transformer": self.transformer}

        def __call__(self, latents):
            torch.cat([latents] * 2)

    for target in (Unknown(), Pipe()):
        with pytest.raises(ValueError, match=r"no adapter for .*save this as one file") as caught:
            fsf.reuse(target, FullCompute())
        assert '@ADAPTERS.register("unknown")' in str(caught.value)
        assert 'BlockList("layers", Kind.JOINT' in str(caught.value)
    assert 'pipeline_classes = ("Pipe",)' in str(caught.value)
    assert "batch_order" in str(caught.value)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = torch.nn.Linear(2, 2), torch.nn.Sequential()

    def forward(self, x, temb):
        return x + self.self_attn(x)


class Unknown(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x, timestep):
        for layer in self.layers:
            x = layer(x, timestep)
        return x
