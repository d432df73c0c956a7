"""What the experiments of this folder share: their config, the data of a tiny model, and a JSON per finished arm."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fsframework.train.autoencoder import encode_grid
from fsframework.train.config import TinyConfig, load_config
from fsframework.train.tiny import build_denoiser, train_autoencoder

HERE = Path(__file__).resolve().parent
C = TypeVar("C")


def read(schema: type[C], default: Path, quick: Mapping[str, Any], arguments: Sequence[str]) -> C:
    """Defaults <- YAML <- `--quick` <- `key=value`; the first argument may name another YAML file. Strict keys."""
    from omegaconf import OmegaConf

    given = [a for a in arguments if a != "--quick"]
    path = given.pop(0) if given and "=" not in given[0] else str(default)
    merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path))
    if "--quick" in arguments:
        merged = OmegaConf.merge(merged, OmegaConf.create(dict(quick)))
    config: Any = OmegaConf.to_object(OmegaConf.merge(merged, OmegaConf.from_dotlist(given)))
    return config


def tiny_model(path: str, data: str, model: Mapping[str, Any], encode: bool) -> tuple[TinyConfig, Any, Tensor | None]:
    """The training config of a tiny model, its autoencoder, and the latents of all training frames if `encode`.

    Args:
        path: YAML of `experiments/tiny_models`.
        data: folder that holds `vae` and `latents.pt`, or where they are made; "" is random latents and the bundled
            autoencoder, to see whether things run.
        model: differences in size.
        encode: whether the latents are needed.
    """
    config = load_config(path, ["wandb=false", "num_processes=1"])
    config.model = {**config.model, **model}
    if not data:
        config.autoencoder.source, config.autoencoder.decoder_steps = "tiny-latte", 0
        from diffusers import AutoencoderKL

        from fsframework.train.tiny import BUNDLED

        noise = torch.randn(1, 10, 10, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
        return config, AutoencoderKL.from_pretrained(BUNDLED / "tiny-latte" / "vae"), noise.expand(1397, *[-1] * 5)
    directory = Path(data)
    directory.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(config, directory)
    if not encode:
        return config, autoencoder, None
    path_of_latents = directory / "latents.pt"
    if not path_of_latents.exists():
        temporary = path_of_latents.with_suffix(f".{os.getpid()}.tmp")
        torch.save(encode_grid(autoencoder), temporary)
        os.replace(temporary, path_of_latents)
    return config, autoencoder, torch.load(path_of_latents)


def trained(tiny: TinyConfig, data: str, name: str) -> Any:
    """The model with the weights `<name>.pt` of the folder `data`; "" is random ones, without a zero matrix at the end."""
    denoiser = build_denoiser(tiny)
    if data:
        denoiser.load_state_dict(torch.load(Path(data) / f"{name}.pt"))
    for matrix in () if data else [p for p in denoiser.transformer.parameters() if p.ndim == 2 and not p.any()]:
        torch.nn.init.xavier_uniform_(matrix, generator=torch.Generator().manual_seed(0))
    return denoiser.eval()


def run_arms(folder: Path, arms: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
    """Run every arm that has no JSON yet in `folder`; say how far it is and how long the rest may take."""
    folder.mkdir(parents=True, exist_ok=True)
    left = [name for name in arms if not (folder / f"{name}.json").exists()]
    print(f"{len(arms) - len(left)} of {len(arms)} arms are done", file=sys.stderr, flush=True)
    seconds: list[float] = []
    for i, name in enumerate(left):
        started, cpu = time.perf_counter(), time.process_time()
        result = {
            "arm": name,
            **arms[name](),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "made_with": versions(),
        }
        write_json(folder / f"{name}.json", result)
        seconds.append(time.perf_counter() - started)
        minutes = sum(seconds) / len(seconds) * (len(left) - i - 1) / 60
        print(f"{name}: done in {seconds[-1]:.0f} s, about {minutes:.0f} min left", file=sys.stderr, flush=True)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())


def versions() -> dict[str, Any]:
    """The conditions of a number."""
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
