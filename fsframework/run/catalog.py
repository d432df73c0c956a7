"""What there is to choose from, read from the source files without importing torch, so that `fsf list` answers at once.

The registries are the truth; a test compares.
"""

from __future__ import annotations

import ast
import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsframework.config.schema import ARTIFACT

PACKAGE = Path(__file__).resolve().parents[1]

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Steps and tables": (
        "What is reused when is known before the first step, from its number, its timestep or a table measured beforehand. "
        "Nothing is read back from the device.",
        (
            "full", "static", "fora", "pab", "delta_dit", "blockdance", "tgate", "fastercache", "magcache", "smoothcache",
            "lemica", "plan", "l2c", "harmonica",
        ),
    ),
    "Adaptive within the step": (
        "The decision rests on something computed in the same step, so the host waits for the device.",
        ("teacache", "first_block_cache", "dbcache", "dbprune", "easycache"),
    ),
    "Adaptive, a step behind": (
        "The decision rests on what earlier steps measured; the copy to the host has a step's time to arrive.",
        ("foresight", "foresight_release", "adacache", "bwcache", "predictor"),
    ),
    "Forecasts": ("In place of an old value stands one extrapolated from several.", ("taylorseer", "forecast")),
    "Tokens": ("Some tokens are computed, the others are reused.", ("toca", "duca")),
    "Compositions": ("Policies made of policies.", ("combine",)),
}  # fmt: skip
"""Heading -> (what they have in common, policies in the order they are shown)."""


@dataclass(frozen=True)
class Option:
    """One field of a policy."""

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class PolicyEntry:
    """A registered policy."""

    name: str
    summary: str
    options: tuple[Option, ...]
    is_calibrated: bool
    """Whether `fsf calibrate` can measure numbers for it."""


@dataclass(frozen=True)
class ModelEntry:
    """A checkpoint that can be named."""

    name: str
    family: str
    source: str
    is_bundled: bool


@dataclass(frozen=True)
class MetricEntry:
    """A registered metric."""

    name: str
    description: str
    unit: str
    better: str
    needs_reference: bool


def list_policies(*files: Path) -> list[PolicyEntry]:
    """The built-in policies, or those in the given files, by name."""
    sources = files or tuple(sorted((PACKAGE / "policies").glob("*.py")))
    entries = []
    for source in sources:
        classes = _classes(source)
        for name, node in _registered(classes.values(), "POLICIES"):
            options: dict[str, Option] = {}
            lineage = _lineage(node, classes)
            for base in reversed(lineage):
                options.update({option.name: option for option in _options(base)})
            # One that holds another and asks that for its calibration reads no artifact itself.
            is_calibrated = ARTIFACT in options and any(_defines(base, "calibration") for base in lineage)
            entries.append(PolicyEntry(name, _summary(node), tuple(options.values()), is_calibrated))
    return sorted(entries, key=lambda entry: entry.name)


def policies_named(words: Sequence[str]) -> list[PolicyEntry]:
    """The policies of the given names, and those in the given `.py` files, in the order given.

    Raises:
        ValueError: a name that no built-in policy has, or a file that is not there.
    """
    known = {entry.name: entry for entry in list_policies()}
    found: list[PolicyEntry] = []
    for word in words:
        if word in known:
            found.append(known[word])
        elif word.endswith(".py") or "/" in word:
            if not Path(word).is_file():
                raise ValueError(f"no such file: {word}")
            found += list_policies(Path(word))
        else:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"no policy {word!r}; {hint}There are {', '.join(known)}. For your own give the file: my_policy.py"
            )
    return found


def by_group(entries: Sequence[PolicyEntry]) -> dict[str, list[PolicyEntry]]:
    """Heading -> the policies under it, in the order of the reference; those that no group names come last."""
    left = {entry.name: entry for entry in entries}
    out = {heading: [left.pop(n) for n in names if n in left] for heading, (_, names) in GROUPS.items()}
    out["Others"] = list(left.values())
    return {heading: found for heading, found in out.items() if found}


