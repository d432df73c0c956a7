"""Drafts the adapter of a model that has none: what can be read off its modules, signatures and source, ready to paste.

A draft is a proposal. What inspection can not know (checkpoints, which half of a guidance batch is which, a folded batch
axis) is marked; `bind` and the contract suite check the rest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fsframework.core.source import UNREADABLE, arguments_of, returned, source_of

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"cross|attn2", re.IGNORECASE)
_MLP_NAME = re.compile(r"^(ff|ffn|mlp|feed_?forward|img_mlp|ff_i)$", re.IGNORECASE)
_MLP_CLASS = re.compile(r"FeedForward|SwiGLU|Mlp", re.IGNORECASE)
_TIME = re.compile(r"^(timesteps?|t|sigma)$")
_ROTARY = re.compile(r"rotary|rope|freqs")
_BATCHED = re.compile(
    r"hidden_states|^encoder_|^(context|text|txt|y|caption)$|mask|pooled|guidance$|embed|projection|feats|labels?$|latents|"
    r"^(\w+_)?(timestep|sigma)$|_shapes$|_size$|_coords|^style$|^added_cond"
)
_NOT_BATCHED = re.compile(r"controlnet|indices|_fixed_|^patch_|_patch_|^use_|(?<!cond)_kwargs$")
_NEGATIVE = re.compile(r"neg|uncond|null|empty")


@dataclass(frozen=True)
class FoundList:
    """A list of blocks as inspection found it."""

    path: str
    num_blocks: int
    block_class: str
    signature: str
    streams: tuple[str, ...]
    returns: tuple[str, ...]
    attention: str | None
    cross_attention: str | None
    mlp: str | None
    token_inputs: tuple[str, ...]
    remark: str | None = None
    """What is uncertain about streams and returns; None if they were read off the source by name."""

    def code(self, kind: str) -> str:
        """The `BlockList` expression."""
        parts = [repr(self.path), f"Kind.{kind}"]
        if self.streams != ("hidden_states",):
            parts.append(f"streams={self.streams!r}")
        if self.returns != ("hidden_states",):
            parts.append(f"returns={self.returns!r}")
        for name, usual in (("attention", "attn1"), ("cross_attention", None), ("mlp", "ff")):
            value = getattr(self, name)
            if value != usual:
                parts.append(f"{name}={value!r}")
        if self.token_inputs and len(self.streams) > 1:
            parts.append(f"token_inputs={self.token_inputs!r}")
        return f"BlockList({', '.join(parts)})".replace("'", '"')


def find_block_lists(transformer: nn.Module) -> list[FoundList]:
    """Lists of blocks with attention, in the order the model's forward comes to them; nested lists are left out."""
    transformer = _uncompiled(transformer)
    lists: dict[str, nn.ModuleList] = {}
    for path, module in transformer.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside and _has_attention(module[0]):
            lists[path] = module
    trunk = {path: module for path, module in lists.items() if "." not in path} or lists
    source = source_of(type(transformer).forward)

    def place(path: str) -> int:
        at = re.search(rf"self\.{re.escape(path)}\b", source)
        return at.start() if at else len(source)

    return [_describe(path, trunk[path]) for path in sorted(trunk, key=place)]


