"""A random Latte pipeline of 2 + 2 blocks on disk, and a config that runs on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CAPTIONS = ["digit 6 is moving up and down", "digit 3 is moving left and right", "digit 1 is moving up and down"]


def build_pipeline_folder(folder: Path) -> Path:
    """Save a random `LattePipeline` that generates 8 frames of 16 x 16 pixels."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    words = sorted({word for caption in CAPTIONS for word in caption.split()} | set("0123456789"))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120
    )
    text = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    transformer = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=16, attention_bias=True, norm_type="ada_norm_single",
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6, num_embeds_ada_norm=1000,
        video_length=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = LattePipeline(tokenizer, T5EncoderModel(text), vae, transformer, DDIMScheduler())
    pipe.save_pretrained(folder)
    # transformers 5 saves a class name that older releases do not know.
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline_folder(tmp_path_factory.mktemp("models") / "random-latte")


@pytest.fixture(scope="session")
def loaded_model(pipeline_folder: Path) -> Any:
    from fsframework.models.loading import load_model

    return load_model(str(pipeline_folder))


@pytest.fixture
def overrides(pipeline_folder: Path, tmp_path: Path) -> list[str]:
    """Three videos of 8 steps with static reuse every second step after 2 steps of warmup."""
    return _overrides(pipeline_folder, tmp_path)


@pytest.fixture(scope="session")
def overrides_below(pipeline_folder: Path) -> Callable[[Path], list[str]]:
    """The same, for a folder of one's own."""
    return lambda folder: _overrides(pipeline_folder, folder)


def _overrides(pipeline_folder: Path, folder: Path) -> list[str]:
    return [
        "name=test",
        f"model.name={pipeline_folder}",
        "policy.name=static",
        "policy.warmup=2",
        "sampling.num_steps=8",
        "sampling.num_frames=8",
        "sampling.height=16",
        "sampling.width=16",
        "prompts.texts=[" + ", ".join(CAPTIONS) + "]",
        "metrics=[psnr, ssim]",
        "tracking.wandb=disabled",
        f"output.runs_dir={folder / 'runs'}",
    ]