def one_line(summary: str, width: int) -> str:
    """As much of a summary's first sentence as fits: cut at a word, with an ellipsis."""
    sentence = re.split(r"(?<=\.)\s", summary, maxsplit=1)[0] if len(summary) > width else summary
    return textwrap.shorten(sentence, width, placeholder=" ...")


def list_models() -> list[ModelEntry]:
    """Every checkpoint that an adapter names."""
    entries = []
    for source in sorted((PACKAGE / "models").glob("*.py")):
        for family, node in _registered(_classes(source).values(), "ADAPTERS"):
            table = _assigned(node).get("checkpoints")
            if not isinstance(table, ast.Dict):
                continue
            for key, call in zip(table.keys, table.values):
                if isinstance(key, ast.Constant) and isinstance(call, ast.Call):
                    where = ast.literal_eval(call.args[0])
                    bundled = "/" not in where and (PACKAGE / "models" / where / "model_index.json").is_file()
                    entries.append(ModelEntry(str(key.value), family, where, bundled))
    return sorted(entries, key=lambda entry: (entry.family, entry.name))


def list_metrics() -> list[MetricEntry]:
    """The registered quality metrics."""
    entries = []
    for source in sorted((PACKAGE / "metrics").glob("*.py")):
        for name, node in _registered(_classes(source).values(), "METRICS"):
            facts = {key: _literal(value) for key, value in _assigned(node).items()}
            better = "higher" if facts.get("higher_is_better", True) else "lower"
            description = str(facts.get("description") or _summary(node))
            entries.append(
                MetricEntry(
                    name, description, str(facts.get("unit", "")), better, bool(facts.get("needs_reference", True))
                )
            )
    return sorted(entries, key=lambda entry: entry.name)


def _classes(source: Path) -> dict[str, ast.ClassDef]:
    return _parsed(source, source.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _parsed(source: Path, _modified: int) -> dict[str, ast.ClassDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _registered(classes: Any, registry: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """(name, class) of every `@REGISTRY.register("name")`."""
    for node in classes:
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=owner), attr="register"), args=[ast.Constant(value=name)]
                ) if owner == registry:
                    yield str(name), node


def _lineage(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """The class and its bases as far as they are in the same file or a policy file beside it, nearest first."""
    line = [node]
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(name, ast.Name):
            continue
        if name.id in classes:
            line += _lineage(classes[name.id], classes)
            continue
        for source in sorted((PACKAGE / "policies").glob("*.py")):
            others = _classes(source)
            if name.id in others and others[name.id] is not node:
                line += _lineage(others[name.id], others)
                break
    return line


def _options(node: ast.ClassDef) -> Iterator[Option]:
    for statement, following in zip(node.body, [*node.body[1:], None]):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation.startswith(("ClassVar", "typing.ClassVar")):
            continue
        doc = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            doc = " ".join(str(following.value.value).split())
        default = "required" if statement.value is None else _default(statement.value)
        yield Option(statement.target.id, annotation, default, doc)


def _defines(node: ast.ClassDef, method: str) -> bool:
    return any(isinstance(statement, ast.FunctionDef) and statement.name == method for statement in node.body)


def _default(value: ast.expr) -> str:
    """A default as its value is written: 20 / 28 is worked out, `field(default_factory=list)` is []."""
    match value:
        case ast.BinOp(ast.Constant(int() | float() as left), ast.Div(), ast.Constant(int() | float() as right)):
            return repr(left / right)
        case ast.Call(ast.Name("field"), keywords=[ast.keyword("default_factory", ast.Name(kind))]):
            return {"list": "[]", "dict": "{}"}.get(kind, ast.unparse(value))
    return ast.unparse(value)


def _assigned(node: ast.ClassDef) -> dict[str, ast.expr]:
    values: dict[str, ast.expr] = {}
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                values[name] = value
    return values


def _literal(value: ast.expr) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def _summary(node: ast.ClassDef) -> str:
    doc = ast.get_docstring(node) or ""
    return " ".join(doc.split("\n\n")[0].split())
