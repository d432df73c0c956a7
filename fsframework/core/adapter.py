"""`ModelAdapter`: the facts about a DiT family. Where reuse can happen, never whether."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fsframework.core.registry import nearest
from fsframework.core.site import Branch, Kind, Part, Site, State

if TYPE_CHECKING:
    from fsframework.core.policy import ReusePolicy


Tokens = Literal["video", "text+video", "video+text"]
"""What a sub-module's input holds along its token axis, in order."""


@dataclass(frozen=True)
class BlockList:
    """One `nn.ModuleList` of transformer blocks: how it is called and what it gives back."""

    path: str
    """Attribute path in the transformer, such as `transformer_blocks`."""
    kind: Kind
    streams: tuple[str, ...] = ("hidden_states",)
    """Argument names of the token streams in the block's forward, video first."""
    returns: tuple[str, ...] = ("hidden_states",)
    """The same names in the order the block returns them. One name: the block returns a bare tensor."""
    attention: str | None = "attn1"
    cross_attention: str | None = None
    mlp: str | None = "ff"
    """Sub-module names inside a block, dotted where they lie deeper; None where it has none."""
    fold: Literal["frames", "tokens"] | None = None
    """Which axis is folded into the batch, if one is: [(B F), N, C] or [(B N), F, C]."""
    token_inputs: tuple[str, ...] = ()
    """Other arguments with one row per video token (rotary tables), cut along with the tokens for `Partial`."""
    partial: Mapping[Part, Tokens] = field(default_factory=dict)
    """What can run on some of the video tokens (`Partial`): the block, or a sub-module by what tokens its input holds.
    What is not named is refused: a mask or table for all tokens, or a convolution over them, would be wrong."""
    concatenated: tuple[str, ...] = ()
    """The names that the one stream joins along the token axis, in order: a single-stream block after joint ones, whose
    `hidden_states` is ("encoder_hidden_states", "hidden_states"). Regions see the streams apart again."""
    kept_aside: bool | Literal["blocks"] = False
    """True: the model also keeps these blocks' outputs for later (control hints). Each block can be reused by itself;
    passing over several, as regions and jumps do, would leave the kept ones wrong and is refused, and dead blocks are run
    all the same. "blocks": later blocks alone read them (U-shaped skips), so passing over up to the last block is right."""

    def submodule(self, part: Part) -> str | None:
        """The attribute name of a sub-module part."""
        return {Part.ATTENTION: self.attention, Part.CROSS_ATTENTION: self.cross_attention, Part.MLP: self.mlp}[part]


