"""The parts of the reference that are made from the code when the site is built, so that they can not differ from it.

A page holds a marker such as `<!-- generated: policies -->`, which is replaced. Run by mkdocs (`hooks:` in mkdocs.yml);
`python docs/gen_reference.py policies` prints one part.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
PICTURE = re.compile(r"^<!-- picture: (\S+) \| (.+) -->$", re.MULTILINE)
"""A picture that is made by a run: it is shown once it is there."""


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """mkdocs calls this for every page."""
    return fill(markdown)


def fill(markdown: str) -> str:
    """Replace every marker by what it names. Paths of pictures are relative to docs/."""
    markdown = PICTURE.sub(lambda p: f"![{p[2]}]({p[1]})" if (DOCS / p[1]).is_file() else "", markdown)
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


# Policies.


def policies() -> str:
    """Every registered policy: what it does, facts, options."""
    import fsframework.policies  # noqa: F401  registers them
    from fsframework.core import POLICIES
    from fsframework.run.catalog import list_policies

    options = {entry.name: entry.options for entry in list_policies()}
    out = []
    for name, policy_class in POLICIES.items():
        if not policy_class.__module__.startswith("fsframework."):
            continue
        out.append(f"## {name}\n\n`fsframework.policies.{policy_class.__name__}`\n")
        out.append(markdown_of(policy_class.__doc__ or ""))
        out.append(_facts(policy_class))
        rows = [(f"`{o.name}`", readable_type(o.type), f"`{o.default}`", o.doc) for o in options[name]]
        out.append(
            "**Options**\n\n" + table(("option", "type", "default", "meaning"), rows) if rows else "No options.\n"
        )
    return "\n".join(out)


def _facts(policy_class: Any) -> str:
    policy = policy_class()
    facts = [
        ("asks about", ", ".join(sorted(part.value for part in policy.parts))),
        ("cache keeps", f"{policy.storage}, {policy.depth} deep" + _choosable(policy_class, "storage")),
        ("cached values", _num_cached(policy)),
        ("host reads per step", f"at most {policy.host_reads_per_step}" if policy.host_reads_per_step else "0"),
        ("works under autograd", "yes" if policy.differentiable else "no; bypassed when gradients are on"),
    ]
    if policy.eliminate_dead or _choosable(policy_class, "eliminate_dead"):
        facts.append(("dead blocks", f"`eliminate_dead={policy.eliminate_dead}`, an option"))
    return table(("fact", "with default options"), facts)


def _choosable(policy_class: Any, name: str) -> str:
    return " (an option)" if name in {f.name for f in dataclasses.fields(policy_class)} else ""


def _num_cached(policy: Any) -> str:
    """How many values a branch caches on two layouts, by the policy's own count."""
    from torch import nn

    from fsframework.core import BlockList, Kind, ModelAdapter, Run
    from fsframework.core.bound import BoundBlock, BoundModel

    spatial = BlockList("spatial", Kind.SPATIAL, cross_attention="attn2")
    temporal, joint = BlockList("temporal", Kind.TEMPORAL), BlockList("joint", Kind.JOINT)
    paired = [BoundBlock(facts, nn.Identity(), i) for i in range(28) for facts in (spatial, temporal)]
    single = [BoundBlock(joint, nn.Identity(), i) for i in range(30)]
    found = []
    for words, blocks in (("28 spatial and 28 temporal blocks", paired), ("30 joint blocks", single)):
        sites = BoundModel(ModelAdapter(), nn.Identity(), blocks).sites(policy)
        found.append(f"{policy.num_cached(Run(50, [float(i) for i in range(50)], sites))} with {words}")
    return "; ".join(found) + " (per guidance branch)"


# Config.


def config() -> str:
    """Every section and key of the run config."""
    from fsframework.config import schema

    docs = field_docs(Path(schema.__file__).read_text(encoding="utf-8"))
    top: list[tuple[str, ...]] = []
    sections: list[str] = []
    for f in dataclasses.fields(schema.RunConfig):
        doc = docs["RunConfig"].get(f.name, "")
        if dataclasses.is_dataclass(f.default_factory):
            section_class: Any = f.default_factory
            rows = [
                (f"`{f.name}.{g.name}`", type_of(g), f"`{default_of(g)}`", docs[section_class.__name__][g.name])
                for g in dataclasses.fields(section_class)
            ]
            heading = f"## {f.name}\n\n{markdown_of(section_class.__doc__ or '')}\n"
            sections.append(heading + table(("key", "type", "default", "meaning"), rows))
        else:
            top.append((f"`{f.name}`", type_of(f), f"`{default_of(f)}`", doc))
    first = "## Top level\n\n" + table(("key", "type", "default", "meaning"), top)
    return "\n".join([first, *sections])


def type_of(f: Any) -> str:
    """The annotation, readable: `int or null`."""
    return readable_type(f.type.replace("None", "null"))


def readable_type(annotation: str) -> str:
    """`float | int` as two pieces of code: a bar would end the table's cell."""
    return " or ".join(f"`{part}`" for part in annotation.split(" | "))


