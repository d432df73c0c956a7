"""From an ablation's YAML file to its cells: many runs that differ in a few keys. Imports no torch.

::

    name: gamma-and-warmup          # default: the file's name
    base: run.yaml                  # a run, beside this file; or the run itself as a mapping
    grid:                           # every combination
      policy.gamma: [0.25, 0.5, 1.0]
      sampling.num_steps: [30, 50]
    zip:                            # keys that vary together; a list for several such groups
      policy.warmup: [2, 4]
      policy.recompute_every: [2, 3]
    cells:                          # settings by name; each may have a grid and a zip of its own
      - {name: full, policy: full}
      - name: static
        policy: static
        grid: {policy.interval: [2, 3]}
    published: numbers.yaml         # published numbers to set beside the table, see `fsframework.config.published`

The cells are the product of the three. A value takes the place of what the base says at its key.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsframework.config.load import (
    PROMPT_FILES,
    beside,
    build_config,
    nearest_key,
    parse_overrides,
    read_yaml,
    with_absolute_artifacts,
)
from fsframework.config.published import Table, published_tables
from fsframework.config.schema import ARTIFACT, SHORTHANDS, RunConfig

_KEYS = ("name", "base", "grid", "zip", "cells", "executor", "published")
_CELL_KEYS = ("name", "grid", "zip", "resources")
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_NAME = re.compile(r"[\w][\w.+-]*")
_LONGEST = 60
"""Characters of a value in a label."""
Changes = dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What an executor that places cells itself (ray) reserves for one."""

    num_cpus: float = 1
    """CPU cores, > 0."""
    num_gpus: float = 0
    """CUDA devices, >= 0; a fraction shares one."""


@dataclass(frozen=True)
class Executor:
    """Where cells run."""

    name: str = "local"
    """`local` (this machine) or `ray`."""
    jobs: int = 1
    """Processes of `local`, >= 1; with 1 the cells run in this one."""
    retries: int = 1
    """How often a cell whose process died is begun again, >= 0. It goes on after its last finished video. A cell that
    ends with an exception is not begun again: it would end so again."""
    address: str | None = None
    """Of a ray cluster; null: RAY_ADDRESS, or a ray of its own on this machine."""
    num_cpus: float = 1
    """Reserved for each cell by ray, > 0, unless the cell has `resources` of its own."""
    num_gpus: float = 0
    """Reserved for each cell by ray, >= 0; a fraction shares a device."""


@dataclass(frozen=True)
class Cell:
    """One run of an ablation."""

    label: str
    """What distinguishes it, such as `static, interval=2`; unique within the ablation."""
    changes: Changes
    """Dotted key -> value, those of its `cells` entry included."""
    group: str | None
    """The name of its `cells` entry."""
    config: RunConfig
    resources: Resources


@dataclass(frozen=True)
class Ablation:
    """What a YAML file and overrides describe."""

    name: str
    cells: list[Cell]
    keys: list[str]
    """Every key that varies, in the order of the file."""
    executor: Executor
    content: dict[str, Any] = field(repr=False)
    """The file with the base written out and the overrides under `overrides`."""
    published: dict[str, Table] = field(default_factory=dict, repr=False)
    """Published numbers to set beside the cells', by the name of their table."""


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """The cells that a YAML file describes.

    Relative paths in the base are relative to the base's file, paths in the grid to the grid's. An override changes all
    cells; `name=NAME` names the ablation.

    Raises:
        ValueError: missing or malformed file, unknown key (with the nearest name), a list that is none, lists of a zip
            that differ in length, an override of a varied key, or cells whose config is wrong: all of those, by name.
    """
    file = Path(path)
    content = read_yaml(file)
    where = str(path)
    for key in content:
        if key not in _KEYS:
            hint = " `fsf run` runs it." if key in _run_keys() and "base" not in content else ""
            raise ValueError(f"{where}: unknown key {key!r}.{hint} {nearest_key(key, _KEYS)}")
    base, folder, base_where = _base(content, file)
    executor = _executor(content.get("executor"), where)
    published = published_tables(content.get("published"), file.resolve().parent, file.stem, where)
    sources = parse_overrides(overrides)
    name = str(content.get("name") or (file.stem if file.stem != "ablation" else file.resolve().parent.name))
    for given, _ in sources:
        name = str(given.get("name", name))
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name={name!r} becomes a folder name: use letters, digits, '-', '_' and '.'")
    combinations = list(_combinations(content, where))
    keys = list(dict.fromkeys(key for changes, _, _ in combinations for key in changes))
    _check_overrides(overrides, keys)
    # The base by itself first: its mistakes would be every cell's.
    build_config([(base, base_where), *sources], folder, base_where)
    cells, problems = [], []
    here = file.resolve().parent
    for label, (changes, group, resources) in zip(_labels(combinations), combinations):
        try:
            changed = _apply(base, {key: _absolute(key, value, here) for key, value in changes.items()})
            config = build_config([(changed, base_where), *sources, ({"name": name}, where)], folder)
        except ValueError as error:
            problems.append((label, str(error)))
            continue
        tracking = dataclasses.replace(
            config.tracking, group=config.tracking.group or name, job_type=config.tracking.job_type or label
        )
        own = _resources(resources, executor, f"{where}, cell {label!r}")
        cells.append(Cell(label, changes, group, dataclasses.replace(config, tracking=tracking), own))
    if problems:
        raise ValueError(several_problems(where, problems, len(combinations)))
    if len({cell.config.output.runs_dir for cell in cells}) > 1:
        raise ValueError(f"{where}: output.runs_dir can not vary: the cells of an ablation lie in one folder")
    if len({cell.config.launch.num_processes for cell in cells}) > 1:
        raise ValueError(f"{where}: launch.num_processes can not vary within an ablation; it changes no result")
    written = {**content, "name": name, "base": base, **({"overrides": list(overrides)} if overrides else {})}
    return Ablation(name, cells, keys, executor, written, published)


