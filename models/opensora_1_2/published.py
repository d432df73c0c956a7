"""Loading models as Open-Sora published them: a transformers-style `config.json` and `model.safetensors`, no diffusers names."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments that say how a repository is reached."""
_HARMLESS = ("low_cpu_mem_usage", "use_safetensors", "offload_folder", "offload_state_dict", "output_loading_info")


class PublishedModel(ModelMixin):
    """A `ModelMixin` whose `from_pretrained` takes the published files as well as its own, both strictly."""

    published_type: ClassVar[str]
    """`model_type` in the published config."""
    computed_keys: ClassVar[frozenset[str]] = frozenset()
    """Tensors that may be absent from the weights because the constructor makes them."""

    @classmethod
    def from_published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments from the published config; keys that are none of them are left out."""
        known = inspect.signature(cls.__init__).parameters
        return {name: value for name, value in config.items() if name in known}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load from a folder or a Hugging Face repository, in diffusers' format or as published.

        `subfolder`, `torch_dtype` and the hub's arguments (`revision`, `cache_dir`, `token`, ...) work for both; whatever
        else diffusers takes (`device_map`, `quantization_config`, `variant`) only for its own format.

        Raises:
            ValueError: weights lack a tensor or have one too many, all listed; the config is for something else; or an
                option the published format has no use for.
            OSError: files are not there.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        where = str(pretrained_model_name_or_path)
        config_file = _find(where, "config.json", kwargs.get("subfolder"), hub)
        config = json.loads(config_file.read_text())
        if "_class_name" in config:
            wants_info = kwargs.pop("output_loading_info", False)
            loaded: Any = super().from_pretrained(where, output_loading_info=True, **kwargs)
            model, info = loaded
            cls._check(where, info["missing_keys"], info["unexpected_keys"])
            return (model, info) if wants_info else model
        unusable = [
            n
            for n, v in kwargs.items()
            if v and n not in (*HUB_OPTIONS, *_HARMLESS, "subfolder", "torch_dtype", "dtype")
        ]
        if unusable:
            raise ValueError(
                f"{cls.__name__}: {where} is in the published format, which does not take {', '.join(unusable)}. Load it "
                f"without, save_pretrained it, and load that."
            )
        if config.get("model_type") != cls.published_type:
            raise ValueError(
                f"{cls.__name__}: {config_file} is for model_type {config.get('model_type')!r}; expected {cls.published_type!r}"
            )
        return cls._load_published(where, config, kwargs.get("torch_dtype") or kwargs.get("dtype"), kwargs, hub)

    @classmethod
    def _load_published(
        cls, where: str, config: dict[str, Any], dtype: torch.dtype | None, kwargs: dict[str, Any], hub: dict[str, Any]
    ) -> Any:
        from accelerate import init_empty_weights
        from safetensors.torch import load_file

        weights = load_file(_find(where, "model.safetensors", kwargs.get("subfolder"), hub))
        with init_empty_weights():
            model = cls(**cls.from_published_config(config))
        for name in cls.computed_keys - weights.keys():
            weights[name] = cls.computed(name, model)
        own = model.state_dict()
        wrong = [
            f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        cls._check(where, [n for n in own if n not in weights], [n for n in weights if n not in own], wrong)
        wanted = dtype or torch.float32
        model.load_state_dict(
            {n: w.to(wanted) if w.is_floating_point() else w for n, w in weights.items()}, assign=True
        )
        model.register_to_config(_name_or_path=where)
        return model.eval()

    @classmethod
    def computed(cls, name: str, model: Any) -> torch.Tensor:
        """The value of a tensor among `computed_keys`."""
        raise NotImplementedError(name)

    @classmethod
    def _check(cls, where: str, missing: Any, unexpected: Any, wrong: Any = ()) -> None:
        parts = [
            f"{len(names)} {what}: {', '.join(sorted(names)[:20])}{' ...' if len(names) > 20 else ''}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if len(names)
        ]
        if parts:
            raise ValueError(
                f"{cls.__name__}: the weights at {where} are not this model's. {'; '.join(parts)}. Is it another version, "
                f"or a damaged file?"
            )


def _find(where: str, name: str, subfolder: str | None, hub: dict[str, Any]) -> Path:
    """A file of a folder or of a Hugging Face repository."""
    folder = Path(where, subfolder or "")
    if Path(where).is_dir():
        if not (folder / name).is_file():
            raise OSError(f"{folder} has no {name}")
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(where, name, subfolder=subfolder, **hub))


def published_config(where: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The top-level `config.json` of a folder or repository; None where there is none (a pipeline has model_index.json)."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    if (Path(where) / "model_index.json").is_file():
        return None
    hub = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
    try:
        config: dict[str, Any] = json.loads(_find(where, "config.json", None, hub).read_text())
    except (OSError, EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None
    return config
