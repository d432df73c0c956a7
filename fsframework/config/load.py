"""From a YAML file and `key=value` overrides to a checked `RunConfig`: defaults <- file <- overrides, strict."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsframework.config.schema import ARTIFACT, CHOICES, LISTS, MINIMUM, SHORTHANDS, RunConfig

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*")
_INDEX = re.compile(r"\[(\d+)\]")
PROMPT_FILES = (".txt", ".csv", ".json", ".jsonl")
_WORDS = {
    "converted to Integer": "a whole number",
    "converted to Float": "a number",
    "a valid bool": "true or false",
    "converted to String": "a string",
    "not Optional": "set; null is not possible",
}


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file and `section.key=value` overrides describe; without a file, of the defaults.

    Paths in the file are relative to the file: `plugins`, and a prompt file or a policy's `artifact` unless it only
    exists relative to the working directory. They come back absolute.

    Raises:
        ValueError: missing or malformed file, unknown key (with the nearest name), wrong type or value out of range;
            one sentence that names the key and where it was written.
    """
    sources: list[tuple[Mapping[str, Any], str]] = []
    folder = Path.cwd()
    if path is not None:
        folder = Path(path).resolve().parent
        sources.append((read_yaml(path), str(path)))
    return build_config([*sources, *parse_overrides(overrides)], folder, str(path or "the overrides"))