def draft_adapter(transformer: nn.Module, pipe: Any = None) -> str:
    """The file `models/<family>.py` for a transformer and, if there is one, its pipeline; ready to paste.

    Blocks, signatures, streams and guidance are read off the classes; what has to be checked by hand says so. The draft
    binds to the transformer as it is, wherever streams and timestep could be read.
    """
    transformer = _uncompiled(transformer)
    name = type(transformer).__name__
    family = re.sub(r"(Transformer)?(\dDModel|Model)?$", "", name) or name
    arguments = arguments_of(type(transformer).forward)
    held = "transformer"
    lines = [f'"""{family}: one sentence on the family, with its paper."""', ""]
    lines += ["from fsframework.core import ADAPTERS, BlockList, Kind, ModelAdapter", "", ""]
    lines += [f'@ADAPTERS.register("{family.lower()}")', f"class {family}(ModelAdapter):"]
    lines += [f'    """`{name}`. What is particular about it."""', ""]
    lines += [f'    transformer_classes = ("{name}",)']
    if pipe is not None:
        lines += [f'    pipeline_classes = ("{type(pipe).__name__}",)']
        components = getattr(pipe, "components", {})
        held = next((n for n, m in components.items() if _uncompiled(m) is transformer), held)
        if held != "transformer":
            lines += [f'    transformer_name = "{held}"']
    module = type(transformer).__module__
    if not module.startswith("diffusers."):
        lines += [f'    pipeline_module = "{module}"']
    lines += _blocks(transformer)
    lines += _guidance(pipe, held)
    lines += _inputs(arguments)
    lines += [f"    # forward({', '.join(arguments)})"]
    return "\n".join(lines) + "\n"


def _blocks(transformer: nn.Module) -> list[str]:
    """The block lists as lines of the adapter; of each kind one, the others as comments since `bind` would refuse two."""
    lists = find_block_lists(transformer)
    if not lists:
        held = [n for n, m in transformer.named_modules() if isinstance(m, nn.ModuleList)]
        return [f"    blocks = ()  # no list of blocks with attention was found; its lists are {held}"]
    kinds = [_kind(found, lists) for found in lists]
    kept: dict[str, FoundList] = {}
    for found, kind in zip(lists, kinds):
        if kind not in kept or found.num_blocks > kept[kind].num_blocks:
            kept[kind] = found
    lines = ["    blocks = ("]
    for found, kind in zip(lists, kinds):
        lines += [f"        # {found.num_blocks} x {found.block_class}{found.signature}"]
        remark = f"  # check: {found.remark}" if found.remark else ""
        if kept[kind] is found:
            lines += [f"        {found.code(kind)},{remark}"]
        else:
            lines += [f"        # also found: {found.code(kind)}, to add under a kind of its own{remark}"]
    lines += ["    )"]
    zipped = re.search(r"zip\(([^()]*)\)", source_of(type(transformer).forward))
    turns = [f for f in kept.values() if zipped and re.search(rf"self\.{re.escape(f.path)}\b", zipped.group(1))]
    if len(kept) > 1 and len(turns) == len(kept) and len({f.num_blocks for f in turns}) == 1:
        lines += ["    interleaved = True"]
    return lines


def _inputs(arguments: Sequence[str]) -> list[str]:
    """The names of the transformer's inputs as lines of the adapter."""
    latent = arguments[0] if arguments else "hidden_states"
    likely = [a for a in arguments if _TIME.search(a)] or [a for a in arguments if a.startswith("timestep")]
    timestep = likely[0] if likely else "timestep"
    lines = []
    if latent != "hidden_states":
        lines += [f'    latent_input = "{latent}"']
    if timestep not in arguments:
        lines += [f'    timestep_input = "{timestep}"  # check: which argument is the timestep']
    elif timestep != "timestep":
        lines += [f'    timestep_input = "{timestep}"']
    batched = tuple(
        a
        for a in arguments
        if a in (latent, timestep) or (_BATCHED.search(a) and not _NOT_BATCHED.search(a) and not _ROTARY.search(a))
    )
    shown = f"{batched!r}".replace("'", '"')
    return [*lines, f"    batched_inputs = {shown}  # check: what has a row per sample"]


