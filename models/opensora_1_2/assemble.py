"""The published parts of Open-Sora 1.2, put together to a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsframework.models.opensora_1_2.published import HUB_OPTIONS
from fsframework.models.opensora_1_2.scheduler import RFlowScheduler
from fsframework.models.opensora_1_2.transformer import STDiT3
from fsframework.models.opensora_1_2.vae import OpenSoraVAE

PUBLISHED_VAE = "hpcai-tech/OpenSora-VAE-v1.2"
PUBLISHED_TEXT_ENCODER = "DeepFloyd/t5-v1_1-xxl"
_SETTINGS = ("aesthetic_score", "clean_caption")


def assemble(pipeline_class: Any, transformer: str, options: dict[str, Any]) -> Any:
    """A pipeline around the published transformer.

    Args:
        pipeline_class: `OpenSoraPipeline`.
        transformer: folder or repository.
        options: `vae`, `text_encoder` and `tokenizer` (each a model, a folder or a repository), `scheduler`, `torch_dtype`,
            the hub's arguments, and the pipeline's own settings. `text_encoder=None` makes a pipeline that takes
            `prompt_embeds` only.

    Raises:
        ValueError: an option it does not know.
    """
    may_be_none = ("text_encoder", "tokenizer", *_SETTINGS)
    options = {name: value for name, value in options.items() if value is not None or name in may_be_none}
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    dtypes = [options.pop(name) for name in ("torch_dtype", "dtype") if name in options]
    loading = {"torch_dtype": dtypes[0]} if dtypes else {}
    shared = {name: value for name, value in hub.items() if name != "revision"}
    vae = options.pop("vae", PUBLISHED_VAE)
    text_encoder = options.pop("text_encoder", PUBLISHED_TEXT_ENCODER)
    tokenizer = options.pop(
        "tokenizer", text_encoder if isinstance(text_encoder, (str, Path)) else PUBLISHED_TEXT_ENCODER
    )
    parts = {
        "scheduler": options.pop("scheduler", None) or RFlowScheduler(),
        "vae": OpenSoraVAE.from_pretrained(vae, **loading, **shared) if isinstance(vae, (str, Path)) else vae,
        "text_encoder": text_encoder,
        "tokenizer": None if text_encoder is None else tokenizer,
    }
    settings = {name: options.pop(name) for name in _SETTINGS if name in options}
    if options:
        raise ValueError(
            f"{pipeline_class.__name__}.from_pretrained with published files does not take {', '.join(options)}"
        )
    if isinstance(text_encoder, (str, Path)):
        from transformers import T5EncoderModel

        parts["text_encoder"] = T5EncoderModel.from_pretrained(text_encoder, **loading, **shared).eval()
    if isinstance(parts["tokenizer"], (str, Path)):
        from transformers import AutoTokenizer

        parts["tokenizer"] = AutoTokenizer.from_pretrained(parts["tokenizer"], **shared)
    return pipeline_class(transformer=STDiT3.from_pretrained(transformer, **loading, **hub), **parts, **settings)
