"""Prompt sets: where a run's captions come from, with their seeds and what else is known of them."""

from __future__ import annotations

import csv
import difflib
import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VBENCH_FILE = "VBench_full_info.json"
"""In the folder of the package `vbench` (0.1.5): a list of `{"prompt_en", "dimension", "auxiliary_info"}`, 946 of them."""
_TEXT_KEYS = ("prompt", "prompt_en")
"""What a caption is called in a file of objects; the second by VBench."""
_SEED_KEYS = ("seed", "seeds")


@dataclass(frozen=True)
class Prompt:
    """A caption, and what its file says of it."""

    text: str
    seeds: tuple[int, ...] = ()
    """Seeds of its own, one video each. Empty: `seeds.per_prompt` videos with the run's seeds."""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other columns of its row, such as a category; kept in the record of each of its videos."""


@dataclass(frozen=True)
class Clip:
    """One video to make: its running number, caption and seed, and the facts of its prompt."""

    index: int
    prompt: str
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


# Sets by name.


def _digits(which: str) -> list[Prompt]:
    from fsframework.data import bouncing_digits as digits

    # Motions alternate and digits advance, so the first prompts of the set already differ in both.
    pairs = {"all": digits.all_pairs(), "train": digits.training_pairs(), "heldout": list(digits.HELD_OUT_PAIRS)}
    return [Prompt(digits.caption(*pair)) for pair in pairs[which]]


SETS: dict[str, tuple[str, Callable[[], list[Prompt]]]] = {
    "digits": (
        "the 20 captions of the bouncing digits, such as 'digit 6 is moving up and down'",
        lambda: _digits("all"),
    ),
    "digits-train": ("the 17 of them that the tiny models were trained on", lambda: _digits("train")),
    "digits-heldout": ("the 3 of them that no tiny model has seen", lambda: _digits("heldout")),
    "vbench": ("the prompts of VBench, from its package; vbench-DIMENSION for those of one", lambda: _vbench(None)),
}
"""Name -> (one line, function that gives the prompts)."""


def _vbench(dimension: str | None) -> list[Prompt]:
    """The prompts of VBench (arXiv:2311.17982), of one of its dimensions if one is named.

    Raises:
        ValueError: VBench is not installed, or has no such dimension.
    """
    file = vbench_file()
    if file is None:
        raise ValueError(
            "the prompts of VBench come with its package, which is not installed here: pip install --no-deps vbench (the "
            f"list needs none of its dependencies), or give the path of the {VBENCH_FILE} of another environment as "
            "prompts.set"
        )
    prompts = _read_file(file)
    if dimension is None:
        return prompts
    known = sorted({name for prompt in prompts for name in prompt.facts["dimension"]})
    if dimension not in known:
        raise ValueError(f"VBench has no dimension {dimension!r}. {_nearest(dimension, known)}")
    return [prompt for prompt in prompts if dimension in prompt.facts["dimension"]]


def vbench_file() -> Path | None:
    """Where the installed VBench has its list of prompts; None without VBench, which is not imported."""
    try:
        spec = importlib.util.find_spec("vbench")
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / VBENCH_FILE).is_file():
            return Path(folder) / VBENCH_FILE
    return None


def load_prompts(name: str, texts: Sequence[str] | None = None, limit: int | None = None) -> list[Prompt]:
    """The prompts of a set, of a .txt, .csv, .json or .jsonl file, or `texts` themselves; at most `limit`.

    A .txt file has a prompt per line (blank lines and lines starting with # do not count), a .csv file a column
    `prompt`, a .json file a list of strings or of objects with the key `prompt`, a .jsonl file such an item per line.
    `seed` (a number) or `seeds` (several: a list, or numbers with spaces between) are a prompt's own; all other columns
    and keys are its facts.

    Raises:
        ValueError: unknown set, missing or malformed file, no prompt at all.
    """
    if texts is not None:
        prompts, source = [Prompt(text.strip()) for text in texts if text.strip()], "prompts.texts"
    elif name in SETS:
        prompts, source = SETS[name][1](), name
    elif name.startswith("vbench-"):
        prompts, source = _vbench(name.removeprefix("vbench-")), name
    elif Path(name).suffix in _READERS:
        prompts, source = _read_file(Path(name).expanduser()), name
    else:
        raise ValueError(
            f"unknown prompt set {name!r}. {_nearest(name, list(SETS))}; or give a {', '.join(_READERS)} file, or "
            f"prompts.texts=[...]."
        )
    if not prompts:
        raise ValueError(f"{source} holds no prompt")
    return prompts[:limit]


def plan_clips(prompts: Sequence[Prompt], base_seed: int, per_prompt: int) -> list[Clip]:
    """The videos of a run, numbered from 0; video i has seed `base_seed + i`. Every prompt comes once per round.

    A prompt with seeds of its own comes in as many rounds as it has seeds, and video k of it has its seed k.
    """
    clips: list[Clip] = []
    for number in range(max(len(prompt.seeds) or per_prompt for prompt in prompts)):
        for prompt in prompts:
            if number < (len(prompt.seeds) or per_prompt):
                seed = prompt.seeds[number] if prompt.seeds else base_seed + len(clips)
                clips.append(Clip(len(clips), prompt.text, seed, prompt.facts))
    return clips


def to_jsonl(clips: Iterable[Clip]) -> str:
    """A prompt file that gives these videos again, with one video per prompt: a line for each, with seed and facts."""
    lines = [{"prompt": clip.prompt, "seed": clip.seed, **clip.facts} for clip in clips]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


# Files.


def _read_file(path: Path) -> list[Prompt]:
    if not path.is_file():
        raise ValueError(f"no such prompt file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"prompt file {path} is not UTF-8 text") from None
    prompts = []
    for place, row in _READERS[path.suffix](path, text):
        key = next(key for key in _TEXT_KEYS if isinstance(row.get(key), str))
        if row[key].strip():
            facts = {name: value for name, value in row.items() if name not in (key, *_SEED_KEYS) and value != ""}
            prompts.append(Prompt(row[key].strip(), _seeds(row, f"prompt file {path}, {place}"), facts))
    return prompts


def _seeds(row: Mapping[str, Any], where: str) -> tuple[int, ...]:
    given = {key: row[key] for key in _SEED_KEYS if row.get(key) not in (None, "", [])}
    if len(given) > 1:
        raise ValueError(f"{where}: give `seed` or `seeds`, not both")
    for key, value in given.items():
        items = value if isinstance(value, list) else re.split(r"[\s,;]+", str(value).strip())
        if isinstance(value, bool) or not all(re.fullmatch(r"\d+", str(item)) for item in items):
            raise ValueError(f"{where}: {key} must be whole numbers >= 0, such as 7 or 7 8 9; found {value!r}")
        seeds = tuple(int(item) for item in items)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{where}: {key} names a seed twice, which would make the same video twice: {value!r}")
        return seeds
    return ()


_Rows = Iterable[tuple[str, Mapping[str, Any]]]
"""Where in the file, and what stands there."""


def _read_txt(path: Path, text: str) -> _Rows:
    lines = enumerate(text.splitlines(), start=1)
    return [(f"line {number}", {"prompt": line}) for number, line in lines if not line.lstrip().startswith("#")]


def _read_csv(path: Path, text: str) -> _Rows:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "prompt" not in (rows.fieldnames or ()):
        raise ValueError(f"prompt file {path} needs a column named 'prompt'; it has {', '.join(rows.fieldnames or ())}")
    found = []
    for row in rows:
        if None in row:
            raise ValueError(
                f"prompt file {path}, line {rows.line_num}: more cells than columns; put a prompt with commas in quotes"
            )
        found.append((f"line {rows.line_num}", {key: (value or "").strip() for key, value in row.items()}))
    return found


def _read_json(path: Path, text: str) -> _Rows:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"prompt file {path} is not valid JSON: {error}") from None
    if not isinstance(content, list):
        raise ValueError(f"prompt file {path} must hold a list of strings, or of objects with the key 'prompt'")
    return [_item(path, f"item {number}", item) for number, item in enumerate(content)]


def _read_jsonl(path: Path, text: str) -> _Rows:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(_item(path, f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"prompt file {path}, line {number}, is not valid JSON: {error}") from None
    return found


def _item(path: Path, place: str, item: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(item, str):
        return place, {"prompt": item}
    if isinstance(item, Mapping) and any(isinstance(item.get(key), str) for key in _TEXT_KEYS):
        return place, item
    raise ValueError(
        f"prompt file {path}, {place}: must be one of a list of strings, or of objects with the key 'prompt'; found "
        f"{json.dumps(item, ensure_ascii=False)[:80]}"
    )


_READERS: dict[str, Callable[[Path, str], _Rows]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}"
