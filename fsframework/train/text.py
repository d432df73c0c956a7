"""The text side of the tiny models: a real word-level tokenizer over the captions and a small T5 encoder.

Shape suffixes: B prompts, L tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsframework.data import bouncing_digits

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass
class TextConfig:
    """The T5 encoder, trained jointly with the denoiser."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    hidden: int = 128


def build_tokenizer(max_tokens: int, more: str = "") -> Any:
    """A `PreTrainedTokenizerFast`: lower case, split on spaces and punctuation, one token per word, then `</s>`.

    `max_tokens` is its declared limit: what the pipeline pads to. `more` is text whose words it knows besides.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for pair in bouncing_digits.all_pairs() for w in bouncing_digits.caption(*pair).split()})
    added = [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(more)]
    tokens = dict.fromkeys([PAD, END, UNKNOWN, *words, *added])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=max_tokens,
        padding_side="right",
    )


def build_text_encoder(config: TextConfig, vocabulary_size: int) -> Any:
    """A new `T5EncoderModel` with random weights and no dropout."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=config.width,
            d_kv=config.width // config.num_heads,
            d_ff=config.hidden,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def tokenize(tokenizer: Any, prompts: list[str], num_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [B, L] with L = `num_tokens`."""
    encoded = tokenizer(
        prompts,
        padding="max_length",
        max_length=num_tokens,
        truncation=True,
        return_attention_mask=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    return encoded.input_ids, encoded.attention_mask
