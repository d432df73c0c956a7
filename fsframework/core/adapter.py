"""`ModelAdapter`: the facts about a DiT family. Where reuse can happen, never whether."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fsframework.core.bound import BoundBlock, BoundModel
from fsframework.core.prompt import prompt_norm
from fsframework.core.registry import nearest
from fsframework.core.samples import stacked
from fsframework.core.site import Branch, Kind, Part

if TYPE_CHECKING:
    from fsframework.core.checkpoint import Checkpoint

Tokens = Literal["video", "text+video", "video+text"]
"""What a sub-module's input holds along its token axis, in order."""

Gate = Callable[[nn.Module, Mapping[str, Any]], Sequence[Tensor | None] | None]
"""(block, its arguments by name) -> one factor per tensor that the sub-module returns; see `ModelAdapter.gate`."""

Probe = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""(module, its arguments by name) -> a tensor; the module is the transformer or its first block."""


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
    frame_axis: ClassVar[int | None] = None
    """Which axis of the latent counts frames; None for images."""
    frame_patch: ClassVar[str] = ""
    """The transformer's config name for how many frames share a token (of several numbers the first); empty: one does."""
    text_inputs: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    """Arguments of the transformer's forward that hold the prompt's embedding: tensors, and lists of them."""
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

    gates: ClassVar[Mapping[Part, Gate]] = {}
    """What `gate` gives, per sub-module part. None of them may run the sub-module; running a small modulation layer once
    more is fine. Most families share a form that `models/_modulation.py` has."""
    probes: ClassVar[Mapping[str, Probe]] = {}
    """Probes made from the transformer and its arguments: they can be asked for anywhere in a forward. `latent` and
    `prompt_norm` are there without being stated."""
    block_probes: ClassVar[Mapping[str, Probe]] = {}
    """Probes made from the first block and its arguments: they can be asked for once execution has come to that block, so
    in `decide` at TRUNK, and not in `begin_forward`. Two names mean the same in every family that has them:

    - `temb`: the time embedding vector that blocks are modulated with, [B, D] ([B, N, D] where tokens have timesteps of
      their own). It depends on the timestep and on whatever else the model adds to it (guidance scale, pooled text).
    - `modulated`: norm1(x) * (1 + scale) + shift of the first block's video stream, as its self-attention gets it,
      [B', N, C] (TeaCache, arXiv:2411.19108).

    `temb` may be in either table: in `probes` where it has to be made anew from the timestep."""

    part_probes: ClassVar[Mapping[str, Probe]] = {}
    """Probes made from the sub-module being visited and its arguments: asked for in `decide` or `observe` at its site.

    - `attention_map`: the weights of a cross-attention, [B, N, L], mean over its heads, worked out once more from queries
      and keys (fused attention gives none). Costs two projections and, at worst, the weights of one head at a time."""

    def gate(self, part: Part, block: nn.Module, arguments: Mapping[str, Any]) -> Sequence[Tensor | None] | None:
        """The factors a block multiplies a sub-module's outputs by, one per returned tensor; None where there is none.

        A block computes x + gate * sub_module(...). Each factor broadcasts to the tensor it is for. `arguments` are the
        block's, by name. Needed only by policies that cache after the gate. Families state `gates`.

        Raises:
            ValueError: no such factor is stated, or none exists (a norm or a projection lies between output and sum).
        """
        if part in self.gates:
            return self.gates[part](block, arguments)
        raise ValueError(
            f"{type(self).__name__} does not state its gates for {part.value!r}, so post-gate caching is not possible "
            f"there; use gate='pre' or state {type(self).__name__}.gates"
        )

    def probe(
        self, name: str, transformer: nn.Module, arguments: Mapping[str, Any], block: Mapping[str, Any]
    ) -> Tensor:
        """A tensor of the current forward by name, computed when asked: `latent`, `prompt_norm` (`core/prompt.py`), `probes`
        and `block_probes`.

        `arguments` are the model's, `block` those of the block execution has come to (empty before the first), by name:
        a block's modulated input, say, needs no second run of the embedding. `block_probes` are about the first block, so
        ask for them before the second.

        Raises:
            ValueError: the family has no such probe, or it is a block's and no block has been come to.
        """
        if name == "latent":
            value: Tensor = stacked(arguments[self.latent_input])
            return value
        if name == "prompt_norm":
            device = stacked(arguments[self.latent_input]).device
            return prompt_norm([arguments.get(text) for text in self.text_inputs], device)
        if name in self.probes:
            return self.probes[name](transformer, arguments)
        if name in self.block_probes:
            if not block:
                raise ValueError(
                    f"{type(self).__name__} makes the probe {name!r} from the first block's arguments; ask for it in "
                    f"`decide` at the first site inside the model (TRUNK, or the first block), not in `begin_forward`"
                )
            return self.block_probes[name](_get_path(transformer, self.blocks[0].path)[0], block)
        known = ["latent", "prompt_norm", *self.probes, *self.block_probes]
        raise ValueError(f"{type(self).__name__} has no probe {name!r}. {nearest(name, known)}")

    def num_frames(self, transformer: nn.Module, arguments: Mapping[str, Any]) -> int:
        """How many latent frames the video tokens come from, given the transformer's arguments by name; 1 for images.

        A joint block's video stream [B, N, C] is then [B, num_frames, N / num_frames, C]: frames are slowest. Frames that
        share a token count as one. Families state `frame_axis` and `frame_patch`.

        Raises:
            ValueError: the latent looks like a video and the family does not state its frames.
        """
        shape = stacked(arguments[self.latent_input]).shape
        if self.frame_axis is None:
            if len(shape) == 5 and shape[2] > 1:
                raise ValueError(
                    f"{type(self).__name__} does not state how many frames its tokens come from; state "
                    f"{type(self).__name__}.frame_axis or implement num_frames"
                )
            return 1
        config: Any = transformer.config
        patch: int | Sequence[int] | None = config[self.frame_patch] if self.frame_patch else 1
        if isinstance(patch, Sequence):
            patch = patch[0]
        return -(-shape[self.frame_axis] // (patch or 1))

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


def _get_path(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _check_block(facts: BlockList, block: nn.Module) -> list[str]:
    if hasattr(block, "_orig_mod"):
        return [
            f"{facts.path}: a block was replaced by torch.compile(block); compile blocks where they are, with "
            f"block.compile(), so that the model keeps its modules' names"
        ]
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
