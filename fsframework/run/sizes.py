"""Models at their published size without their weights: sites, FLOPs and cache bytes, from the meta device."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsframework.core import BoundModel, ModelAdapter, ReusePolicy, Site


@dataclass(frozen=True)
class ModelSize:
    """One checkpoint at the size it is sampled at. FLOPs and bytes are those of one video's denoising step."""

    name: str
    family: str
    resolution: str
    """Frames x height x width in pixels."""
    num_parameters: int
    num_sites: Mapping[str, int]
    """Block sites by kind, in execution order."""
    num_tokens: int
    """Tokens of the video stream of one sample."""
    flops_per_site: Mapping[str, float]
    """By kind: FLOPs of one visit of a block, for all samples of a step."""
    flops_per_step: float
    """FLOPs of all forwards of one step, guidance included."""
    block_share: float
    """Share of a step's FLOPs that is in blocks: what reuse can save at most."""
    site_bytes: int
    """Bytes of one block's cached value, for all guidance branches."""
    cache_bytes: Mapping[str, int]
    """By policy, with its defaults: bytes cached at once."""


def sizes(names: Sequence[str] = (), num_steps: int = 50) -> Iterator[ModelSize]:
    """The named checkpoints, or every one whose family states its inputs at full size, one by one.

    Raises:
        ValueError: a name that is not a checkpoint, or whose family does not state its structure.
    """
    from fsframework.core.registry import nearest
    from fsframework.models.loading import checkpoints

    known = {name: family for name, (family, c) in checkpoints().items() if c.structure is not None}
    for name in names or known:
        if name not in known:
            raise ValueError(f"no full-size structure is known for {name!r}. {nearest(name, list(known))}")
        yield size_of(known[name](), name, num_steps)


def size_of(adapter: ModelAdapter, name: str, num_steps: int = 50) -> ModelSize:
    """Build the transformer of a checkpoint on the meta device, run it once at its usual resolution, and count."""
    import torch

    import fsframework.policies  # noqa: F401  registers them
    from fsframework.core import ADAPTERS, POLICIES, Run
    from fsframework.core.flops import site_flops
    from fsframework.core.samples import stacked

    checkpoint = adapter.checkpoints[name]
    bound = adapter.bind(build_meta(adapter, name))
    batch = checkpoint.num_branches if adapter.guidance == "batched" else 1
    arguments = adapter.inputs_at(bound.transformer, checkpoint, batch)
    flops = site_flops(bound, (), arguments)
    blocks = [bound.block_site(index) for index in range(len(bound.blocks))]
    calls = checkpoint.num_branches // batch
    whole = flops[bound.model_site()]
    values, num_tokens = _values(bound, arguments)
    values[bound.model_site()] = stacked(arguments[adapter.latent_input]).nbytes
    policies = {n: cls for n, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")}
    cached = {}
    timesteps = torch.linspace(1000, 0, num_steps).tolist()
    facts = {"family": ADAPTERS.name_of(type(adapter)), "checkpoint": name}
    for policy_name, policy_class in policies.items():
        for options in ({}, policy_class.example):
            with contextlib.suppress(ValueError):  # not for this model, or not without a calibration
                policy = policy_class(**options)
                sites = bound.sites(policy)
                number = policy.num_cached(Run(num_steps, timesteps, sites, facts=facts))
                cached[policy_name] = number * _largest(policy, sites, values) * calls
                break
    first = blocks[0]
    return ModelSize(
        name=name,
        family=ADAPTERS.name_of(type(adapter)),
        resolution=" x ".join(map(str, checkpoint.pixels)),
        num_parameters=sum(p.numel() for p in bound.transformer.parameters()),
        num_sites=dict(Counter(site.kind.value for site in blocks)),
        num_tokens=num_tokens,
        flops_per_site={site.kind.value: flops[site] * calls for site in reversed(blocks)},
        flops_per_step=whole * calls,
        block_share=sum(flops[site] for site in blocks) / whole,
        site_bytes=values[first] * calls,
        cache_bytes=cached,
    )


def build_meta(adapter: ModelAdapter, name: str) -> Any:
    """The transformer of a checkpoint as published, in its dtype, with no memory behind its weights."""
    import importlib

    import torch

    checkpoint = adapter.checkpoints[name]
    assert checkpoint.structure is not None
    transformer_class = getattr(importlib.import_module(adapter.pipeline_module), adapter.transformer_classes[0])
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, checkpoint.dtype))
    try:
        with torch.device("meta"):
            return transformer_class(**checkpoint.structure).eval()
    finally:
        torch.set_default_dtype(usual)