def several_problems(where: str, problems: Sequence[tuple[str, str]], num_cells: int) -> str:
    """One message for all cells that are wrong; the same sentence once, with the first of its cells."""
    by_text: dict[str, list[str]] = {}
    for label, text in problems:
        by_text.setdefault(text, []).append(label)
    lines = []
    for text, labels in by_text.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        lines.append(f"cell {labels[0]!r}{more}: {text}")
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return f"{where}: {len(problems)} of {num_cells} cells are wrong:\n  " + "\n  ".join(lines)


def plain(value: Any) -> str:
    """A value as part of a label: `0.5`, `true`, `static(interval=2)`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        options = ", ".join(f"{key}={plain(item)}" for key, item in value.items() if key != "name")
        if "name" not in value:
            return "{" + options + "}"
        return f"{value['name']}({options})" if options else str(value["name"])
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return str(value)


def _run_keys() -> list[str]:
    return [f.name for f in dataclasses.fields(RunConfig)]


def _base(content: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], Path, str]:
    """The base's mapping, the folder its paths are relative to, and its name in messages."""
    base = content.get("base")
    if isinstance(base, str):
        path = beside(file.resolve().parent, base)
        if not path.is_file():
            raise ValueError(f"{file}: base: no such file: {base} (looked in {file.resolve().parent})")
        shown = str(file.parent / base)
        base, folder, where = read_yaml(path), path.parent, shown if Path(shown).is_file() else str(path)
    elif isinstance(base, Mapping):
        base, folder, where = dict(base), file.resolve().parent, f"{file}, base"
    else:
        raise ValueError(f"{file} needs a `base`: the path of a run's YAML file, or the run itself as a mapping")
    base = copy.deepcopy(base)
    for section, name in SHORTHANDS.items():
        if isinstance(base.get(section), str):
            base[section] = {name: base[section]}
    if isinstance(base.get("prompts"), list):
        base["prompts"] = {"texts": base["prompts"]}
    return base, folder, where


def _executor(value: Any, where: str) -> Executor:
    value = {"name": value} if isinstance(value, str) else (value or {})
    content = _section(value, Executor, f"{where}: executor")
    found = Executor(**content)
    if found.name not in ("local", "ray"):
        raise ValueError(
            f"{where}: executor.name={found.name!r} is not possible. {nearest_key(found.name, ('local', 'ray'))}"
        )
    if found.jobs < 1:
        raise ValueError(f"{where}: executor.jobs={found.jobs} must be at least 1")
    if found.retries < 0:
        raise ValueError(f"{where}: executor.retries={found.retries} must be at least 0")
    _check_resources(found, f"{where}: executor")
    return found


def _resources(value: Any, executor: Executor, where: str) -> Resources:
    default = {"num_cpus": executor.num_cpus, "num_gpus": executor.num_gpus}
    found = Resources(**{**default, **_section(value or {}, Resources, f"{where}: resources")})
    _check_resources(found, f"{where}: resources")
    return found


