"""What differs between the rows of a comparison, as plain sentences; and which rows may stand side by side at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsframework.config.grid import plain
from fsframework.run.compare_data import NEUTRAL, Run, Series, flatten

BY = {
    "resolution": ("sampling.height", "sampling.width"),
    "num_steps": ("sampling.num_steps",),
    "num_frames": ("sampling.num_frames",),
    "guidance_scale": ("sampling.guidance_scale",),
    "scheduler": ("sampling.scheduler",),
    "model": ("model.name",),
}
"""Words for config keys that tables are often split by; any other config key may be written out."""
PROMPT = "prompt"
"""The word that splits videos instead of runs."""
ENVIRONMENT = ("device", "gpu", "cpu", "cpu_count", "threads", "omp_wait_policy", "platform", "git", "versions")
"""What is compared of environment.json."""
_NAMED = 3
"""Run directories named per value, before `and 5 more`."""


def blocks(runs: Sequence[Run], by: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each value of `by`, in rising order: `resolution 24 x 24`; one block named "" without it.

    Raises:
        ValueError: no run states that key.
    """
    words = [word for word in by if word != PROMPT]
    for word in words:
        for key in _keys([word]):
            if all(run.value(key) is None for run in runs):
                known = sorted({key for run in runs for key in run.flat})
                raise ValueError(
                    f"--by {word}: no run states {key!r} in its config.yaml. Use {', '.join([*BY, PROMPT])}, or a key of "
                    f"theirs, such as {', '.join([k for k in known if k.startswith('sampling.')][:4] or known[:4])}"
                )
    found: dict[tuple[tuple[str, ...], ...], list[Run]] = {}
    for run in runs:
        value = tuple(tuple(run.value(key) or "not set" for key in _keys([word])) for word in words)
        found.setdefault(value, []).append(run)
    name = lambda value: ", ".join(f"{word} {' x '.join(one)}" for word, one in zip(words, value))
    return {name(value): found[value] for value in sorted(found, key=lambda value: [_as_numbers(one) for one in value])}


def _keys(by: Sequence[str]) -> list[str]:
    """The config keys that words stand for."""
    return [key for word in by for key in BY.get(word, (word,))]


def _as_numbers(values: tuple[str, ...]) -> tuple[tuple[int, float, str], ...]:
    out = []
    for value in values:
        try:
            out.append((0, float(value), value))
        except ValueError:
            out.append((1, 0.0, value))
    return tuple(out)


def check_references(runs: Sequence[Run], block: str = "") -> None:
    """Refuse rows that are compared with different full-compute videos.

    Raises:
        ValueError: the model's files, dtype, sampling, prompts or seeds differ; names each with its values and what to do.
    """
    found = _differing_references(runs)
    if not found:
        return
    lines = "".join(f"\n  {_sentence(key, values)}" for key, values in found.items())
    words = sorted({word for word, keys in BY.items() for key in found if key in keys or key == word})
    split = " or ".join(f"--by {word}" for word in words)
    where = f" with {block}" if block else ""
    raise ValueError(
        f"the runs{where} are not compared with the same full-compute videos, so they do not belong side by side:{lines}\n"
        f"{f'Split them with {split}, g' if split else 'G'}ive fewer runs, or say --mixed-references to compare them anyway"
    )


def _differing_references(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[Run]]]]:
    """Reference facts that are not the same in all runs: key -> values in short, each with its runs."""
    keys = dict.fromkeys(key for run in runs for key in run.reference)
    found = {key: _by_value(runs, lambda run, key=key: plain(run.reference.get(key))) for key in keys}
    found = {key: values for key, values in found.items() if len(values) > 1}
    if "prompts" in found:
        found.pop("seeds", None)
    shorts = {
        "prompts": lambda run: f"{len(run.reference['prompts'])} prompts, {_first(run.reference['prompts'])}",
        "seeds": lambda run: f"{len(run.clips)} videos, seeds {_first(sorted({seed for _, seed in run.clips}))}",
        "model": lambda run: f"{run.value('model.name') or run.value('model')} ({run.reference['model']})",
    }
    return {
        key: [(shorts[key](members[0]) if key in shorts else value, members) for value, members in values]
        for key, values in found.items()
    }


def _first(values: Sequence[Any], count: int = 4) -> str:
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")


