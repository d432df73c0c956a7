"""The files as published (transformers' names, unknown keys in the config) and as diffusers writes them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsframework.models.opensora_1_2 import OpenSoraVAE, STDiT3

TRANSFORMER_CONFIG = {
    "_name_or_path": "somewhere", "architectures": ["STDiT3"], "auto_map": {"AutoModel": "x--modeling.STDiT3"},
    "caption_channels": 12, "class_dropout_prob": 0.1, "depth": 2, "drop_path": 0.0, "enable_flash_attn": True,
    "enable_layernorm_kernel": True, "enable_sequence_parallelism": False, "freeze_y_embedder": True, "hidden_size": 32,
    "in_channels": 4, "input_size": [None, None, None], "input_sq_size": 512, "mlp_ratio": 4.0, "model_max_length": 10,
    "model_type": "STDiT3", "num_heads": 2, "only_train_temporal": False, "patch_size": [1, 2, 2], "pred_sigma": True,
    "qk_norm": True, "skip_y_embedder": False, "torch_dtype": "float32", "transformers_version": "4.36.2",
}  # fmt: skip
VAE_CONFIG = {
    "architectures": ["VideoAutoencoderPipeline"], "cal_loss": False, "freeze_vae_2d": False, "from_pretrained": None,
    "micro_frame_size": 17, "model_type": "VideoAutoencoderPipeline", "scale": [3.85, 2.32, 2.33, 3.06],
    "shift": [-0.1, 0.34, 0.27, 0.98], "torch_dtype": "float32", "transformers_version": "4.36.2",
    "vae_2d": {
        "from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", "local_files_only": False,
        "micro_batch_size": 2, "subfolder": "vae", "type": "VideoAutoencoderKL",
        "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "spatial_norm_groups": 4,
    },
    "vae_temporal": {
        "from_pretrained": None, "type": "VAE_Temporal_SD", "filters": 8, "num_res_blocks": 1, "num_groups": 4,
    },
}  # fmt: skip
CASES = {"transformer": (STDiT3, TRANSFORMER_CONFIG), "vae": (OpenSoraVAE, VAE_CONFIG)}


def published(cls, config, folder):
    """A folder in the published format with random weights, and the model they are from."""
    torch.manual_seed(0)
    model = cls(**cls.from_published_config(config))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return model


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=sorted(CASES))
def case(request, tmp_path):
    cls, config = CASES[request.param]
    return cls, tmp_path / "published", published(cls, config, tmp_path / "published")


def test_the_published_files_load_and_can_be_saved_as_diffusers_has_them(case, tmp_path, capsys):
    cls, folder, model = case
    loaded = cls.from_pretrained(folder)
    assert same(loaded, model)
    assert not loaded.training
    assert {p.requires_grad for n, p in loaded.named_parameters() if n != "rope.freqs"} == {True}
    loaded.save_pretrained(tmp_path / "own")
    again = cls.from_pretrained(tmp_path / "own")
    assert same(again, model)
    assert "not expected" not in capsys.readouterr().err


def test_the_published_settings_are_used(tmp_path):
    published(OpenSoraVAE, {**VAE_CONFIG, "micro_frame_size": 8, "scale": [1.0, 2.0, 3.0, 4.0]}, tmp_path / "vae")
    vae = OpenSoraVAE.from_pretrained(tmp_path, subfolder="vae")
    assert (vae.micro_frame_size, vae.spatial_vae.batch_size) == (8, 2)
    assert vae.scale.flatten().tolist() == [1, 2, 3, 4]


def test_another_precision_is_taken_at_loading(case):
    cls, folder, _ = case
    assert {t.dtype for t in cls.from_pretrained(folder, torch_dtype=torch.bfloat16).state_dict().values()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("own", [False, True])
def test_missing_and_unexpected_tensors_are_listed(case, own, tmp_path):
    cls, folder, model = case
    file = folder / "model.safetensors"
    if own:
        folder, file = tmp_path / "own", tmp_path / "own" / "diffusion_pytorch_model.safetensors"
        model.save_pretrained(folder)
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith("bias"))
    weights["something_else"] = weights.pop(gone)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing: {gone}; 1 unexpected: something_else"):
        cls.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_named(case):
    cls, folder, _ = case
    weights = load_file(folder / "model.safetensors")
    name = next(n for n, w in weights.items() if w.ndim == 2)
    weights[name] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"1 of another shape: {name} \[3, 3\] instead of"):
        cls.from_pretrained(folder)


def test_rotary_frequencies_that_were_not_saved_are_computed(tmp_path):
    model = published(STDiT3, TRANSFORMER_CONFIG, tmp_path / "published")
    weights = load_file(tmp_path / "published" / "model.safetensors")
    del weights["rope.freqs"]
    save_file(weights, tmp_path / "published" / "model.safetensors")
    assert same(STDiT3.from_pretrained(tmp_path / "published"), model)


def test_a_config_for_something_else_and_options_without_use_are_errors(case, tmp_path):
    cls, folder, _ = case
    with pytest.raises(ValueError, match="is in the published format, which does not take device_map"):
        cls.from_pretrained(folder, device_map="auto")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises(ValueError, match="is for model_type 't5'; expected"):
        cls.from_pretrained(folder)
    with pytest.raises(OSError, match="has no config.json"):
        cls.from_pretrained(tmp_path)


def test_a_repository_is_asked_for_its_two_files(case, monkeypatch):
    cls, folder, model = case
    asked = []

    def download(repository, name, subfolder=None, **options):
        asked.append((repository, name, options))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(cls.from_pretrained("hpcai-tech/some-model", revision="v1"), model)
    assert asked == [
        ("hpcai-tech/some-model", name, {"revision": "v1"}) for name in ("config.json", "model.safetensors")
    ]