def _check_resources(found: Executor | Resources, where: str) -> None:
    if found.num_cpus <= 0:
        raise ValueError(f"{where}.num_cpus={found.num_cpus} must be above 0")
    if found.num_gpus < 0:
        raise ValueError(f"{where}.num_gpus={found.num_gpus} must be at least 0")


def _section(value: Any, schema: type, where: str) -> dict[str, Any]:
    """A mapping with the fields of a small dataclass of words and numbers, checked."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is a section of keys, found {value!r}")
    known = {f.name: f for f in dataclasses.fields(schema)}
    for key, item in value.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}. {nearest_key(str(key), list(known))}")
        wanted = str(known[key].type)
        if wanted in ("int", "float"):
            fits = isinstance(item, (int, float) if wanted == "float" else int) and not isinstance(item, bool)
        else:
            fits = isinstance(item, str) or (item is None and "None" in wanted)
        if not fits:
            words = {"int": "a whole number", "float": "a number"}.get(wanted, "a string")
            raise ValueError(f"{where}.{key} must be {words}; found {item!r}")
    return dict(value)


# The product.


def _combinations(content: Mapping[str, Any], where: str) -> Iterator[tuple[Changes, str | None, Any]]:
    """(changes, name of the `cells` entry, its resources) of every cell: cells slowest, then zip, then grid."""
    entries = content.get("cells")
    if entries is not None and (not isinstance(entries, list) or not entries):
        raise ValueError(f"{where}: cells must be a list of mappings, such as [{{name: full, policy: full}}]")
    if entries is None and not content.get("grid") and not content.get("zip"):
        raise ValueError(f"{where} varies nothing: it needs a `grid`, a `zip` or `cells`")
    shared = _axes(content, where)
    names: set[str] = set()
    for number, entry in enumerate(entries or [{}]):
        at = f"{where}: cells[{number}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{at} must be a mapping, such as {{name: full, policy: full}}; found {entry!r}")
        group = entry.get("name")
        if entries is not None:
            if not isinstance(group, str) or not group:
                raise ValueError(f"{at} needs a name, such as name: full")
            if group in names:
                raise ValueError(f"{at}: there is a cell named {group!r} already")
            names.add(group)
        settings = {str(key): value for key, value in entry.items() if key not in _CELL_KEYS}
        for key in settings:
            _check_key(key, at)
        axes = [*_axes(entry, at), *shared]
        for key in [*settings, *(key for axis in axes for key in axis[0])]:
            if [*settings, *(k for axis in axes for k in axis[0])].count(key) > 1:
                raise ValueError(f"{at if entries else where}: {key} is varied twice")
        for chosen in itertools.product(*axes):
            yield (
                {**settings, **{key: value for step in chosen for key, value in step.items()}},
                group,
                entry.get("resources"),
            )


def _axes(content: Mapping[str, Any], where: str) -> list[list[Changes]]:
    """The independent dimensions of a `grid` and a `zip`, each a list of changes; the zip's first."""
    groups = content.get("zip") or []
    groups = [groups] if isinstance(groups, Mapping) else groups
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"{where}: zip must be a mapping of keys to lists, or a list of such mappings")
    axes = []
    for group in groups:
        lists = {str(key): _values(str(key), values, f"{where}: zip") for key, values in group.items()}
        lengths = {key: len(values) for key, values in lists.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
            raise ValueError(f"{where}: zip: keys that vary together need equally many values; {counts}")
        axes.append([dict(zip(lists, row)) for row in zip(*lists.values())])
    grid = content.get("grid") or {}
    if not isinstance(grid, Mapping):
        raise ValueError(f"{where}: grid must be a mapping of keys to lists, such as {{policy.gamma: [0.5, 1.0]}}")
    for key in ("zip", "cells"):
        if key in grid:
            raise ValueError(f"{where}: `{key}` stands beside `grid`, not in it")
    axes += [
        [{str(key): value} for value in _values(str(key), values, f"{where}: grid")] for key, values in grid.items()
    ]
    return [axis for axis in axes if axis]


def _values(key: str, values: Any, where: str) -> list[Any]:
    _check_key(key, where)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {key} must be a list of the values to try, such as [0.5, 1.0]; found {values!r}")
    return values


def _check_key(key: str, where: str) -> None:
    """That a dotted key begins like one of a run's; the rest is checked when the cell's config is built."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{where}: {key!r} is not a key of the form section.key, such as policy.gamma")
    known = [name for name in _run_keys() if name != "name"]
    if key.split(".")[0] not in known:
        raise ValueError(f"{where}: unknown key {key!r}. {nearest_key(key, known)}")


def _check_overrides(overrides: Sequence[str], keys: Sequence[str]) -> None:
    """An override comes last, so one of a varied key, or of what it lies in, would undo the grid."""
    for text in overrides:
        given = text.partition("=")[0]
        for key in keys:
            if key == given or key.startswith(f"{given}."):
                raise ValueError(f"the override {text!r} would undo the grid, which varies {key}")


def _labels(combinations: Sequence[tuple[Changes, str | None, Any]]) -> list[str]:
    """`static, interval=2`: the entry's name and the other keys, each by its last word where that is unambiguous."""
    keys = dict.fromkeys(key for changes, _, _ in combinations for key in changes)
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: word if last.count(word) == 1 and word != "name" else key for key, word in zip(keys, last)}
    short = {key: word.removesuffix(".name") for key, word in short.items()}
    by_group: dict[str | None, list[Changes]] = {}
    for changes, group, _ in combinations:
        by_group.setdefault(group, []).append(changes)
    labels = []
    for changes, group, _ in combinations:
        # What all cells of an entry share is said by its name.
        rows = by_group[group]
        varied = [key for key in changes if group is None or any(row.get(key) != changes[key] for row in rows)]
        values = [textwrap.shorten(plain(changes[key]), _LONGEST, placeholder="...") for key in varied]
        parts = [*([group] if group is not None else []), *(f"{short[key]}={v}" for key, v in zip(varied, values))]
        labels.append(", ".join(parts))
    for number, label in enumerate(labels):
        if label in labels[:number]:
            labels[number] = f"{label} ({labels[:number].count(label) + 1})"
    return labels