def _values(bound: BoundModel, arguments: Mapping[str, Any]) -> tuple[dict[Site, int], int]:
    """Bytes of what each block and sub-module returns, all streams; and the video tokens of one sample."""
    import torch

    from fsframework.core import Part

    out: dict[Site, int] = {}
    num_tokens: list[int] = []
    hooks = []

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = bound.blocks[0].facts.streams[0]
        stream = kwargs[name] if name in kwargs else args[0]
        num_tokens.append(stream.shape[0] * stream.shape[1] // int(arguments[bound.adapter.latent_input].shape[0]))

    def note(site: Site) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            out[site] = sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))

        return hook

    hooks.append(bound.blocks[0].module.register_forward_pre_hook(enter, with_kwargs=True))
    for index, block in enumerate(bound.blocks):
        hooks.append(block.module.register_forward_hook(note(bound.block_site(index))))
        for inner in bound.part_sites(index, frozenset(Part)):
            module = block.module.get_submodule(block.facts.submodule(inner.part) or "")
            hooks.append(module.register_forward_hook(note(inner)))
    try:
        with torch.no_grad():
            bound.transformer(**arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return out, num_tokens[0]


def _largest(policy: ReusePolicy[Any], sites: Sequence[Site], values: Mapping[Site, int]) -> int:
    """Bytes of the largest value the policy may cache; a region's is its last block's."""
    ends = {site.start: size for site, size in values.items() if not site.part.inside_block}
    return max(values.get(site, ends[site.stop - 1]) for site in sites)


NOTE = """\
FLOPs are those of one denoising step, all guidance branches; a multiply-add is two. A site's value and the cache are in the
checkpoint's dtype, for all branches; a policy's bytes are its number of cached values in 50 steps, times the largest: with its
defaults, or those published for the model, or where it needs a calibration with some. Tensors it keeps besides are not counted.
The share in blocks is the most that reuse can save."""
"""What the numbers are."""

HEADER = (
    "model",
    "frames x height x width",
    "parameters",
    "sites",
    "tokens",
    "TFLOPs per site",
    "TFLOPs per step",
    "in blocks",
)


def table_rows(found: Sequence[ModelSize]) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Two tables, each with its header: structure and FLOPs, a row per model; cache bytes, a row per policy."""
    structure = [HEADER]
    for size in found:
        kinds = size.num_sites
        structure.append(
            (
                size.name,
                size.resolution,
                f"{size.num_parameters / 1e9:.2f} B",
                " + ".join(f"{count} {kind}" for kind, count in kinds.items()),
                f"{size.num_tokens:,}",
                ", ".join(f"{size.flops_per_site[kind] / 1e12:.3g} {kind}" for kind in kinds),
                f"{size.flops_per_step / 1e12:.4g}",
                f"{100 * size.block_share:.1f} %",
            )
        )
    policies = sorted({name for size in found for name in size.cache_bytes if size.cache_bytes[name]})
    memory = [("cached by", *(size.name for size in found)), ("one site", *(_gib(size.site_bytes) for size in found))]
    for name in policies:
        memory.append((name, *(_gib(size.cache_bytes[name]) if name in size.cache_bytes else "-" for size in found)))
    return tuple(structure), tuple(memory)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"
