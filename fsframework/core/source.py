"""What can be read off a function's source: its text, and which of its arguments it gives back."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

UNREADABLE = "could not read what the block returns"
_CONDITIONING = re.compile(r"(^|_)(t|c|vec|temb|emb|mod|modulation|mask|time\w*|rotary|rope|freqs|pe)(_|$)")


@dataclass(frozen=True)
class Returned:
    """What a method gives back, as names of its arguments."""

    names: tuple[str, ...]
    """The arguments that the returned elements are made of, in order, each once."""
    remark: str | None = None
    """What is uncertain about them; None if every element is an argument by name."""


def source_of(function: Any) -> str:
    """The text of a function under its decorators; empty where there is none."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    except (OSError, TypeError, SyntaxError, ValueError, tokenize.TokenError):
        return ""


def arguments_of(function: Any) -> list[str]:
    """The named arguments of a method, without its first, whatever that is called."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].kind not in variadic:
        parameters = parameters[1:]
    return [p.name for p in parameters if p.kind not in variadic]


def returned(owner: Any, method: str = "forward", depth: int = 4) -> Returned:
    """The arguments of an object's method that its last return statement is made of.

    Local names are followed through assignments, and `return self.inner(...)` into at most `depth` methods or sub-modules.
    """
    function = getattr(type(owner), method)
    definition = _definition(function)
    if definition is None:
        return Returned((), UNREADABLE)
    nodes = list(_statements(definition.body))
    returns = [n.value for n in nodes if isinstance(n, ast.Return) and n.value is not None]
    if not returns:
        return Returned((), UNREADABLE)
    trace = _Trace(arguments_of(function), nodes)
    value = trace.literal(returns[-1])
    if isinstance(value, ast.Call) and _is_attribute_of(value.func, definition):
        found = _follow(owner, value, trace, depth)
    else:
        found = _read(value, trace)
    if found.remark is None and len({_num_elements(trace.literal(other)) for other in returns}) > 1:
        return Returned(found.names, "the block has several returns")
    return found


def _read(value: ast.expr, trace: _Trace) -> Returned:
    """What a return statement's value is made of, element by element."""
    several = isinstance(value, (ast.Tuple, ast.List))
    elements = value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value]
    found = [trace.argument(element) for element in elements]
    names = tuple(dict.fromkeys(name for name in found if name is not None))
    if len(names) < len(found) or isinstance(value, (ast.Dict, ast.IfExp)) or _is_output_class(value):
        return Returned(names, UNREADABLE)
    if several and len(elements) == 1:
        return Returned(names, "the block returns a tuple of one")
    return Returned(names, "streams were followed through local names" if trace.followed else None)


def _follow(owner: Any, call: ast.Call, trace: _Trace, depth: int) -> Returned:
    """What `self.inner(...)` returns, in the names of the arguments it is given."""
    assert isinstance(call.func, ast.Attribute)
    name, inner = call.func.attr, getattr(owner, call.func.attr, None)
    inner = getattr(inner, "_orig_mod", inner)  # what torch.compile wrapped
    if isinstance(inner, nn.Module):
        name, followed = "forward", inner
    elif inspect.isfunction(getattr(type(owner), name, None)):
        followed = owner
    else:
        followed = None
    if followed is None or depth == 0 or any(isinstance(argument, ast.Starred) for argument in call.args):
        return Returned(tuple(n for n in [trace.argument(call)] if n), UNREADABLE)
    found = returned(followed, name, depth - 1)
    given = dict(zip(arguments_of(getattr(type(followed), name)), call.args))
    given.update({keyword.arg: keyword.value for keyword in call.keywords if keyword.arg})
    ours = [trace.argument(given[n]) if n in given else None for n in found.names]
    names = tuple(dict.fromkeys(n for n in ours if n is not None))
    return Returned(names, UNREADABLE if len(names) < len(ours) else found.remark)


