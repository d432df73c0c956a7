"""Drafts the adapter of a model that has none: what can be read off its modules, signatures and source, ready to paste.

A draft is a proposal. What inspection can not know (checkpoints, which half of a guidance batch is which, a folded batch
axis) is marked; `bind` and the contract suite check the rest.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Any

from torch import nn

_TEXT = ("encoder_hidden_states", "context", "text", "y")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"cross|attn2", re.IGNORECASE)
_MLP = re.compile(r"^(ff|ffn|mlp|feed_?forward|img_mlp|ff_i)$|FeedForward|SwiGLU|Mlp", re.IGNORECASE)
_TIME = re.compile(r"^(timesteps?|t|sigma)$")
_ROTARY = re.compile(r"rotary|rope|freqs")


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
    lists: dict[str, nn.ModuleList] = {}
    for path, module in transformer.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside and _has_attention(module[0]):
            lists[path] = module
    trunk = {path: module for path, module in lists.items() if "." not in path} or lists
    source = _source(type(transformer).forward)

    def place(path: str) -> int:
        at = source.find(f"self.{path}")
        return at if at >= 0 else len(source)

    return [_describe(path, trunk[path]) for path in sorted(trunk, key=place)]


def draft_adapter(transformer: nn.Module, pipe: Any = None) -> str:
    """The file `models/<family>.py` for a transformer and, if there is one, its pipeline; ready to paste.

    Blocks, signatures, streams and guidance are read off the classes; what has to be checked by hand says so.
    """
    name = type(transformer).__name__
    lists = find_block_lists(transformer)
    source = _source(type(transformer).forward)
    family = re.sub(r"(Transformer)?(\dDModel|Model)?$", "", name) or name
    arguments = list(inspect.signature(type(transformer).forward).parameters)[1:]
    latent = arguments[0] if arguments else "hidden_states"
    timestep = next((a for a in arguments if _TIME.search(a)), "timestep")
    batched = tuple(a for a in arguments if a in (latent, timestep) or a.startswith("encoder_") or a in _TEXT)
    interleaved = len(lists) > 1 and re.search(r"zip\(\s*self\.", source) is not None
    lines = [f'"""{family}: one sentence on the family, with its paper."""', ""]
    lines += ["from fsframework.core import ADAPTERS, BlockList, Kind, ModelAdapter", "", ""]
    lines += [f'@ADAPTERS.register("{family.lower()}")', f"class {family}(ModelAdapter):"]
    lines += [f'    """`{name}`. What is particular about it."""', ""]
    lines += [f'    transformer_classes = ("{name}",)']
    if pipe is not None:
        lines += [f'    pipeline_classes = ("{type(pipe).__name__}",)']
        held = next((n for n, m in getattr(pipe, "components", {}).items() if m is transformer), "transformer")
        if held != "transformer":
            lines += [f'    transformer_name = "{held}"']
    module = type(transformer).__module__
    if not module.startswith("diffusers."):
        lines += [f'    pipeline_module = "{module}"']
    if lists:
        lines += ["    blocks = ("]
        for found in lists:
            lines += [f"        # {found.num_blocks} x {found.block_class}{found.signature}"]
            lines += [f"        {found.code(_kind(found, lists))},"]
        lines += ["    )"]
    else:
        held_lists = [n for n, m in transformer.named_modules() if isinstance(m, nn.ModuleList)]
        lines += [f"    blocks = ()  # no list of blocks with attention was found; its lists are {held_lists}"]
    if interleaved:
        lines += ["    interleaved = True"]
    lines += _guidance(pipe)
    if latent != "hidden_states":
        lines += [f'    latent_input = "{latent}"']
    if timestep != "timestep":
        lines += [f'    timestep_input = "{timestep}"']
    if set(batched) != {"hidden_states", "encoder_hidden_states", "timestep"}:
        lines += [f"    batched_inputs = {batched!r}".replace("'", '"')]
    lines += [f"    # forward({', '.join(arguments)})"]
    return "\n".join(lines) + "\n"


def _describe(path: str, blocks: nn.ModuleList) -> FoundList:
    block = blocks[0]
    forward = type(block).forward
    signature = inspect.signature(forward)
    names = [n for n in signature.parameters if n != "self"]
    returned = _returned(_source(forward), names) or names[:1]
    streams = tuple(sorted(returned, key=names.index))
    children = dict(block.named_children())
    attention = [n for n, m in children.items() if _is_attention(n, m)]
    cross = next((n for n in attention if _CROSS.search(n)), None) if len(streams) == 1 else None
    own = next((n for n in attention if n != cross), None)
    mlp = next((n for n, m in children.items() if _is_mlp(n, m)), None)
    plain = ", ".join(str(n) for n in names)
    rotary = tuple(n for n in names if _ROTARY.search(n))
    return FoundList(
        path, len(blocks), type(block).__name__, f"({plain})", streams, tuple(returned), own, cross, mlp, rotary
    )


def _returned(source: str, arguments: list[str]) -> list[str]:
    """The arguments that the elements of a function's last return statement are made of."""
    if not source:
        return []
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return) and node.value]
    if not statements:
        return []
    value = max(statements, key=lambda node: node.lineno).value
    assert value is not None
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    found = []
    for part in parts:
        names = [node.id for node in ast.walk(part) if isinstance(node, ast.Name) and node.id in arguments]
        found += [name for name in names[:1] if name not in found]
    return found


def _kind(found: FoundList, lists: list[FoundList]) -> str:
    if "temporal" in found.path:
        return "TEMPORAL"
    if any("temporal" in other.path for other in lists):
        return "SPATIAL"
    return "SINGLE" if "single" in found.path else "JOINT"


def _guidance(pipe: Any) -> list[str]:
    """How the pipeline's source guides, as lines of the adapter."""
    source = _source(type(pipe).__call__) if pipe is not None else ""
    if not source:
        return ['    guidance = "batched"  # or "sequential", "none": how your loop calls the model']
    if re.search(r"cat\(\[?\(?\s*\[?latents?\]?\s*\*\s*2|cat\(\[latents?, latents?\]", source):
        order = re.search(r"cat\(\s*\[\s*(negative_)?prompt_embeds", source)
        first = ("uncond", "cond") if order is None or order.group(1) else ("cond", "uncond")
        return [f'    batch_order = ("{first[0]}", "{first[1]}")  # check: which half of the batch is which']
    calls = len(re.findall(r"(?:self\.transformer|current_model)\(", source))
    if calls > 1:
        return [
            '    guidance = "sequential"',
            '    batch_order = ("cond", "uncond")  # check: which is called first',
        ]
    return ['    guidance = "none"  # check: one call of the model in a step']


def _has_attention(block: nn.Module) -> bool:
    return any(_is_attention(path.rpartition(".")[2], module) for path, module in block.named_modules() if path)


def _is_attention(name: str, module: nn.Module) -> bool:
    norm = "norm" in name.lower() or "norm" in type(module).__name__.lower()
    return not norm and bool(_ATTENTION.search(name) or _ATTENTION.search(type(module).__name__))


def _is_mlp(name: str, module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and bool(_MLP.search(name) or _MLP.search(type(module).__name__))


def _source(function: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    except (OSError, TypeError):
        return ""
