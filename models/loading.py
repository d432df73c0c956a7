"""From a name, folder or pipeline to an adapter and a model in memory."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsframework.core import ADAPTERS, Checkpoint, LoadedModel, ModelAdapter, ReuseWarning
from fsframework.core.discovery import draft_adapter, find_block_lists
from fsframework.core.registry import nearest

BUNDLED = Path(__file__).resolve().parent
"""Where the tiny trained checkpoints lie."""


def checkpoints() -> dict[str, tuple[type[ModelAdapter], Checkpoint]]:
    """Every model name that `load_model` knows, with its family and checkpoint."""
    return {name: (adapter, c) for _, adapter in ADAPTERS.items() for name, c in adapter.checkpoints.items()}


def find_adapter(target: Any) -> tuple[ModelAdapter, nn.Module, Any]:
    """(adapter, transformer, pipeline or None) for a diffusers pipeline or a bare transformer.

    Raises:
        ValueError: no registered adapter is for its class.
    """
    for _, adapter_class in ADAPTERS.items():
        adapter = adapter_class()
        bare = isinstance(target, nn.Module)
        module = target if bare else getattr(target, adapter.transformer_name, None)
        pipe = None if bare else target
        if module is not None and _class_name(module) in adapter.transformer_classes:
            if (why := adapter.unsupported_pipelines.get(type(target).__name__)) is not None:
                raise ValueError(f"{type(target).__name__} can not be used with reuse: {why}")
            _say_if_untested(adapter, target, bare)
            return adapter, module, pipe
    raise ValueError(_no_adapter(target))


def _say_if_untested(adapter: ModelAdapter, target: Any, bare: bool) -> None:
    name = type(target).__name__
    own = bare or not type(target).__module__.startswith("diffusers.")
    if own or name in adapter.pipeline_classes or not adapter.pipeline_classes:
        return
    warnings.warn(
        f"{name} is not among the pipelines that {type(adapter).__name__} was tried with "
        f"({', '.join(adapter.pipeline_classes)}). If full compute under reuse is not bit-identical to the bare pipeline, its "
        f"loop is of another kind.",
        ReuseWarning,
        stacklevel=4,
    )


def _no_adapter(target: Any) -> str:
    """What was found, what is known, and the adapter to write."""
    classes = {name for _, adapter in ADAPTERS.items() for name in adapter.transformer_classes}
    modules = {n: m for n, m in getattr(target, "components", {}).items() if isinstance(m, nn.Module)}
    bare = isinstance(target, nn.Module)
    name = type(target).__name__
    inside = ", ".join(f"{n}: {type(m).__name__}" for n, m in modules.items())
    transformer = target if bare else next((m for m in modules.values() if _looks_like_denoiser(m)), None)
    if transformer is None:
        return (
            f"no adapter for {name}"
            + (f" (its modules: {inside})" if inside else "")
            + ", and none of its modules is a "
            f"transformer with a list of attention blocks. {nearest(name, sorted(classes))} Give a diffusers pipeline or "
            f"its transformer."
        )
    draft = draft_adapter(transformer, None if bare else target)
    return (
        f"no adapter for {name}"
        + (f" (its modules: {inside})" if inside else "")
        + f"; {len(classes)} transformer classes "
        f"have one (`fsf list models`). To add the family, save this as one file, check what it says "
        f"to check, and name it under `plugins:` of a run (or import it before fsf.reuse); to ship it, put it in models/:\n\n"
        f"{draft}"
    )


def _looks_like_denoiser(module: nn.Module) -> bool:
    module = getattr(module, "_orig_mod", module)
    arguments = list(inspect.signature(type(module).forward).parameters)
    timed = any(name.startswith("timestep") or name in ("t", "sigma") for name in arguments)
    return timed and bool(find_block_lists(module))


def _class_name(module: nn.Module) -> str:
    return type(getattr(module, "_orig_mod", module)).__name__


def load_model(
    name: str, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None, offload: bool = False
) -> LoadedModel:
    """Load a model by registered name, folder or Hugging Face repository.

    Args:
        name: `tiny-latte`, `cogvideox-2b`, ... (see `fsf list models`), a pipeline folder, or `owner/repository`.
        device: where to run. With `offload`, components are moved there as they are needed.
        dtype: `float32`, `bfloat16` or `float16`; default: the checkpoint's usual one, float32 on a CPU.

    Raises:
        ValueError: unknown name, folder without `model_index.json`, damaged files, or a family without adapter.
    """
    source, checkpoint = locate(name)
    torch_dtype = dtype_of(dtype, checkpoint, torch.device(device))
    try:
        loader = _pipeline_class(name, source)
        pipe = loader.from_pretrained(str(source), torch_dtype=torch_dtype, revision=checkpoint.revision)
    except Exception as error:
        what = "the folder's files are damaged or incomplete" if isinstance(source, Path) else "see the cause below"
        raise ValueError(
            f"could not load model {name!r} from {source}: {what} ({type(error).__name__}: {_first_line(error)})"
        ) from error
    adapter, _, _ = find_adapter(pipe)
    model = LoadedModel(name, adapter, pipe, checkpoint, source)
    model.bind()
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return model


def locate(name: str, ask_hub: bool = True) -> tuple[Path | str, Checkpoint]:
    """Where a model's files are, a folder or a Hugging Face repository, and how it is meant to be used.

    Args:
        name: as for `load_model`.
        ask_hub: look a repository up that is not registered; without it nothing is known of its usual settings.

    Raises:
        ValueError: unknown name, or a folder without `model_index.json`.
    """
    known = checkpoints()
    if name in known:
        checkpoint = known[name][1]
        folder = BUNDLED / checkpoint.source
        source: Path | str = folder if "/" not in checkpoint.source else checkpoint.source
    elif Path(name).is_dir():
        source, checkpoint = Path(name), _checkpoint_of(Path(name))
    elif name.count("/") == 1 and not name.startswith((".", "/")):
        source, checkpoint = name, _checkpoint_at(name) if ask_hub else Checkpoint(name)
    else:
        raise ValueError(
            f"unknown model {name!r}: not a registered name, not a folder. {nearest(name, list(known), 'fsf list models')} "
            f"A Hugging Face repository is written owner/name."
        )
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise ValueError(f"{source} is not a diffusers pipeline folder: it has no model_index.json")
    return source, checkpoint


def _pipeline_class(name: str, source: Path | str) -> Any:
    """The class to load with: diffusers' own by its index, or one of ours where the family's pipeline is ours."""
    from diffusers import DiffusionPipeline

    wanted: str | None = None
    if isinstance(source, Path):
        wanted = json.loads((source / "model_index.json").read_text()).get("_class_name")
    else:
        named = {known: family for known, (family, _) in checkpoints().items()}
        sources = {checkpoint.source: family for family, checkpoint in checkpoints().values()}
        family = named.get(name) or sources.get(name)
        wanted = family.pipeline_classes[0] if family is not None and family.pipeline_classes else None
    for _, adapter in ADAPTERS.items():
        if adapter.pipeline_module != "diffusers" and wanted in adapter.pipeline_classes:
            return getattr(importlib.import_module(adapter.pipeline_module), wanted)
    return DiffusionPipeline


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def dtype_of(dtype: str | torch.dtype | None, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the checkpoint's usual one; ValueError for an unknown name."""
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else checkpoint.dtype
    if isinstance(dtype, torch.dtype):
        return dtype
    names = ["float32", "bfloat16", "float16"]
    if dtype not in names:
        raise ValueError(f"unknown dtype {dtype!r}. {nearest(dtype, names)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def _checkpoint_of(folder: Path) -> Checkpoint:
    """A folder: the bundled checkpoint it is, or its family's usual settings."""
    index = folder / "model_index.json"
    if not index.is_file():
        return Checkpoint(str(folder))
    try:
        pipeline = json.loads(index.read_text()).get("_class_name")
    except json.JSONDecodeError as error:
        raise ValueError(f"{index} is not valid JSON ({error}); the checkpoint is damaged") from None
    for _, checkpoint in checkpoints().values():
        if folder.resolve() == (BUNDLED / checkpoint.source).resolve():
            return checkpoint
    return _usual(pipeline, str(folder))


def _checkpoint_at(repository: str) -> Checkpoint:
    """A repository: the registered checkpoint it is, or its family's usual settings."""
    from diffusers import DiffusionPipeline

    for _, checkpoint in checkpoints().values():
        if checkpoint.source == repository:
            return checkpoint
    try:
        pipeline = DiffusionPipeline.load_config(repository).get("_class_name")
    except Exception as error:
        raise ValueError(
            f"could not find model {repository!r}: no such folder, and no such repository could be reached "
            f"({type(error).__name__}: {_first_line(error)}). {nearest(repository, list(checkpoints()), 'fsf list models')}"
        ) from error
    return _usual(pipeline, repository)


def _usual(pipeline: str, source: str) -> Checkpoint:
    """Dtype, steps and guidance that the family's published checkpoint is run with; sizes are the pipeline's own."""
    for _, adapter in ADAPTERS.items():
        if pipeline in adapter.pipeline_classes:
            for checkpoint in adapter.checkpoints.values():
                if "/" in checkpoint.source:
                    return dataclasses.replace(
                        checkpoint, source=source, height=None, width=None, num_frames=None, revision=None
                    )
    return Checkpoint(source)