# A cell's content.


def _apply(base: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The base with values set at dotted keys: whole sections first, then what is in them."""
    content = copy.deepcopy(dict(base))
    for key in sorted(changes, key=lambda key: (key.count("."), not key.endswith(".name"))):
        value = copy.deepcopy(changes[key])
        if key in SHORTHANDS and isinstance(value, str):
            value = {SHORTHANDS[key]: value}
        if key == "prompts" and isinstance(value, list):
            value = {"texts": value}
        if key == "prompts.set" and isinstance(content.get("prompts"), dict):
            content["prompts"].pop("texts", None)  # a set is meant instead of the texts of the base
        first, *rest = key.split(".")
        if first == "policy" and rest:
            content.setdefault("policy", {}).setdefault("name", RunConfig().policy["name"])
        _set(content, key, [first, *rest], value)
    return content


def _set(inside: Any, key: str, path: list[str], value: Any) -> None:
    """Put a value where the rest of a dotted key leads."""
    head, rest = path[0], path[1:]
    place: Any = int(head) if isinstance(inside, list) and head.isdigit() else head
    if isinstance(inside, list) and not (isinstance(place, int) and place < len(inside)):
        raise ValueError(f"{key}: the base has a list of {len(inside)} there, counted from 0; it has no item {head!r}")
    if not rest:
        if head == "name" and key.startswith(("policy.", "sampling.scheduler.")) and inside.get("name") != value:
            inside.clear()  # another policy, or scheduler, has other options
        inside[place] = value
        return
    below = inside[place] if isinstance(inside, list) else inside.get(place)
    if isinstance(below, str):  # the short form of {name: ...}
        below = {"name": below}
    if not isinstance(below, (dict, list)):
        below = {}
    inside[place] = below
    _set(below, key, rest, value)


def _absolute(key: str, value: Any, folder: Path) -> Any:
    """A value of the grid with its paths absolute, relative to the grid's file."""
    if key.rpartition(".")[2] == ARTIFACT and key.startswith("policy.") and isinstance(value, str):
        return str(beside(folder, value))
    if key.startswith("policy"):
        return with_absolute_artifacts(value, folder)
    if key in ("prompts", "prompts.set") and isinstance(value, str) and value.endswith(PROMPT_FILES):
        return str(beside(folder, value))
    if key == "plugins" and isinstance(value, list):
        return [str(beside(folder, item)) if isinstance(item, str) else item for item in value]
    return value


def to_json(value: Any) -> str:
    """A value in one line, for tables that a program reads."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
