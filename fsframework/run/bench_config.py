"""What `fsf bench` can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fsframework.config.load import nearest_key, parse_overrides

SECTIONS = ("engine", "model", "wide")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class BenchConfig:
    """One benchmark. Everything is measured side by side, in rounds that interleave all methods."""

    model: str = "tiny-cogvideox"
    """As `model.name` of a run: a name of `fsf list models`, a pipeline folder or a Hugging Face repository."""
    sections: list[str] = field(default_factory=lambda: list(SECTIONS))
    """engine: what a visit and a forward cost. model: our policies and the peers on `model`. wide: the same on a random
    transformer of realistic width, where saved compute must become saved time."""
    rounds: int = 5
    """Interleaved rounds, >= 1; each generates with another prompt and seed. An interval needs 2."""
    policies: list[Any] | None = None
    """Policies instead of the usual ones: names, or mappings with `name` and options."""
    peers: bool = True
    """Also the caches of diffusers, and of cache-dit where it is installed (`pip install 'fsframework[bench]'`)."""
    num_steps: int | None = None
    """Denoising steps; null: 30 for a bundled model, the checkpoint's own for others."""
    height: int | None = None
    """Pixels; null: the checkpoint's."""
    width: int | None = None
    """Pixels; null: the checkpoint's."""
    num_frames: int | None = None
    """Frames; null: the checkpoint's."""
    prompts: str = "digits"
    """A prompt set or file; see `fsf list prompts`."""
    seed: int = 500
    """Noise of round i is of seed `seed + i`."""
    device: str = "auto"
    """auto (a CUDA device if there is one), cpu, cuda, ..."""
    dtype: str | None = None
    """float32, bfloat16 or float16; null: the checkpoint's usual one, float32 on a CPU."""
    num_threads: int = 1
    """CPU threads. With one, CPU time is steady also where others use the machine."""
    wide_hidden: int = 1024
    """Width of the random transformer, a multiple of 64."""
    wide_blocks: int = 4
    """Its blocks (layers of pairs where a family has pairs)."""
    wide_steps: int = 13
    """Its denoising steps: 1 + 12, so that cycles of 2, 3 and 4 steps come out even."""
    wide_frames: int = 4
    """Frames of its videos: few tokens, as a CPU computes them."""
    out: str = "runs/bench"
    """Where bench.json, bench.md and the pictures go."""


def load_bench(model: str | None, overrides: Sequence[str]) -> BenchConfig:
    """The benchmark that a model's name and `key=value` texts describe. With a model, only that is measured.

    Raises:
        ValueError: unknown key (with the nearest name), wrong type, or a value out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(BenchConfig)
    if model is not None:
        merged.model, merged.sections = model, ["model"]
    known = list(BenchConfig.__dataclass_fields__)
    for content, where in parse_overrides(overrides):
        for key, value in content.items():
            if key not in known:
                raise ValueError(f"{where}: a benchmark has no key {key!r}. {nearest_key(key, known)}")
            try:
                merged.merge_with({key: value})
            except OmegaConfBaseException as error:
                raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None
    config = OmegaConf.to_object(merged)
    assert isinstance(config, BenchConfig)
    _check(config)
    return config


def _check(config: BenchConfig) -> None:
    for name in config.sections:
        if name not in SECTIONS:
            raise ValueError(f"sections: there is no section {name!r}. {nearest_key(name, SECTIONS)}")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"dtype={config.dtype!r} must be one of {', '.join(DTYPES)}")
    at_least = {"rounds": 1, "num_threads": 1, "wide_hidden": 64, "wide_blocks": 1, "wide_steps": 4, "wide_frames": 1}
    for name, least in {**at_least, "num_steps": 1, "height": 1, "width": 1, "num_frames": 1, "seed": 0}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if config.wide_hidden % 64:
        raise ValueError(f"wide_hidden={config.wide_hidden} must be a multiple of 64, the width of a head")