def default_of(f: Any) -> str:
    """The default as it would stand in YAML."""
    value = f.default if f.default is not dataclasses.MISSING else f.default_factory()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return str(value)


def field_docs(source: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the string below it."""
    out: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        out[node.name] = {}
        for statement, following in zip(node.body, [*node.body[1:], None]):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                out[node.name][statement.target.id] = ""
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    out[node.name][statement.target.id] = " ".join(str(following.value.value).split())
    return out


# Smaller parts.


def columns() -> str:
    """The columns of a trace."""
    from fsframework.core.trace import COLUMNS

    return table(("column", "meaning"), [(f"`{name}`", meaning) for name, meaning in COLUMNS.items()])


def decisions() -> str:
    """Names and letters of decisions."""
    from fsframework.core.trace import DECISIONS, LETTERS

    return table(("decision", "letter"), [(f"`{name}`", f"`{letter}`") for name, letter in zip(DECISIONS, LETTERS)])


def parts() -> str:
    """The parts a policy may ask about."""
    from fsframework.core import Part
    from fsframework.core import site as module

    docs = _enum_docs(Path(module.__file__).read_text(encoding="utf-8"), "Part")
    return table(("part", "covers"), [(f"`Part.{part.name}`", docs[part.name]) for part in Part])


def metrics() -> str:
    """The quality metrics."""
    from fsframework.run.catalog import list_metrics

    rows = [
        (f"`{m.name}`", m.unit or "-", m.better, "yes" if m.needs_reference else "no", m.description)
        for m in list_metrics()
    ]
    return table(("name", "unit", "better", "needs the reference", "what"), rows)


def families() -> str:
    """Every registered family: its classes, its blocks as they run, and how a step calls it."""
    import fsframework.models  # noqa: F401  registers them
    from fsframework.core import ADAPTERS

    rows = []
    for name, adapter in ADAPTERS.items():
        if not adapter.__module__.startswith("fsframework."):
            continue
        lists = [f"`{facts.path}` ({facts.kind.value})" for facts in adapter.blocks]
        order = " and ".join(lists) + " in turns" if adapter.interleaved else ", then ".join(lists)
        guidance = {"batched": "one batch", "sequential": "a call per branch", "none": "one call"}[adapter.guidance]
        if adapter.later_transformers:
            guidance += "; two denoisers where the pipeline has them"
        if adapter.extra_calls:
            guidance += f"; also {', '.join(adapter.extra_calls)}"
        pipelines = ", ".join(f"`{p.removesuffix('Pipeline')}`" for p in adapter.pipeline_classes)
        classes = ", ".join(f"`{c}`" for c in adapter.transformer_classes)
        rows.append((f"`{name}`", order, guidance, classes, pipelines))
    return table(("family", "blocks as they run", "guidance", "transformer", "pipelines (…Pipeline)"), rows)


def models() -> str:
    """The checkpoints with a name."""
    from fsframework.models.loading import checkpoints

    rows = []
    for name, (_, c) in sorted(checkpoints().items()):
        frames = f", {c.num_frames} frames" if c.num_frames else ""
        size = f"{c.width} x {c.height}" if c.width else "the pipeline's size"
        sampling = f"{size}{frames}, {c.num_steps} steps, guidance {c.guidance_scale:g}"
        source = f"`{c.source}`" if "/" in c.source else "in the package"
        rows.append((f"`{name}`", source, sampling, c.dtype))
    return table(("name", "source", "sampling", "dtype on a GPU"), rows)


def commands() -> str:
    """The help texts of `fsf` and its commands."""
    import argparse

    from fsframework.cli import _parser

    parser = _parser()
    out = [_help("fsf", parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            out += [_help(f"fsf {name}", sub) for name, sub in action.choices.items()]
    return "\n".join(out)


def _help(name: str, parser: Any) -> str:
    import os

    os.environ["COLUMNS"] = "110"
    return f"## {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n"


def _enum_docs(source: str, name: str) -> dict[str, str]:
    out: dict[str, str] = {}
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
    for statement, following in zip(node.body, node.body[1:]):
        if isinstance(statement, ast.Assign) and isinstance(following, ast.Expr):
            assert isinstance(statement.targets[0], ast.Name)
            assert isinstance(following.value, ast.Constant)
            out[statement.targets[0].id] = " ".join(str(following.value.value).split())
    return out


# Markdown.


def markdown_of(docstring: str) -> str:
    """A docstring as Markdown for a page in reference/: its code blocks are already indented, its paths become links."""
    text = inspect.cleandoc(docstring).replace("docs/footguns.md", "[Footguns](../footguns.md)")
    return re.sub(r"(?m)::$", ":", text) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; `|` inside cells is escaped."""

    def line(cells: Iterator[str] | tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "policies": policies,
    "config": config,
    "columns": columns,
    "decisions": decisions,
    "parts": parts,
    "metrics": metrics,
    "families": families,
    "models": models,
    "commands": commands,
}
"""Name in a marker -> what makes it."""

if __name__ == "__main__":
    print(PARTS[sys.argv[1]]())
