"""Random pipelines of the real diffusers classes, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CAPTIONS = ["digit 6 is moving up and down", "digit 3 is moving left and right", "digit 1 is moving up and down"]


def text_parts() -> tuple[Any, Any]:
    """A real fast tokenizer over the captions' words, and a random one-layer T5 encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = sorted({word for caption in CAPTIONS for word in caption.split()} | set("0123456789"))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120
    )
    config = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return tokenizer, T5EncoderModel(config)


def random_latte() -> Any:
    """A `LattePipeline` of 2 + 2 blocks that generates 8 frames of 16 x 16 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel

    torch.manual_seed(0)
    tokenizer, text_encoder = text_parts()
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
    pipe = LattePipeline(tokenizer, text_encoder, vae, transformer, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_cogvideox() -> Any:
    """A `CogVideoXPipeline` of 3 blocks that generates 9 frames of 16 x 16 pixels."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    tokenizer, text_encoder = text_parts()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=3, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=16,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, CogVideoXDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


ARGUMENTS: dict[str, dict[str, Any]] = {
    "latte": dict(video_length=8, height=16, width=16),
    "cogvideox": dict(num_frames=9, height=16, width=16, max_sequence_length=16),
}
BUILDERS = {"latte": random_latte, "cogvideox": random_cogvideox}


def generate(family: str, pipe: Any, prompt: Any = CAPTIONS[0], seed: int = 0, num_steps: int = 8, **more: Any) -> Any:
    """Frames of one call, as a tensor."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {**ARGUMENTS[family], "num_inference_steps": num_steps, "guidance_scale": 3.0, **more}
    return pipe(prompt, generator=generator, output_type="pt", **arguments).frames


def save_pipeline(pipe: Any, folder: Path) -> Path:
    """`save_pretrained`, readable by older transformers as well."""
    pipe.save_pretrained(folder)
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return folder