def _by_value(runs: Sequence[Run], value: Any) -> list[tuple[str, list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(value(run)), []).append(run)
    return list(groups.items())


def _sentence(key: str, values: Sequence[tuple[str, list[Run]]]) -> str:
    """`launch.num_threads: 1 in 4 runs; 2 in static-9e01aa.` The commonest value is not spelled out by run."""
    most = max(len(members) for _, members in values)
    parts = []
    for value, members in values:
        names = [run.folder.name for run in members]
        few = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        parts.append(f"{value} in {f'{len(members)} runs' if len(members) == most and most > 1 else few}")
    return f"{key}: {'; '.join(parts)}."


def statements(series: Sequence[Series], mixed: bool) -> list[str]:
    """Sentences on what is the same and what is not, between rows that stand side by side."""
    runs = [run for one in series for run in one.runs]
    out = [_what_is_swept(one) for one in series]
    references = _differing_references(runs)
    if mixed and references:
        out.append(
            "**The rows are compared with different full-compute videos** (--mixed-references), so a difference between them "
            "need not be the method's:"
        )
        out += [_sentence(key, values) for key, values in references.items()]
    other = {**_config(runs), **_environment(runs)}
    out += [_sentence(key, values) for key, values in other.items()]
    if not references and not other:
        out.append(
            "Nothing else differs: model, dtype, sampling, prompts, seeds, options of the run, code, versions, machine."
        )
    elif not references:
        out.append("The same in all rows: model (by its files), dtype, sampling, prompts and seeds.")
    return out + _machine(runs)


def _what_is_swept(series: Series) -> str:
    sweep, options = series.sweep, [key.removeprefix("policy.") for key in series.swept]
    if len(sweep.settings) == 1:
        return f"{sweep.name}: one setting{f' ({sweep.settings[0]})' if sweep.settings[0] else ''}, so no line."
    if not options:
        return f"{sweep.name}: {len(sweep.settings)} runs with the same options."
    low, high = sweep.covers
    text = f"{sweep.name} varies {' and '.join(options)} in {len(sweep.settings)} settings"
    text += f", {low:.2f} to {high:.2f} of full compute."
    if len(set(sweep.settings)) < len(sweep.settings):
        text += " Some settings are there more than once; they count as settings of their own."
    if len(options) > 1 and len(sweep.settings) > 2:
        text += (
            f" Its line joins them in the order of their compute, whichever option it came from; "
            f"--split {series.swept[-1]} draws a line for each of its values."
        )
    return text


def _config(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[Run]]]]:
    """Config keys that differ, but for the policy and what `Run.reference` covers."""
    covered = [key for key in NEUTRAL if key not in ("reference", "plugins", "metrics", "model.device")]
    keys = dict.fromkeys(key for run in runs for key in run.flat)
    own = [key for key in keys if not any(key == n or key.startswith(f"{n}.") for n in covered)]
    found = {key: _by_value(runs, lambda run, key=key: run.value(key) or "not set") for key in own}
    return {key: values for key, values in found.items() if len(values) > 1}


def _environment(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[Run]]]]:
    flat = {id(run): flatten({k: v for k, v in run.environment.items() if k in ENVIRONMENT}) for run in runs}
    keys = dict.fromkeys(key for tree in flat.values() for key in tree)
    titles = {"git.revision": "git revision", "git.dirty": "uncommitted changes"}
    found = {}
    for key in keys:
        if key == "git.revision":
            value = lambda run, key=key: flat[id(run)].get(key, "not known")[:10]
        else:
            value = lambda run, key=key: flat[id(run)].get(key, "not known")
        values = _by_value(runs, value)
        if len(values) > 1:
            found[titles.get(key, key.replace("versions.", "version of "))] = values
    clocks = _by_value(runs, lambda run: "wall seconds" if run.clock == "wall_seconds" else "process CPU seconds")
    if len(clocks) > 1:
        found["clock of speedups"] = clocks
    return found


def _machine(runs: Sequence[Run]) -> list[str]:
    """Load at the start, resumed runs, and videos whose full compute was not timed beside them."""
    out = []
    loads = [
        (float(run.environment["load_average"]), run) for run in runs if run.environment.get("load_average") is not None
    ]
    cores = {run.environment.get("cpu_count") for run in runs} - {None}
    if loads:
        low, high = min(load for load, _ in loads), max(load for load, _ in loads)
        text = f"The load average at the start of a run was {low:g}" + (f" to {high:g}" if high > low else "")
        text += f" on {cores.pop()} cores" if len(cores) == 1 else ""
        out.append(f"{text}; other work on the machine makes seconds noisier, process CPU time less so.")
    resumed = [run.folder.name for run in runs if run.environment.get("resumed")]
    if resumed:
        out.append(f"Made in more than one go: {_first(resumed, _NAMED)}.")
    revisions = [run for run in runs if _resumed_elsewhere(run)]
    if revisions:
        names = _first([run.folder.name for run in revisions], _NAMED)
        out.append(f"Their git revision changed between the goes: {names}.")
    timed_beside: dict[tuple[int, int], list[str]] = {}
    for run in runs:
        timed = sum(record.get(f"reference_{run.clock}") is not None for record in run.records)
        if timed < len(run.records):
            timed_beside.setdefault((timed, len(run.records)), []).append(run.folder.name)
    for (timed, videos), folders in timed_beside.items():
        out.append(f"Full compute was timed beside {timed} of {videos} videos of {_first(folders, _NAMED)}.")
    return out


def _resumed_elsewhere(run: Run) -> bool:
    goes = [run.environment, *(run.environment.get("resumed") or [])]
    revisions = {str(go["git"].get("revision")) for go in goes if isinstance(go.get("git"), Mapping)}
    return len(revisions) > 1


def between_blocks(found: Mapping[str, Sequence[Run]], by: Sequence[str]) -> list[str]:
    """What differs between the tables besides the keys they are split by; nothing for one table."""
    if len(found) < 2:
        return []
    meant = {*_keys(by), *by}
    runs = [members[0] for members in found.values()]
    others = {key: values for key, values in _differing_references(runs).items() if key not in meant}
    return [
        f"Between the tables more than {' and '.join(by)} differs, so what changes from one to the next need not be its "
        f"doing: {_sentence(key, values)}"
        for key, values in others.items()
    ]