@dataclass(frozen=True)
class Checkpoint:
    """A named set of weights of a family, with the sampling it is meant for."""

    source: str
    """A folder (relative to `fsframework/models`) or a Hugging Face repository."""
    num_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: int = 8
    dtype: str = "float32"
    """The dtype the weights are usually run in; on a CPU always float32."""
    revision: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments its pipeline is called with, such as a negative prompt without which there is no guidance."""
    num_branches: int = 2
    """Guidance branches of a step at the usual settings; 1 where guidance is distilled into the model."""
    structure: Mapping[str, Any] | None = None
    """Constructor arguments of the published transformer where they differ from its class's defaults, so that it can be
    built without its weights and counted; None where that is not stated."""

    @property
    def pixels(self) -> tuple[int, int, int]:
        """(frames, height, width) of a video at the usual settings; an image is one frame."""
        if self.height is None or self.width is None:
            raise ValueError(f"{self.source}: the checkpoint states no height and width")
        return self.num_frames or 1, self.height, self.width


class ModelAdapter:
    """Facts about one family of diffusers DiTs. Subclasses state class attributes and override nothing as a rule.

    Wrong facts fail at `bind`, all at once, by name.
    """

    transformer_classes: ClassVar[tuple[str, ...]]
    """Names of the transformer classes this adapter is for."""
    pipeline_classes: ClassVar[tuple[str, ...]] = ()
    """Names of the pipeline classes that drive them."""
    unsupported_pipelines: ClassVar[Mapping[str, str]] = {}
    """Pipelines that drive the transformer in a way the engine can not follow -> why."""
    pipeline_module: ClassVar[str] = "diffusers"
    """The module that has the transformer and pipeline classes."""
    transformer_name: ClassVar[str] = "transformer"
    """The pipeline's attribute that holds the transformer."""
    later_transformers: ClassVar[tuple[str, ...]] = ()
    """Attributes of further denoisers of the same class that take over at later steps (Wan 2.2: `transformer_2`)."""
    boundary: ClassVar[str | None] = None
    """The pipeline's config name of the noise fraction, 1 to 0, below which the later denoiser is called."""
    blocks: ClassVar[tuple[BlockList, ...]]
    """Block lists in execution order."""
    interleaved: ClassVar[bool] = False
    """True: the lists run in turns (s0 t0 s1 t1 ...). False: one list after the other."""
    guidance: ClassVar[Literal["batched", "sequential", "none"]] = "batched"
    """Whether a step calls the transformer once with both halves, once per branch, or once because there is no guidance
    (or the scale is an input of the model)."""
    batch_order: ClassVar[tuple[str, str]] = ("uncond", "cond")
    """Which half of a guidance batch is which. Sequential guidance: which branch is called first, for pipelines that do
    not say so with a `cache_context`."""
    extra_calls: ClassVar[tuple[str, ...]] = ()
    """Branch names of further calls in a step, in order, where no `cache_context` names them (perturbed guidance)."""
    counted_live: ClassVar[bool] = False
    """True: shapes inside the model depend on the values of its inputs (it drops padded text, say), so FLOPs are counted
    while the first forward runs. Usually they are worked out afterwards from the shapes of its arguments."""
    latent_input: ClassVar[str] = "hidden_states"
    timestep_input: ClassVar[str] = "timestep"
    batched_inputs: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")
    """Arguments of the transformer's forward with one row per sample, cut when one guidance half runs alone: tensors, and
    lists and dictionaries of them."""
    batch_axes: ClassVar[Mapping[str, int]] = {}
    """Which axis of such an argument counts the samples, where it is not the first."""
    contexts: ClassVar[Mapping[str, str]] = {"cond": "cond", "uncond": "uncond", "cond_uncond": "joint"}
    """diffusers' `cache_context` name -> branch."""
    pipeline_arguments: ClassVar[Mapping[str, str]] = {}
    """Our sampling names -> the pipeline's, where they differ (`num_frames` -> `video_length`)."""
    checkpoints: ClassVar[Mapping[str, Checkpoint]] = {}
    """Model names `fsf run` accepts for this family."""
    tiny_config: ClassVar[Mapping[str, Any]] = {}
    """Constructor arguments of a random transformer of a few blocks, for the contract tests."""

    def example_inputs(self, transformer: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments for one forward of the tiny transformer: `batch` samples, without the timestep."""
        raise NotImplementedError(f"{type(self).__name__} states no example_inputs; the contract tests need them")

    def inputs_at(self, transformer: nn.Module, checkpoint: Checkpoint, batch: int) -> dict[str, Any]:
        """Keyword arguments on the meta device for one forward of `batch` samples at the checkpoint's usual size, with
        as many text tokens as its pipeline gives and the timestep included. Needed to count at full size."""
        raise NotImplementedError(f"{type(self).__name__} does not state its inputs at full size")

    def gate(self, part: Part, block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None] | None:
        """The factors a block multiplies a sub-module's outputs by, one per returned tensor; None where there is none.

        `arguments` are the block's, by name. Needed only by policies that cache after the gate.
        """
        raise ValueError(
            f"{type(self).__name__} does not state its gates, so post-gate caching is not possible with this family; "
            f"use gate='pre' or implement {type(self).__name__}.gate"
        )

    def probe(
        self, name: str, transformer: nn.Module, arguments: Mapping[str, Any], block: Mapping[str, Any]
    ) -> Tensor:
        """A tensor of the current forward by name, computed when asked. `latent` is always there.

        `arguments` are the model's, `block` those of the block execution has come to (empty before the first), by name:
        a block's modulated input, say, needs no second run of the embedding.
        """
        if name == "latent":
            value: Tensor = stacked(arguments[self.latent_input])
            return value
        raise ValueError(f"{type(self).__name__} has no probe {name!r}. {nearest(name, ['latent'])}")

    def calls(self) -> tuple[str, ...]:
        """The branches of a step's forwards in the order they come, for those that no `cache_context` names."""
        first = self.batch_order if self.guidance == "sequential" else (Branch.JOINT.value,)
        return (*first, *self.extra_calls)

    def bind(self, transformer: nn.Module, denoiser: str = "") -> BoundModel:
        """Check every fact against `transformer` and number its blocks; one ValueError names all that is wrong.

        `denoiser` is the pipeline's attribute for a later denoiser, which its sites' names then begin with.
        """
        wrong: list[str] = []
        numbered: list[list[BoundBlock]] = []
        for facts in self.blocks:
            found = _get_path(transformer, facts.path)
            if not isinstance(found, nn.ModuleList):
                lists = [n for n, m in transformer.named_modules() if isinstance(m, nn.ModuleList)]
                wrong.append(f"no block list {facts.path!r}. {nearest(facts.path, lists)}")
                continue
            if len(found) == 0:
                wrong.append(f"block list {facts.path!r} is empty")
            bound = []
            for ordinal, block in enumerate(found):
                if ordinal == 0:
                    wrong += _check_block(facts, block)
                bound.append(BoundBlock(facts, block, ordinal))
            numbered.append(bound)
        kinds = [facts.kind for facts in self.blocks]
        if len(set(kinds)) < len(kinds):
            wrong.append(
                f"two block lists of one kind, {[k.value for k in kinds]}: their sites would have the same names"
            )
        for facts in self.blocks:
            unknown = sorted(set(facts.concatenated) - set(self.blocks[0].streams))
            if unknown or (facts.concatenated and len(facts.streams) != 1):
                wrong.append(
                    f"{facts.path}: {facts.streams} can not be {facts.concatenated} joined; one stream joins streams of the "
                    f"first block, {self.blocks[0].streams}"
                )
        signature = inspect.signature(type(transformer).forward).parameters
        for name in (self.latent_input, self.timestep_input):
            if name not in signature:
                wrong.append(f"the forward has no argument {name!r}. {nearest(name, list(signature))}")
        seen: dict[int, str] = {}
        for one in (one for row in numbered for one in row):
            name = f"{one.facts.path}.{one.ordinal}"
            if id(one.module) in seen:
                wrong.append(f"{name} is the same module as {seen[id(one.module)]}; a block must be there once")
            seen[id(one.module)] = name
        if self.interleaved and len({len(b) for b in numbered}) > 1:
            wrong.append(f"interleaved lists differ in length: {[len(b) for b in numbered]}")
        if wrong:
            listed = "\n  - ".join(wrong)
            raise ValueError(f"{type(self).__name__} does not fit {type(transformer).__name__}:\n  - {listed}")
        if self.interleaved:
            ordered = [block for row in zip(*numbered) for block in row]
        else:
            ordered = [block for row in numbered for block in row]
        return BoundModel(self, transformer, ordered, denoiser)


@dataclass(frozen=True)
class BoundBlock:
    """A block, the facts of its list and its index there."""

    facts: BlockList
    module: nn.Module
    ordinal: int


@dataclass
class BoundModel:
    """A transformer with its blocks in execution order; makes the sites of a run."""

    adapter: ModelAdapter
    transformer: nn.Module
    blocks: list[BoundBlock]
    denoiser: str = ""
    num_samples: int = field(default=1, init=False)

    lengths: dict[str, int] = field(default_factory=dict, init=False)
    """Tokens of each stream of the first block in the forward now, to take concatenated streams apart."""

    def __post_init__(self) -> None:
        self.has_concatenated = any(block.facts.concatenated for block in self.blocks)
        self.keeps_aside = any(block.facts.kept_aside for block in self.blocks)

    def note_lengths(self, streams: State) -> None:
        """Remember the token counts of the streams [B, N, C] that enter the first block."""
        self.lengths = {name: t.shape[1] for name, t in zip(self.blocks[0].facts.streams, streams)}

    def model_site(self) -> Site:
        """The MODEL site: everything."""
        return self._region(Part.MODEL, 0, len(self.blocks))

    def block_site(self, index: int) -> Site:
        """The BLOCK site at an execution index."""
        block = self.blocks[index]
        return Site(Part.BLOCK, block.facts.kind, index, index + 1, block.ordinal, self.denoiser)

    def part_sites(self, index: int, parts: frozenset[Part]) -> list[Site]:
        """The sub-module sites of one block among `parts`, in execution order."""
        block = self.blocks[index]
        return [
            Site(part, block.facts.kind, index, index + 1, block.ordinal, self.denoiser)
            for part in (Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP)
            if part in parts and block.facts.submodule(part) is not None
        ]

    def _region(self, part: Part, start: int, stop: int) -> Site:
        kinds = {block.facts.kind for block in self.blocks[start:stop]}
        return Site(part, kinds.pop() if len(kinds) == 1 else Kind.MIXED, start, stop, denoiser=self.denoiser)

    def sites(self, policy: ReusePolicy[Any]) -> list[Site]:
        """Every site `policy` asks about, outer before inner, in execution order. None at all is an error."""
        n = len(self.blocks)
        sites: list[Site] = []
        name = type(policy).__name__
        if Part.TRUNK in policy.parts or policy.jumps:
            self.check_passable(0, n, name)
        if Part.MODEL in policy.parts:
            sites.append(self.model_site())
        if Part.TRUNK in policy.parts:
            sites.append(self._region(Part.TRUNK, 0, n))
        spans: list[Site] = []
        if Part.SPAN in policy.parts:
            for start, stop in policy.spans(n):
                if not 0 <= start < stop <= n:
                    raise ValueError(
                        f"{name} asks about blocks {start}..{stop}, but "
                        f"{type(self.transformer).__name__} has {n} blocks"
                    )
                self.check_passable(start, stop, name)
                spans.append(self._region(Part.SPAN, start, stop))
        for index in range(n):
            sites += [span for span in spans if span.start == index]
            if Part.BLOCK in policy.parts:
                sites.append(self.block_site(index))
            sites += self.part_sites(index, policy.parts)
        if not sites:
            asked = ", ".join(sorted(part.value for part in policy.parts))
            raise ValueError(
                f"{name} asks about {asked or 'no part'}, and "
                f"{type(self.adapter).__name__} found no such site in {type(self.transformer).__name__}"
            )
        return sites

    def check_passable(self, start: int, stop: int, policy: str) -> None:
        """Raise if blocks start..stop-1 can not be passed over as a whole, because the model keeps outputs of theirs."""
        for block in self.blocks[start:stop] if stop - start > 1 else ():
            if block.facts.kept_aside and not (block.facts.kept_aside == "blocks" and stop == len(self.blocks)):
                raise ValueError(
                    f"{policy} passes over several blocks at once, but {type(self.transformer).__name__} also keeps the "
                    f"outputs of {block.facts.path!r} for later, so what it would read there is wrong. Use a policy that "
                    f"reuses block by block (static: storage='residual')."
                )

    def to_canonical(self, index: int, value: State) -> State:
        """Streams of block `index` as those of any other: a folded axis brought out, [B, F, N, C], and joined streams
        taken apart, so that blocks can be compared."""
        facts = self.blocks[index].facts
        fold = facts.fold
        if facts.concatenated and len(value) == 1:
            parts = dict(zip(facts.concatenated, value[0].split([self.lengths[n] for n in facts.concatenated], dim=1)))
            return tuple(parts[name] for name in self.blocks[0].facts.streams)
        if fold is None:
            return value
        unfolded = tuple(t.unflatten(0, (self.num_samples, -1)) for t in value)
        return unfolded if fold == "frames" else tuple(t.transpose(1, 2) for t in unfolded)

    def from_canonical(self, index: int, value: State) -> State:
        """The inverse of `to_canonical`, in the layout of block `index`."""
        facts = self.blocks[index].facts
        fold = facts.fold
        if facts.concatenated and len(value) > 1:
            parts = dict(zip(self.blocks[0].facts.streams, value))
            return (torch.cat([parts[name] for name in facts.concatenated], dim=1),)
        if fold is None:
            return value
        if fold == "tokens":
            value = tuple(t.transpose(1, 2) for t in value)
        return tuple(t.flatten(0, 1) for t in value)


@dataclass
class LoadedModel:
    """A checkpoint in memory: its pipeline, its adapter, and the sampling defaults that belong to it."""

    name: str
    adapter: ModelAdapter
    pipe: Any
    checkpoint: Checkpoint
    path: Path | str

    @property
    def transformer(self) -> nn.Module:
        """The denoiser."""
        module: nn.Module = getattr(self.pipe, self.adapter.transformer_name)
        return module

    def bind(self) -> BoundModel:
        """The blocks of the denoiser, checked and numbered."""
        return self.adapter.bind(self.transformer)

    def generate(
        self,
        prompt: str,
        seed: int,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **extra: Any,
    ) -> Tensor:
        """One video for one prompt: float32 [T, H, W, 3] in [0, 1], on the CPU. Defaults are the checkpoint's.

        The noise comes from a CPU generator seeded with `seed`, so it is the same on every device.
        """
        own = self.checkpoint
        usual: dict[str, Any] = {
            "num_inference_steps": own.num_steps, "guidance_scale": own.guidance_scale, "height": own.height,
            "width": own.width, "num_frames": own.num_frames, **own.arguments,
        }  # fmt: skip
        asked: dict[str, Any] = {
            "num_inference_steps": num_steps, "guidance_scale": guidance_scale, "height": height, "width": width,
            "num_frames": num_frames, **extra,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        accepted = inspect.signature(type(self.pipe).__call__).parameters
        if "prompt" not in accepted:
            raise ValueError(
                f"{type(self.pipe).__name__} takes no text prompt, but {list(accepted)[1]!r}; call the pipeline itself "
                f"inside fsf.reuse(model.pipe, policy)"
            )
        names = self.adapter.pipeline_arguments
        arguments = {names.get(k, k): v for k, v in {**usual, **asked}.items() if v is not None}
        for name in asked:
            if (own_name := names.get(name, name)) not in accepted:
                raise ValueError(
                    f"{type(self.pipe).__name__} takes no {own_name!r}. {nearest(own_name, list(accepted))}"
                )
        arguments = {"prompt": prompt, **{name: value for name, value in arguments.items() if name in accepted}}
        needed = [n for n, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        missing = [name for name in needed[1:] if name not in arguments]
        if missing:
            raise ValueError(f"{type(self.pipe).__name__} also needs {', '.join(missing)}: give them to generate(...)")
        generator = torch.Generator("cpu").manual_seed(seed)
        result = self.pipe(generator=generator, output_type="pt", **arguments)
        frames: Tensor = result.frames if hasattr(result, "frames") else result.images
        if frames.ndim == 5:
            frames = frames[0]
        return frames.permute(0, 2, 3, 1).to("cpu", torch.float32).clamp(0, 1)


def stacked(latent: Any) -> Tensor:
    """A latent as one tensor; some families take a list with one for each sample."""
    return latent if isinstance(latent, Tensor) else torch.stack(list(latent))


def rows_of(value: Any, rows: slice, axis: int = 0) -> Any:
    """Some samples of an argument: of a tensor along `axis`, of a list its elements, of a dictionary each value's."""
    if isinstance(value, Tensor):
        return value if value.ndim <= axis else value[(*[slice(None)] * axis, rows)]
    if isinstance(value, (list, tuple)):
        return value[rows]
    if isinstance(value, Mapping):
        return {name: rows_of(entry, rows, axis) for name, entry in value.items()}
    return value


def _get_path(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _check_block(facts: BlockList, block: nn.Module) -> list[str]:
    wrong = []
    signature = list(inspect.signature(type(block).forward).parameters)
    for name in facts.streams:
        if name not in signature:
            wrong.append(
                f"{facts.path}: {type(block).__name__}.forward has no argument {name!r}. {nearest(name, signature)}"
            )
    if sorted(facts.returns) != sorted(facts.streams):
        wrong.append(f"{facts.path}: returns {facts.returns} are not the streams {facts.streams}")
    children = [name for name, _ in block.named_modules() if name]
    for child in (facts.attention, facts.cross_attention, facts.mlp):
        if child is not None and _get_path(block, child) is None:
            wrong.append(f"{facts.path}: no sub-module {child!r} in {type(block).__name__}. {nearest(child, children)}")
    return wrong
