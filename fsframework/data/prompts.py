"""Prompt sets: where a run's captions come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One video to make: its running number, caption and seed."""

    index: int
    prompt: str
    seed: int


def _digits() -> list[str]:
    from fsframework.data import bouncing_digits

    # Motions alternate and digits advance, so the first prompts of the set already differ in both.
    return [bouncing_digits.caption(digit, motion) for digit, motion in bouncing_digits.all_pairs()]


SETS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "digits": ("20 captions of the bouncing digits, such as 'digit 6 is moving up and down'", _digits),
}
"""Name -> (one line, function that gives the prompts)."""


def load_prompts(name: str, texts: Sequence[str] | None = None, limit: int | None = None) -> list[str]:
    """The prompts of a set, of a .txt, .csv or .json file, or `texts` themselves; at most `limit`.

    A .txt file has a prompt per line (blank lines and lines starting with # do not count), a .csv file a column
    `prompt`, a .json file a list of strings or of objects with the key `prompt`.

    Raises:
        ValueError: unknown set, missing or malformed file, no prompt at all.
    """
    if texts is not None:
        prompts, source = [text.strip() for text in texts if text.strip()], "prompts.texts"
    elif name in SETS:
        prompts, source = SETS[name][1](), name
    elif Path(name).suffix in _READERS:
        prompts, source = _read_file(Path(name)), name
    else:
        import difflib

        close = difflib.get_close_matches(name, SETS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown prompt set {name!r}.{hint} Known: {', '.join(SETS)}; or give a .txt, .csv or .json file, or "
            f"prompts.texts=[...]."
        )
    if not prompts:
        raise ValueError(f"{source} holds no prompt")
    return prompts[:limit]


def plan_clips(prompts: Sequence[str], base_seed: int, per_prompt: int) -> list[Clip]:
    """The videos of a run, numbered from 0; video i has seed `base_seed + i`. Every prompt comes once per round."""
    rounds = [prompt for _ in range(per_prompt) for prompt in prompts]
    return [Clip(i, prompt, base_seed + i) for i, prompt in enumerate(rounds)]


def _read_file(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"no such prompt file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"prompt file {path} is not UTF-8 text") from None
    return [prompt.strip() for prompt in _READERS[path.suffix](path, text) if prompt.strip()]


def _read_txt(path: Path, text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _read_csv(path: Path, text: str) -> list[str]:
    rows = csv.DictReader(text.splitlines())
    if "prompt" not in (rows.fieldnames or ()):
        raise ValueError(f"prompt file {path} needs a column named 'prompt'; it has {', '.join(rows.fieldnames or ())}")
    return [row["prompt"] or "" for row in rows]


def _read_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"prompt file {path} is not valid JSON: {error}") from None
    items = content if isinstance(content, list) else [None]
    prompts = [item.get("prompt") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompt file {path} must hold a list of strings, or of objects with the key 'prompt'")
    return [str(prompt) for prompt in prompts]


_READERS: dict[str, Callable[[Path, str], list[str]]] = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json}