def _describe(path: str, blocks: nn.ModuleList) -> FoundList:
    block = _uncompiled(blocks[0])
    names = arguments_of(type(block).forward)
    found = returned(block)
    gives = found.names or tuple(names[:1])
    streams = tuple(sorted(gives, key=names.index))
    prefix, body = "", block
    while not any(_is_attention(n, m) for n, m in body.named_children()):
        inner = next((n for n, m in body.named_children() if _has_attention(m)), None)
        if inner is None:
            break
        prefix, body = f"{prefix}{inner}.", body.get_submodule(inner)
    children = dict(body.named_children())
    attention = [n for n, m in children.items() if _is_attention(n, m)]
    cross = next((n for n in attention if _CROSS.search(n)), None) if len(streams) == 1 else None
    own = next((n for n in attention if n != cross), None)
    mlp = next((n for n, m in children.items() if _is_mlp(n, m)), None)
    rotary = tuple(n for n in names if _ROTARY.search(n))
    own, cross, mlp = (None if n is None else prefix + n for n in (own, cross, mlp))
    remark = found.remark if gives else UNREADABLE
    signature = f"({', '.join(names)})"
    return FoundList(
        path, len(blocks), type(block).__name__, signature, streams, gives, own, cross, mlp, rotary, remark
    )


def _kind(found: FoundList, lists: list[FoundList]) -> str:
    if "temporal" in found.path:
        return "TEMPORAL"
    if re.search(r"control|vace", found.path):
        return "CONTROL"
    if any("temporal" in other.path for other in lists):
        return "SPATIAL"
    return "SINGLE" if "single" in found.path else "JOINT"


def _guidance(pipe: Any, held: str) -> list[str]:
    """How the pipeline's source guides, as lines of the adapter."""
    source = _loop(pipe, held) if pipe is not None else ""
    if not source:
        return ['    guidance = "batched"  # or "sequential", "none": how your loop calls the model']
    latents = r"\w*latents?\w*"
    if re.search(rf"cat\(\[?\(?\s*\[?{latents}\]?\s*\*\s*2|cat\(\[({latents}), \1\]|{latents}\.repeat\(2\b", source):
        first, second = _batch_order(source)
        return [f'    batch_order = ("{first}", "{second}")  # check: which half of the batch is which']
    calls = len(re.findall(_model_call(held), source))
    if calls > 1 or re.search(r"in self\.guider|self\.guider\.prepare_inputs\(", source):
        return [
            '    guidance = "sequential"',
            '    batch_order = ("cond", "uncond")  # check: which is called first',
        ]
    return ['    guidance = "none"  # check: one call of the model in a step']


def _batch_order(source: str) -> tuple[str, str]:
    """From the first pair that is joined of which one is the negative."""
    for pair in re.finditer(r"cat\(\s*\[\s*(\w+),\s*(\w+)\s*\]|= (\w*embeds\w*) \+ (\w*embeds\w*)", source):
        first, second = (name for name in pair.groups() if name)
        negative = bool(_NEGATIVE.search(first)), bool(_NEGATIVE.search(second))
        if negative in ((True, False), (False, True)):
            return ("uncond", "cond") if negative[0] else ("cond", "uncond")
    return "uncond", "cond"


def _loop(pipe: Any, held: str) -> str:
    """The source of the pipeline's call and of those of its methods that call the model from there."""
    source = source_of(type(pipe).__call__)
    for name in dict.fromkeys(re.findall(r"self\.(\w+)\(", source)):
        method = getattr(type(pipe), name, None)
        if inspect.isfunction(method) and re.search(_model_call(held), text := source_of(method)):
            source += text
    return source


def _model_call(held: str) -> str:
    return rf"(?:self\.{re.escape(held)}|current_model)\("


def _uncompiled(module: Any) -> Any:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _has_attention(block: nn.Module) -> bool:
    return any(_is_attention(path.rpartition(".")[2], module) for path, module in block.named_modules() if path)


def _is_attention(name: str, module: nn.Module) -> bool:
    norm = "norm" in name.lower() or "norm" in type(module).__name__.lower()
    return not norm and bool(_ATTENTION.search(name) or _ATTENTION.search(type(module).__name__))


def _is_mlp(name: str, module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and bool(
        _MLP_NAME.search(name) or _MLP_CLASS.search(type(module).__name__)
    )
