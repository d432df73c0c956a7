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
from typing import Any, NamedTuple

from fsframework.run.catalog import GROUPS

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


def policy_groups() -> dict[str, tuple[str, list[tuple[str, Any]]]]:
    """Heading -> (what is common, (name, class) of each policy). A policy that no group names comes last, by itself."""
    import fsframework.policies  # noqa: F401  registers them
    from fsframework.core import POLICIES

    left = {name: cls for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")}
    out: dict[str, tuple[str, list[tuple[str, Any]]]] = {}
    for heading, (common, names) in GROUPS.items():
        found = [(name, left.pop(name)) for name in names if name in left]
        if found:
            out[heading] = (common, found)
    if left:
        out["Others"] = ("", list(left.items()))
    return out


def policy_overview() -> str:
    """One table of every policy by group, made from what the classes state and declare."""
    head = (
        "policy", "reuses", "cache keeps", "values, 28 + 28 blocks", "values, 30 blocks", "decides on", "host reads per step",
        "calibration", "source", "departures",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    notes = []
    for heading, (common, members) in policy_groups().items():
        notes.append(f"- **{heading}.** {common}".rstrip())
        rows.append((f"**{heading}**", *[""] * (len(head) - 1)))
        rows += [_overview_row(name, cls) for name, cls in members]
    # The stylesheet knows the table as the one after this: the site reads no Markdown inside of HTML.
    return "\n".join([*notes, '\n<div class="overview"></div>\n', table(head, rows)])


def _overview_row(name: str, cls: Any) -> tuple[str, ...]:
    paired, single = (_declared(cls, layout) for layout in LAYOUTS.values())
    return (
        f"[`{name}`](#{name})",
        ", ".join(part.value.replace("_", "-") for part in _ordered(paired.parts)),
        paired.storage,
        paired.memory,
        single.memory,
        cls.signal or "-",
        paired.reads if paired.reads == single.reads else f"{paired.reads}, {single.reads}",
        "yes" if cls().calibration() is not None else "no",
        linked(cls.paper) or "-",
        linked(cls.deviations) or "-",
    )


def linked(source: str) -> str:
    """arXiv numbers and repositories as links."""
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"(?<![\w/])(github\.com/[\w.-]+/[\w.-]*\w)", r"[\1](https://\1)", source)


def policies() -> str:
    """Every registered policy: what it does, facts, options."""
    from fsframework.run.catalog import list_policies

    options = {entry.name: entry.options for entry in list_policies()}
    out = []
    for name, policy_class in [member for _, members in policy_groups().values() for member in members]:
        out.append(f"## {name}\n\n`fsframework.policies.{policy_class.__name__}`\n")
        out.append(markdown_of(policy_class.__doc__ or ""))
        out.append(_facts(policy_class))
        rows = [(f"`{o.name}`", readable_type(o.type), f"`{o.default}`", o.doc) for o in options[name]]
        out.append(
            "**Options**\n\n" + table(("option", "type", "default", "meaning"), rows) if rows else "No options.\n"
        )
        if policy_class.published:
            out.append("**Published settings**, which take the place of options left at `None`\n")
            settings = [
                (f"`{model}`" if model else "any other", f"`{option}`", f"`{value!r}`")
                for model, values in policy_class.published.items()
                for option, value in values.items()
            ]
            out.append(table(("model", "option", "value"), settings))
    return "\n".join(out)


def _facts(policy_class: Any) -> str:
    policy = policy_class()
    declared = {words: _declared(policy_class, blocks) for words, blocks in LAYOUTS.items()}
    first = next(iter(declared.values()))
    facts = [
        ("asks about", ", ".join(part.value for part in _ordered(first.parts))),
        ("cache keeps", f"{first.storage}, {policy.depth} deep" + _choosable(policy_class, "storage")),
        ("cached values", "; ".join(f"{d.memory} with {words}" for words, d in declared.items()) + " (per branch)"),
        ("host reads per step", "; ".join(dict.fromkeys(d.reads for d in declared.values()))),
        ("works under autograd", "yes" if policy.differentiable else "no; bypassed when gradients are on"),
    ]
    if policy_class.signal:
        facts.insert(1, ("decides on", policy_class.signal))
    if policy_class.paper:
        facts.insert(0, ("source", linked(policy_class.paper)))
    if policy_class.deviations:
        facts.append(("departures", policy_class.deviations))
    if policy.calibration() is not None:
        facts.append(("calibration", f"`fsf calibrate {_name_of(policy_class)} MODEL`"))
    if policy.eliminate_dead or _choosable(policy_class, "eliminate_dead"):
        facts.append(("dead blocks", f"`eliminate_dead={policy.eliminate_dead}`, an option"))
    return table(("fact", "with default options"), facts)


def _name_of(policy_class: Any) -> str:
    from fsframework.core import POLICIES

    return str(POLICIES.name_of(policy_class))


def _choosable(policy_class: Any, name: str) -> str:
    return " (an option)" if name in {f.name for f in dataclasses.fields(policy_class)} else ""


LAYOUTS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "28 spatial and 28 temporal blocks": (("spatial", "temporal"), 28, "latte-1"),
    "30 joint blocks": (("joint",), 30, "cogvideox-2b"),
}
"""What memory is stated for: kinds of blocks in turns, how many of each, and the checkpoint built like it."""


