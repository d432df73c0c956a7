"""What every built-in policy says of itself: its source, its settings, its options. No model is run."""

import ast
import dataclasses
import inspect
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import fsframework.models  # fills the registries
import fsframework.policies  # noqa: F401
from fsframework.core import ADAPTERS, POLICIES, Part
from fsframework.run.catalog import list_policies

NAMES = [name for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")]
OPTIONS = {entry.name: entry.options for entry in list_policies()}
every_policy = pytest.mark.parametrize("name", NAMES)
every_method = pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])


@every_method
def test_it_states_its_paper_its_signal_and_where_it_departs(name):
    cls = POLICIES[name]
    for fact in (cls.paper, cls.signal, cls.deviations):
        assert len(fact) > 3
        assert fact == " ".join(fact.split()), "one line, one space between words"
    assert cls.deviations.endswith("."), "a sentence"


@every_method
def test_its_docstring_names_the_source_that_paper_names(name):
    cls = POLICIES[name]
    sources = re.findall(r"arXiv:\d{4}\.\d{4,5}|(?<=github\.com/)[\w.-]+/[\w.-]+\w", cls.paper)
    assert any(source in cls.__doc__ for source in sources) or "our own" in cls.paper, f"{sources or cls.paper}"


@every_policy
def test_its_docstring_begins_with_one_sentence_for_lists_and_says_what_is_reused_and_at_what_cost(name):
    doc = inspect.cleandoc(POLICIES[name].__doc__)
    summary = " ".join(doc.split("\n\n")[0].split())
    assert summary.endswith((".", ":"))
    assert len(summary) <= 220
    if name != "full":
        assert "Granularity:" in doc
        assert "Host reads:" in doc


@every_policy
def test_the_defaults_make_one_and_so_do_the_options_for_these_tests(name):
    cls = POLICIES[name]
    assert cls() == cls()
    fields = {f.name for f in dataclasses.fields(cls)}
    assert {*cls.example, *cls.never, *cls.policy_fields} <= fields
    cls(**cls.example)
    cls(**{**cls.example, **cls.never})
    assert cls.__dataclass_params__.frozen


class Nonsense:
    """Of no type that an option has."""

    def __repr__(self):
        return "<nonsense>"


OTHER_TYPES = {float: ["0.5", True, [0.5]], int: [2.5, "2", True], bool: [1, "yes"], str: [3, True]}
"""Values that look like one of a type and are none."""
OWN_WORDS = {("combine", "policies"), ("combine", "only"), ("forecast", "base")}
"""Options that may be several things and are checked by their policy."""


@every_policy
def test_an_option_of_another_type_is_refused_by_name_with_what_was_given_and_what_is_allowed(name):
    cls = POLICIES[name]
    for option, annotation in get_type_hints(cls).items():
        if option not in {f.name for f in dataclasses.fields(cls)} or (name, option) in OWN_WORDS:
            continue
        kinds = set(get_args(annotation) if get_origin(annotation) is not Literal else ()) or {annotation}
        wrong = [Nonsense()]
        if len(kinds - {int, type(None)}) < 2:  # float | int takes both
            wrong += [value for kind in kinds & set(OTHER_TYPES) - ({int} if float in kinds else set())
                      for value in OTHER_TYPES[kind]]  # fmt: skip
        if type(None) not in kinds:
            wrong.append(None)
        for value in wrong:
            with pytest.raises(ValueError, match=re.escape(f"{name}: {option}={value!r} must be ")):
                cls(**{**cls.example, option: value})


@every_policy
def test_every_option_is_documented_in_the_form_of_the_house(name):
    for option in OPTIONS[name]:
        assert option.doc, option.name
        assert option.doc.endswith((".", ")")), f"{option.name}: {option.doc!r}"
    assert [o.name for o in OPTIONS[name]] == [
        f.name for f in dataclasses.fields(POLICIES[name]) if f.name not in ("storage", "depth", "gate", "eliminate_dead")
        or f.name in POLICIES[name].__annotations__
    ]  # fmt: skip


@every_policy
def test_published_settings_are_of_models_and_options_that_there_are(name):
    cls = POLICIES[name]
    models = {"", *ADAPTERS, *(c for _, adapter in ADAPTERS.items() for c in adapter.checkpoints)}
    assert set(cls.published) <= models
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    for options in cls.published.values():
        assert {defaults[option] for option in options} == {None}, "a default would hide what was published"
        cls(**options)


@every_policy
def test_the_parts_it_asks_about_are_known_without_a_model(name):
    policy = POLICIES[name](**POLICIES[name].example)
    assert policy.parts <= frozenset(Part)
    assert policy.parts


READS_BACK = {"item", "tolist", "numpy", "cpu", "synchronize"}
"""Methods that wait for a device."""


@every_policy
def test_it_imports_no_other_policy_and_reads_nothing_back_by_itself(name):
    tree = ast.parse(inspect.getsource(inspect.getmodule(POLICIES[name])))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [module for module in imported if module.startswith(("fsframework.policies", "fsframework.models"))]
    policy = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == POLICIES[name].__name__)
    called = [node.func for node in ast.walk(policy) if isinstance(node, ast.Call)]
    assert not {f.attr for f in called if isinstance(f, ast.Attribute)} & READS_BACK
    # On a CPU it does nothing, so that counting reads (test_policies.py) does not find it.
    assert not [node.value for node in ast.walk(policy) if isinstance(node, ast.Constant) and node.value == "cpu"]