def build_config(sources: Sequence[tuple[Mapping[str, Any], str]], folder: Path, what: str = "the config") -> RunConfig:
    """The run that several sources describe, each over those before it: (content, where it was written).

    Relative paths are relative to `folder`, as in `load_config`.

    Raises:
        ValueError: as `load_config`.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.structured(RunConfig)
    for content, where in sources:
        _merge(merged, content, where)
    try:
        config = OmegaConf.to_object(merged)
    except Exception as error:  # an interpolation ${...} that leads nowhere
        raise ValueError(f"{what}: {_first_line(error)}") from None
    assert isinstance(config, RunConfig)
    _check_values(config)
    return _with_absolute_paths(config, folder)


def parse_overrides(overrides: Sequence[str]) -> list[tuple[Mapping[str, Any], str]]:
    """`section.key=value` texts as sources of `build_config`."""
    return [(_parse_override(text), f"the override {text!r}") for text in overrides]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, interpolations kept."""
    from omegaconf import OmegaConf

    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the YAML file in it, such as {file / 'run.yaml'}")
    if not file.is_file():
        raise ValueError(f"no such file: {file}{_similar_files(file)}")
    try:
        loaded = OmegaConf.load(file)
        content = OmegaConf.to_container(loaded, resolve=False)
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise ValueError(f"{file}{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold `key: value` lines at its top level; found a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as nested plain dictionaries."""
    return dataclasses.asdict(config)


def nearest_key(name: str, known: Sequence[str]) -> str:
    """`Did you mean 'x'? Known: ...`, as every unknown-name error ends."""
    # The registry has the same sentence; importing it from core would import torch.
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}."


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    key = _INDEX.sub(r".\1", key)  # entries of a list, as in policy.policies[0].interval
    if not equals or not _OVERRIDE.fullmatch(key) or ".." in key or key.endswith("."):
        raise ValueError(f"override {text!r} is not of the form section.key=value, such as policy.gamma=0.25")
    from omegaconf import OmegaConf

    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]), resolve=False)
    except Exception as error:
        raise ValueError(f"override {text!r}: the value is not valid YAML: {_first_line(error)}") from None
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def _merge(into: Any, content: Mapping[str, Any], where: str) -> None:
    """Merge one source into the structured config, with errors that say where."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    content, given = dict(content), content.get("policy")
    for section, name in SHORTHANDS.items():
        if isinstance(content.get(section), str):
            content[section] = {name: content[section]}
    if isinstance(content.get("prompts"), list):
        content["prompts"] = {"texts": content["prompts"]}
    prompts = content.get("prompts")
    if isinstance(prompts, dict) and prompts.get("set") is not None and prompts.get("texts") is None:
        into.prompts.texts = None  # a set or file named later is meant instead of the texts listed before
    policy = content.get("policy")
    if isinstance(policy, list):
        several = ", ".join(map(str, policy))
        raise ValueError(
            f"{where}: policy is one policy; for several write policy={{name: combine, policies: [{several}]}}"
        )
    if isinstance(policy, Mapping):
        shorthand = isinstance(given, str)  # replaces the block, options included
        old = {} if shorthand else OmegaConf.to_container(into.policy, resolve=False)
        content["policy"], into.policy = _over(old, policy, "policy", where), {}
    _check_keys(content, RunConfig, "", where)
    if isinstance(content.get("sampling"), Mapping) and "scheduler" in content["sampling"]:
        content["sampling"] = {
            **content["sampling"],
            "scheduler": _scheduler(into, content["sampling"]["scheduler"], where),
        }
        into.sampling.scheduler = None
    for key, value in content.items():
        try:
            into.merge_with(OmegaConf.create({key: value}))
        except OmegaConfBaseException as error:
            raise ValueError(_type_sentence(error, key, content, where)) from None


def _scheduler(into: Any, given: Any, where: str) -> dict[str, Any] | None:
    """What a source makes of `sampling.scheduler`: a name alone, options over those before, or null."""
    from omegaconf import OmegaConf

    if given is None:
        return None
    if isinstance(given, str):
        return {"name": given}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where}: sampling.scheduler must be a scheduler, such as {{name: DDIMScheduler}}; found {given!r}"
        )
    old = into.sampling.scheduler
    new: dict[str, Any] = _over(
        None if old is None else OmegaConf.to_container(old, resolve=False), given, "sampling.scheduler", where
    )
    return new


def _over(old: Any, new: Any, key: str, where: str) -> Any:
    """What `new` makes of a policy's block, or of a value in it: mappings over mappings, entries of a list by their number.

    A block with another `name` replaces the old one, for another policy has other options.
    """
    if not isinstance(new, Mapping):
        return new
    if isinstance(old, str) and "name" not in new:
        old = {"name": old}  # a policy's name alone
    if isinstance(old, list):
        out = list(old)
        for index, value in new.items():
            if not str(index).isdigit():
                raise ValueError(
                    f"{where}: {key} is a list; give it whole, {key}=[...], or an entry by its number, {key}.0"
                )
            if int(index) >= len(out):
                raise ValueError(f"{where}: {key} has no entry {index}; its {len(out)} entries count from 0")
            out[int(index)] = _over(out[int(index)], value, f"{key}[{index}]", where)
        return out
    if not isinstance(old, Mapping) or new.get("name", old.get("name")) != old.get("name"):
        old = {}
    return {**old, **{name: _over(old.get(name), value, f"{key}.{name}", where) for name, value in new.items()}}


def _check_keys(content: Mapping[str, Any], schema: Any, prefix: str, where: str) -> None:
    hints = {f.name: f.default_factory for f in dataclasses.fields(schema)}
    types = {f.name: str(f.type) for f in dataclasses.fields(schema)}
    for key, value in content.items():
        if key not in hints:
            known = [prefix + name for name in hints]
            raise ValueError(f"{where}: unknown key {prefix + str(key)!r}. {nearest_key(prefix + str(key), known)}")
        section_class = hints[key]
        if prefix + key in LISTS and not _is_list_of_strings(value):
            raise ValueError(f"{where}: {prefix}{key} must be a list of strings, such as [a, b]; found {value!r}")
        if isinstance(value, bool) and types[key].startswith("str"):
            # YAML reads on, off, yes and no as true and false.
            raise ValueError(f"{where}: {prefix}{key} must be a string; found {value}: put the word in quotes")
        if isinstance(section_class, type) and dataclasses.is_dataclass(section_class):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {prefix}{key} is a section of keys, found {value!r}")
            _check_keys(value, section_class, f"{prefix}{key}.", where)


def _is_list_of_strings(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _type_sentence(error: Any, section: str, content: Mapping[str, Any], where: str) -> str:
    key = str(getattr(error, "full_key", None) or section)
    message = _first_line(error)
    value: Any = content
    for part in re.split(r"[.\[\]]+", key.rstrip("]")):
        value = value.get(part) if isinstance(value, Mapping) else value
    wanted = next((words for name, words in _WORDS.items() if name in message), None)
    if wanted is None:
        return f"{where}: {key}: {message}"
    return f"{where}: {key} must be {wanted}; found {value!r}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _leaves(getattr(value, f.name), f"{prefix}{f.name}.")
    else:
        yield prefix.rstrip("."), value


def _check_values(config: RunConfig) -> None:
    for key, value in _leaves(config):
        if value is None:
            continue
        if key in CHOICES and value not in CHOICES[key]:
            raise ValueError(f"{key}={value!r} is not possible. {nearest_key(str(value), CHOICES[key])}")
        if key in MINIMUM and value < MINIMUM[key]:
            raise ValueError(f"{key}={value} must be at least {MINIMUM[key]:g}")
    if not re.fullmatch(r"[\w][\w.+-]*", config.name):
        raise ValueError(f"name={config.name!r} becomes a folder name: use letters, digits, '-', '_' and '.'")
    if not isinstance(config.policy.get("name"), str):
        raise ValueError("policy needs a name, such as policy: {name: foresight, gamma: 0.5}")
    scheduler = config.sampling.scheduler
    if scheduler is not None and not isinstance(scheduler.get("name"), str):
        raise ValueError("sampling.scheduler needs a name, such as sampling.scheduler: {name: DDIMScheduler}")
    if config.prompts.texts is not None and not [t for t in config.prompts.texts if t.strip()]:
        raise ValueError("prompts.texts holds no prompt")


def _with_absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    plugins = [str(beside(folder, name)) for name in config.plugins]
    for name, path in zip(config.plugins, plugins):
        if not Path(path).is_file():
            raise ValueError(f"plugins: no such file: {name} (looked in {folder}){_similar_files(Path(path))}")
    prompts = config.prompts
    if prompts.texts is None and prompts.set.endswith(PROMPT_FILES):
        prompts = dataclasses.replace(prompts, set=str(beside(folder, prompts.set)))
    policy = with_absolute_artifacts(config.policy, folder)
    return dataclasses.replace(config, plugins=plugins, prompts=prompts, policy=policy)


def with_absolute_artifacts(value: Any, folder: Path) -> Any:
    """A policy's block with the path under `artifact` absolute, also in the policies inside it."""
    if isinstance(value, list):
        return [with_absolute_artifacts(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: with_absolute_artifacts(item, folder) for key, item in value.items()}
    if isinstance(out.get(ARTIFACT), str):
        out[ARTIFACT] = str(beside(folder, out[ARTIFACT]))
    return out


def beside(folder: Path, name: str) -> Path:
    """The absolute path of `name` in `folder`, or in the working directory if it exists only there."""
    beside = (folder / Path(name).expanduser()).resolve()
    here = Path(name).resolve()
    return here if here.exists() and not beside.exists() else beside


def _similar_files(file: Path) -> str:
    folder = file.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix == file.suffix) if folder.is_dir() else []
    close = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
    return f". Did you mean {folder / close[0]}?" if close else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