class _Trace:
    """Follows expressions back to arguments."""

    def __init__(self, arguments: Sequence[str], nodes: Sequence[ast.stmt]) -> None:
        self.arguments = arguments
        self.assigned = [(n, target, value) for n, node in enumerate(nodes) for target, value in _assigned(node)]
        self.followed = False

    def literal(self, value: ast.expr) -> ast.expr:
        """The tuple that a returned local name was last given, if it was given one; else the expression itself."""
        if isinstance(value, ast.Name) and value.id not in self.arguments:
            values = [v for _, t, v in self.assigned if isinstance(t, ast.Name) and t.id == value.id]
            if values and isinstance(values[-1], (ast.Tuple, ast.List)):
                return values[-1]
        return value

    def argument(self, value: ast.expr, before: int | None = None) -> str | None:
        """The argument that an expression is made of; None if there is none or it is no stream of tokens.

        `before` is the number of the statement the expression stands in; only earlier assignments are followed.
        """
        if isinstance(value, ast.Name):
            return value.id if value.id in self.arguments else self._local(value.id, before)
        for part in _parts(value):
            name = self.argument(part, before)
            if name is not None and not _CONDITIONING.search(name):
                return name
        return None

    def _local(self, name: str, before: int | None) -> str | None:
        """The last assignment of a local name that leads to an argument decides."""
        for number, target, value in reversed(self.assigned):
            if before is not None and number >= before:
                continue
            for part in _given_to(name, target, value):
                argument = self.argument(part, number)
                if argument is not None and not _CONDITIONING.search(argument):
                    self.followed = True
                    return argument
        return None


def _given_to(name: str, target: ast.expr, value: ast.expr) -> list[ast.expr]:
    """What an assignment gives a name. `a, b = f(x, y)` goes by position."""
    if isinstance(target, ast.Name):
        return [value] if target.id == name else []
    if not isinstance(target, (ast.Tuple, ast.List)):
        return []
    places = [i for i, t in enumerate(target.elts) if isinstance(t, ast.Name) and t.id == name]
    if isinstance(value, (ast.Tuple, ast.List)):
        given: list[ast.expr] = list(value.elts)
    elif isinstance(value, ast.Call):
        given = [*value.args, *(k.value for k in value.keywords)]
    else:
        given = []
    return [given[i] for i in places if i < len(given)]


def _parts(value: ast.expr) -> list[ast.expr]:
    """The operands of an expression, the likeliest carrier of the stream first: in a sum, what is added to."""
    if isinstance(value, ast.BinOp):
        sides = [value.left, value.right]
        return sorted(sides, key=lambda side: not _is_added_to(side)) if isinstance(value.op, ast.Add) else sides
    if isinstance(value, ast.Call):
        of = [value.func.value] if isinstance(value.func, ast.Attribute) else []
        return [*of, *value.args, *(k.value for k in value.keywords)]
    if isinstance(value, ast.Subscript):
        return [value.value]
    if isinstance(value, ast.IfExp):
        return [value.body, value.orelse]
    return [child for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr)]


def _is_added_to(side: ast.expr) -> bool:
    """Whether an operand of a sum is a bare name or a sum itself, rather than a gated branch."""
    return isinstance(side, ast.Name) or (isinstance(side, ast.BinOp) and isinstance(side.op, ast.Add))


def _assigned(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target, ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.stmt]:
    """Statements in the order of the source, those of inner functions and classes left out."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.expr):
            yield from _statements(list(ast.iter_child_nodes(node)))


def _definition(function: Any) -> ast.FunctionDef | None:
    source = source_of(function)
    # A docstring at column 0 keeps dedent from working; an indented function is valid inside a block.
    text = f"if True:\n{source}" if source[:1].isspace() else source
    try:
        return next((node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)), None)
    except (SyntaxError, ValueError):
        return None


def _is_attribute_of(called: ast.expr, definition: ast.FunctionDef) -> bool:
    """Whether what is called is a plain attribute of the method's object."""
    owner = definition.args.args[0].arg if definition.args.args else None
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == owner


def _is_output_class(value: ast.expr) -> bool:
    called = value.func if isinstance(value, ast.Call) else None
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    return name.lstrip("_")[:1].isupper() or name == "dict"


def _num_elements(value: ast.expr) -> int:
    return len(value.elts) if isinstance(value, (ast.Tuple, ast.List)) else 1