class Declared(NamedTuple):
    """What a policy declares for one layout."""

    parts: frozenset[Any]
    storage: str
    memory: str
    reads: str


def _ordered(parts: frozenset[Any]) -> list[Any]:
    from fsframework.core import Part

    return [part for part in Part if part in parts]


def _declared(policy_class: Any, layout: tuple[tuple[str, ...], int, str]) -> Declared:
    """By the policy's own count, with default options; with its `example` where those need what a model must bring."""
    try:
        return _declared_by(policy_class(), layout)
    except ValueError:
        return _declared_by(policy_class(**policy_class.example), layout)


def _declared_by(policy: Any, layout: tuple[tuple[str, ...], int, str]) -> Declared:
    from torch import nn

    from fsframework.core import BlockList, Kind, ModelAdapter, Part, Run
    from fsframework.core.bound import BoundBlock, BoundModel

    kinds, count, checkpoint = layout
    # Text is attended to in spatial blocks only, as in Latte, and by joint attention not apart.
    lists = [BlockList(k, Kind(k), cross_attention="attn2" if k == "spatial" else None) for k in kinds]
    blocks = [BoundBlock(facts, nn.Identity(), i) for i in range(count) for facts in lists]
    sites = BoundModel(ModelAdapter(), nn.Identity(), blocks).sites(policy)
    family = {"latte-1": "latte", "cogvideox-2b": "cogvideox"}[checkpoint]
    timesteps = [1000.0 * (50 - i) / 50 for i in range(50)]
    run = Run(
        50, timesteps, sites, facts={"family": family, "checkpoint": checkpoint, "latent_shape": (2, 4, 16, 64, 64)}
    )
    values, kept, reads = policy.num_cached(run), policy.num_kept(run), policy.num_host_reads(run)
    storage = {policy.storage_of(site) for site in sites if not site.part.inside_block and site.part in policy.parts}
    words = " and ".join(sorted(storage or {"output"}))
    if all(site.part is Part.MODEL for site in sites):
        memory = f"{values} prediction" + ("s" if values != 1 else "")
    else:
        memory = str(values)
    if kept:
        memory += f" + {kept} kept"
    return Declared(policy.parts, words if values else "nothing", memory, f"at most {reads}" if reads else "0")


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
                (f"`{f.name}.{g.name}`", type_of(g), f"`{default_of(g)}`", _doc_of(g.name, section_class, docs))
                for g in dataclasses.fields(section_class)
            ]
            heading = f"## {f.name}\n\n{markdown_of(section_class.__doc__ or '')}\n"
            sections.append(heading + table(("key", "type", "default", "meaning"), rows))
        else:
            top.append((f"`{f.name}`", type_of(f), f"`{default_of(f)}`", doc))
    first = "## Top level\n\n" + table(("key", "type", "default", "meaning"), top)
    return "\n".join([first, *sections])


def _doc_of(name: str, section_class: Any, docs: dict[str, dict[str, str]]) -> str:
    """The words of a key: those of the class that states it, which may be one below."""
    return next(docs[c.__name__][name] for c in section_class.__mro__ if name in docs.get(c.__name__, {}))


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

    from fsframework.cli.parser import build_parser

    parser = build_parser()
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
    "policy_overview": policy_overview,
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
