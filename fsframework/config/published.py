"""Published numbers that a grid is to be set beside: a YAML file of tables, each with its source. Imports no torch.

::

    main_table:                      # found by the grid's file name, unless `tables` names others
      source: {paper: "Title, arXiv:0000.00000", read: second-hand, from: a summary}
      conditions: {device: NVIDIA A100, prompts: "VBench, 550", unverified: [steps, seeds]}
      units: {latency: s}            # of numbers that are not metrics here
      rows:
        - {setting: foresight N1R2, model: opensora-1.2, psnr: 29.67, speedup: 1.28}
      missing: [latte-1]
      note: what a reader must know

A number has the name and the unit that it has in metrics.json, where there is such a metric. `setting` is the label or the
name of a cell of the grid; a row that is no cell's is shown all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsframework.config.load import beside, nearest_key, read_yaml

Table = dict[str, Any]
_TABLE_KEYS = ("source", "conditions", "units", "rows", "missing", "note")
_SOURCE_KEYS = ("paper", "read", "from")


@dataclass(frozen=True)
class PublishedRow:
    """What was published of one setting."""

    setting: str
    model: str | None
    """As named by `fsf list models`; None where the source does not say."""
    values: dict[str, float]


@dataclass(frozen=True)
class Published:
    """One published table."""

    name: str
    source: str
    """In words, with how it was read."""
    conditions: dict[str, str]
    unverified: list[str]
    """Conditions that the source leaves open."""
    units: dict[str, str]
    rows: list[PublishedRow]
    missing: list[str]
    """Rows that the source has or should have and that are not given."""
    note: str

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> Published:
        """From a table that `check_table` let pass."""
        source = table["source"]
        if isinstance(source, Mapping):
            read = ", ".join(str(source[key]) for key in ("read", "from") if key in source)
            source = f"{source['paper']} ({read})" if read else str(source["paper"])
        conditions = dict(table.get("conditions") or {})
        unverified = [str(item) for item in conditions.pop("unverified", None) or []]
        rows = [
            PublishedRow(
                str(row["setting"]),
                None if row.get("model") is None else str(row["model"]),
                {key: float(value) for key, value in row.items() if key not in ("setting", "model")},
            )
            for row in table["rows"]
        ]
        return cls(
            name,
            str(source),
            {key: str(value) for key, value in conditions.items()},
            unverified,
            {key: str(unit) for key, unit in (table.get("units") or {}).items()},
            rows,
            [str(item) for item in table.get("missing") or []],
            str(table.get("note") or ""),
        )

    def words(self) -> list[str]:
        """Source, conditions and what is not known of them, in sentences."""
        out = [f"Source: {self.source}."]
        if self.conditions:
            out.append("Conditions: " + "; ".join(f"{key} {value}" for key, value in self.conditions.items()) + ".")
        if self.unverified:
            out.append(f"Not known of the source's runs: {', '.join(self.unverified)}.")
        if self.missing:
            out.append(f"Rows not found: {', '.join(self.missing)}.")
        return [*out, self.note] if self.note else out


def published_tables(value: Any, folder: Path, grid: str, where: str) -> dict[str, Table]:
    """The tables that a grid's `published` key names, checked, by name.

    Args:
        value: the path of a file; `{file: PATH, tables: [NAME, ...]}`; or a table written out.
        folder: what the path is relative to.
        grid: name of the table to take where none is named.
        where: for messages.

    Raises:
        ValueError: no such file or table, a table without a source or rows, a value that is no number.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping) and "rows" in value:
        return {grid: check_table(value, f"{where}: published")}
    given = {"file": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("file"), str):
        raise ValueError(
            f"{where}: published is the path of a YAML file, {{file: PATH, tables: [NAME, ...]}}, or a table with a source "
            f"and rows; found {value!r}"
        )
    for key in given:
        if key not in ("file", "tables"):
            raise ValueError(f"{where}: published: unknown key {key!r}. {nearest_key(str(key), ('file', 'tables'))}")
    names = given.get("tables", [grid])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise ValueError(f"{where}: published.tables is a list of names of tables; found {names!r}")
    path = beside(folder, given["file"])
    content = read_yaml(path)
    tables = {}
    for name in map(str, names):
        if name not in content:
            raise ValueError(
                f"{where}: published: {path} has no table {name!r}. {nearest_key(name, list(content))} "
                "published.tables names the ones to take."
            )
        tables[name] = check_table(content[name], f"{path}: {name}")
    return tables


def check_table(table: Any, where: str) -> Table:
    """The table, if it is one.

    Raises:
        ValueError: an unknown key, no source, no rows, or a value of a row that is not a finite number.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} is a table with a source and rows; found {table!r}")
    for key in table:
        if key not in _TABLE_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}. {nearest_key(str(key), _TABLE_KEYS)}")
    _check_source(table.get("source"), where)
    for key in ("conditions", "units"):
        if not isinstance(table.get(key) or {}, Mapping):
            raise ValueError(f"{where}: {key} is a mapping; found {table[key]!r}")
    for place, items in (("missing", table.get("missing")), ("conditions.unverified", _unverified(table))):
        if not isinstance(items or [], list):
            raise ValueError(f"{where}: {place} is a list; found {items!r}")
    rows = table.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where}: rows is a list, such as [{{setting: foresight, psnr: 29.7}}]; found {rows!r}")
    for number, row in enumerate(rows):
        at = f"{where}: rows[{number}]"
        if not isinstance(row, Mapping) or not isinstance(row.get("setting"), str):
            raise ValueError(f"{at} needs a setting, the label or name of a cell of the grid; found {row!r}")
        numbers = {key: value for key, value in row.items() if key not in ("setting", "model")}
        if not numbers:
            raise ValueError(f"{at}, {row['setting']!r}, has no number")
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{at}, {row['setting']!r}: {key} must be a finite number; found {value!r}")
    return dict(table)


def _check_source(source: Any, where: str) -> None:
    is_words = isinstance(source, str) and bool(source)
    if not is_words and not (isinstance(source, Mapping) and source.get("paper")):
        raise ValueError(
            f"{where} needs a source, where the numbers can be read: words, or {{paper: ..., read: ..., from: ...}}"
        )
    for key in source if isinstance(source, Mapping) else ():
        if key not in _SOURCE_KEYS:
            raise ValueError(f"{where}: source: unknown key {key!r}. {nearest_key(str(key), _SOURCE_KEYS)}")


def _unverified(table: Mapping[str, Any]) -> Any:
    return (table.get("conditions") or {}).get("unverified")
