"""What a benchmark compares: full compute without us, our policies, the peers. And the models it runs them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fsframework.core import LoadedModel
from fsframework.run.bench_config import BenchConfig
from fsframework.run.bench_peers import LATTE, Pair, has_cache_dit, measured_ratios, pairs, pairs_on_latte

BARE = "bare model"
PEERS = ("diffusers", "cache-dit")


@dataclass(frozen=True)
class Method:
    """One row: a way to generate."""

    name: str
    kind: str
    """bare, ours, diffusers or cache-dit."""
    session: Callable[[Any], AbstractContextManager[Any]]
    """Given the pipeline, a context inside which it generates that way. Opening and closing it is not timed."""
    note: str = ""


def bare() -> Method:
    """The pipeline as it is."""

    @contextmanager
    def nothing(pipe: Any) -> Iterator[None]:
        yield None

    return Method(BARE, "bare", nothing)


def ours(block: Mapping[str, Any] | str, label: str | None = None) -> Method:
    """One of our policies, as a config's `policy` names it.

    Raises:
        ValueError: there is no such policy or option.
    """
    from fsframework.run.attach import reuse
    from fsframework.run.resolve import build_policy

    content: dict[str, Any] = {"name": block} if isinstance(block, str) else dict(block)
    if "name" not in content:
        raise ValueError(f"a policy of a benchmark needs a name, as in {{name: static, interval: 2}}; found {content}")
    policy = build_policy(content)
    return Method(label or _label(content), "ours", lambda pipe: reuse(pipe, policy))


def _label(content: Mapping[str, Any]) -> str:
    options = [f"{key}={value}" for key, value in content.items() if key != "name" and not isinstance(value, list)]
    shown = ", ".join(options[:3]) + (", ..." if len(options) > 3 else "")
    return f"{content['name']} {shown}".strip()


USUAL: tuple[dict[str, Any], ...] = (
    {"name": "full"},
    {"name": "static", "interval": 2},
    {"name": "static", "interval": 3},
    {"name": "foresight", "gamma": 0.5},
    {"name": "foresight", "gamma": 2.0},
    {"name": "fora", "interval": 2},
)
"""Our policies on any model."""

EVERYTHING = 1e9
"""A gamma under which Foresight reuses wherever it may, whatever it measures."""


def wide_policies(num_steps: int) -> list[tuple[str, dict[str, Any]]]:
    """Our policies on the random wide model, by the share of steps that compute the blocks: 3/4, 1/2 and 1/3 of all steps
    after the first; each in the way that copies least (`static`), block by block, and with distances measured."""
    quarters = {"name": "static", "warmup": 1, "interval": 4, "reuse_steps": 1}
    late = num_steps - (num_steps - 1) // 2
    return [
        ("full", {"name": "full"}),
        ("static 3/4", quarters),
        ("static 1/2", {"name": "static", "warmup": 1, "interval": 2}),
        ("static 1/3", {"name": "static", "warmup": 1, "interval": 3}),
        ("static by block 3/4", {**quarters, "storage": "residual"}),
        ("static by block 1/2", {"name": "static", "warmup": 1, "interval": 2, "storage": "residual"}),
        ("static by block 1/3", {"name": "static", "warmup": 1, "interval": 3, "storage": "residual"}),
        ("foresight 3/4", {"name": "foresight", "gamma": EVERYTHING, "warmup": late, "recompute_every": 2}),
        ("foresight 1/2", {"name": "foresight", "gamma": EVERYTHING, "warmup": 2, "recompute_every": 2}),
        ("foresight 1/3", {"name": "foresight", "gamma": EVERYTHING, "warmup": 2, "recompute_every": 3}),
    ]


def methods(config: BenchConfig, model: LoadedModel, sampling: Mapping[str, Any], wide: bool) -> list[Method]:
    """The rows of a section, the bare model first. Peers come where the family has a pairing, each beside ours with the
    settings that make the same decisions."""
    out = [bare()]
    if config.policies is not None:
        out += [ours(block) for block in config.policies]
    elif wide:
        out += [ours(block, label) for label, block in wide_policies(int(sampling["num_steps"]))]
    else:
        out += [ours(block) for block in USUAL]
    if not config.peers:
        return out
    known = {method.name for method in out}
    for pair in _pairs(model, sampling):
        kind = next(peer for peer in PEERS if pair.name.startswith(peer))
        out.append(Method(pair.name, kind, pair.session, pair.note))
        own = ours(pair.ours)
        if own.name not in known and not wide:
            known.add(own.name)
            out.append(own)
    return out


def _pairs(model: LoadedModel, sampling: Mapping[str, Any]) -> list[Pair]:
    kind = type(model.transformer).__name__
    if kind == "LatteTransformer3DModel":
        return pairs_on_latte()
    if kind != "CogVideoXTransformer3DModel":
        return []
    num_steps = int(sampling["num_steps"])
    others = {key: value for key, value in sampling.items() if key != "num_steps"}
    return pairs(measured_ratios(model, num_steps, **others), num_steps)


def notes(config: BenchConfig, model: LoadedModel) -> list[str]:
    """What a reader should know about the rows that are missing."""
    out: list[str] = []
    if not config.peers:
        return out
    kind = type(model.transformer).__name__
    if kind == "LatteTransformer3DModel":
        out.append(LATTE)
    elif kind != "CogVideoXTransformer3DModel":
        out.append(f"No peers: pairings of settings are written down for CogVideoX and Latte, not for {model.name}.")
    elif not has_cache_dit():
        out.append("cache-dit is not installed: pip install 'fsframework[bench]'.")
    return out


def load(config: BenchConfig) -> LoadedModel:
    """The model of the `model` section, silent, on its device."""
    from fsframework.models.loading import load_model
    from fsframework.run.progress import quiet_libraries
    from fsframework.run.resolve import resolve_device

    quiet_libraries()
    model = load_model(config.model, device=resolve_device(config.device), dtype=config.dtype)
    model.pipe.set_progress_bar_config(disable=True)
    return model


def load_wide(config: BenchConfig) -> LoadedModel:
    """The bundled CogVideoX pipeline around a random transformer of `wide_hidden` channels and `wide_blocks` blocks: its
    heads are 64 wide, everything else (latents, text, sampler) is the bundled model's."""
    import dataclasses

    model = load(dataclasses.replace(config, model="tiny-cogvideox"))
    kept: Any = model.transformer
    changes = {
        "num_attention_heads": config.wide_hidden // 64,
        "attention_head_dim": 64,
        "num_layers": config.wide_blocks,
    }
    torch.manual_seed(0)
    random = type(kept).from_config({**dict(kept.config), **changes})
    first = next(kept.parameters())
    model.pipe.transformer = random.to(first.device, first.dtype).eval().requires_grad_(False)
    return dataclasses.replace(model, name=f"random CogVideoX, {config.wide_hidden} wide, {config.wide_blocks} blocks")
