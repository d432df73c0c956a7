"""Reads finished run directories for a comparison, and groups them into sweeps.

A sweep holds the runs that differ only in numbers among one method's options. Whatever else differs makes another
sweep: a policy inside, a word or a switch among the options (`storage: residual`), the engine's options, threads, device.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fsframework.config.grid import plain
from fsframework.run.compare_sweep import Clip, Sweep
from fsframework.run.report_data import RunData

NEUTRAL = ("name", "output", "tracking", "metrics", "plugins", "reference", "prompts", "seeds", "sampling", "policy",
           "model.name", "model.dtype", "model.device", "launch.num_processes")  # fmt: skip
"""Config keys (with all below them) that make no other method: they change no result, or are compared by what came of them
(`Run.reference`, `device`)."""


SCHEDULER = "sampling.scheduler"


@dataclass(frozen=True)
class Run:
    """One finished run directory."""

    folder: Path
    group: str | None
    """The name of its `cells` entry, if it was found through a grid."""
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    """metrics.json."""
    records: list[dict[str, Any]]
    """The lines of videos.jsonl."""
    flat: dict[str, str] = field(repr=False, default_factory=dict)
    """The config as dotted keys and plain text."""

    @functools.cached_property
    def clips(self) -> list[Clip]:
        """Prompt and seed of each video."""
        return [(str(r["prompt"]), int(r["seed"])) for r in self.records]

    @property
    def policy(self) -> str:
        """The policy's name, with those inside it: `forecast(static)`."""
        return _policy_name(self.config.get("policy"))

    @property
    def clock(self) -> str:
        """`cpu_seconds` or `wall_seconds`: what its speedup was taken from."""
        timing = self.metrics.get("timing")
        text = str(timing.get("clock_of_speedup", "")) if isinstance(timing, Mapping) else ""
        return "wall_seconds" if text.startswith("wall") else "cpu_seconds"

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return str(self.metrics.get("device") or self.environment.get("device") or "unknown").partition(":")[0]

    @functools.cached_property
    def reference(self) -> dict[str, Any]:
        """What decides which full-compute videos this run is compared with; rows side by side must agree in all of it."""
        sampling = self.metrics.get("sampling")
        sampling = sampling if isinstance(sampling, Mapping) else self.config.get("sampling") or {}
        prompts = sorted({prompt for prompt, _ in self.clips})
        return {
            "model": self.metrics.get("model_fingerprint") or self.flat.get("model.name") or self.flat.get("model"),
            "dtype": self.metrics.get("dtype"),
            **{f"sampling.{key}": value for key, value in sampling.items()},
            SCHEDULER: self.value(SCHEDULER),
            "prompts": prompts,
            "seeds": sorted(self.clips),
        }

    def value(self, key: str) -> str | None:
        """A config key in plain text; None if it is not there."""
        return self.flat.get(key)


def read_run(folder: Path, group: str | None = None) -> Run:
    """One finished run.

    Raises:
        ValueError: it is no run directory, is not finished, or its files disagree; says which.
    """
    from omegaconf import OmegaConf

    missing = [name for name in ("config.yaml", "metrics.json", "videos.jsonl") if not (folder / name).is_file()]
    if missing:
        stopped = (folder / "config.yaml").is_file()
        hint = "It was not finished: `fsf run` it again." if stopped else "Give folders that `fsf run` printed."
        raise ValueError(f"{folder} has no {missing[0]}. {hint}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        lines = (folder / "videos.jsonl").read_text(encoding="utf-8").splitlines()
        records = sorted((json.loads(line) for line in lines if line.strip()), key=lambda record: int(record["index"]))
        file = folder / "environment.json"
        environment = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} can not be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(metrics, dict):
        raise ValueError(f"{folder}: config.yaml and metrics.json must hold keys and values")
    if len(records) != metrics.get("num_videos", len(records)) or not records:
        raise ValueError(
            f"{folder} has {len(records)} videos in videos.jsonl and {metrics.get('num_videos')} in metrics.json"
        )
    tree = {str(key): value for key, value in config.items()}
    return Run(folder, group, tree, environment, metrics, records, flatten(tree))


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs of run directories, grid folders (`runs/_ablations/NAME`) and grid files; each run once.

    Returns:
        The runs, and sentences on cells of a grid that are not finished and so left out.

    Raises:
        ValueError: something is none of these, or no run is finished.
    """
    found: dict[Path, Run] = {}
    notes: list[str] = []
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            rows, runs_dir, name = _cells_of_file(path)
        elif (path / "ablation.json").is_file():
            content = json.loads((path / "ablation.json").read_text(encoding="utf-8"))
            rows, runs_dir, name = content["cells"], path.resolve().parents[1], str(content["name"])
        else:
            found.setdefault(path.resolve(), read_run(path))
            continue
        left_out = [row for row in rows if row["state"] != "finished"]
        if left_out:
            notes.append(
                f"{len(left_out)} of {len(rows)} cells of the grid {name} are left out: "
                + ", ".join(f"{row['cell']} ({row['state']})" for row in left_out)
            )
        for row in rows:
            if row["state"] == "finished" and row["same_as"] is None:
                folder = runs_dir / row["directory"]
                found.setdefault(folder.resolve(), read_run(folder, row["group"]))
    if not found:
        raise ValueError("there is no finished run to compare" + "".join(f"; {note}" for note in notes))
    name_schedulers(list(found.values()))
    return list(found.values()), notes


def name_schedulers(runs: Sequence[Run]) -> None:
    """Give each run the config key `sampling.scheduler`: its class, with the settings in which runs of that class differ.

    A run of an earlier release did not record it. It was sampled as its checkpoint is, so a run of the same model that
    chose no other says what that is; without one the key stays away.
    """
    chosen = {id(run): run.flat.get(f"{SCHEDULER}.name") is not None for run in runs}
    recorded = {id(run): run.metrics["scheduler"] for run in runs if isinstance(run.metrics.get("scheduler"), Mapping)}
    usual = {run.reference["model"]: recorded[id(run)] for run in runs if id(run) in recorded and not chosen[id(run)]}
    known = {id(run): recorded.get(id(run)) or usual.get(run.reference["model"]) for run in runs}
    settings = {number: flatten(found.get("options") or {}) for number, found in known.items() if found}
    for run in runs:
        found = known[id(run)]
        run.__dict__.pop("reference", None)  # it was made without the key
        if found is None:
            run.flat.pop(SCHEDULER, None)
            continue
        alike = [settings[n] for n, other in known.items() if other and other["name"] == found["name"]]
        keys = dict.fromkeys(key for one in alike for key in one)
        own = [key for key in keys if len({one.get(key) for one in alike}) > 1]
        words = ", ".join(f"{key}={settings[id(run)].get(key, 'not set')}" for key in own)
        run.flat[SCHEDULER] = f"{found['name']}({words})" if words else str(found["name"])


def _cells_of_file(path: Path) -> tuple[list[dict[str, Any]], Path, str]:
    from fsframework.config.grid import load_ablation
    from fsframework.run.ablation import plan_cells
    from fsframework.run.ablation_book import Book

    ablation = load_ablation(path)
    book = Book(ablation, plan_cells(ablation))
    return book.rows(), book.runs_dir, ablation.name


@dataclass(frozen=True)
class Series:
    """A sweep with the runs it is made of."""

    sweep: Sweep
    runs: list[Run]
    """In the order of `sweep.settings`."""
    swept: list[str]
    """The options that vary within it, such as `policy.gamma`."""


def group(runs: Sequence[Run], split: Sequence[str] = (), named: Mapping[str, str] | None = None) -> list[Series]:
    """Runs as sweeps, in the order in which they come.

    Args:
        runs: that stand side by side.
        split: config keys whose values make sweeps of their own, such as `policy.recompute_every` or `name`.
        named: name of a sweep -> pattern of the run directories in it, such as `ours-*`.

    Raises:
        ValueError: a split that no run has, a pattern that fits none.
    """
    for key in split:
        if all(run.value(key) is None for run in runs):
            raise ValueError(f"no run has the config key {key!r}. {_nearest(key, runs)}")
    fits = {name: [run for run in runs if fnmatch.fnmatch(run.folder.name, p)] for name, p in (named or {}).items()}
    for name, members in fits.items():
        if not members:
            raise ValueError(f"no run directory is named like {(named or {})[name]!r}, for {name}")
    differing = _differing(runs)
    grouped: dict[Key, list[Run]] = {}
    for run in runs:
        given = next((name for name, members in fits.items() if run in members), None)
        base = given or run.group or run.policy
        identity = () if given else tuple(_identity(run, split, differing).items())
        grouped.setdefault((base, identity), []).append(run)
    return [_series(_label(key, list(grouped)), members) for key, members in grouped.items()]


def _identity(run: Run, split: Sequence[str], differing: Sequence[str]) -> dict[str, str]:
    """What makes runs of one policy another sweep: key -> value."""
    words = {}
    for key, value in leaves(run.config.get("policy"), "policy").items():
        if isinstance(value, (str, bool)):
            words[key] = plain(value)
    words |= {key: run.value(key) or "not set" for key in differing}
    words |= {key: run.value(key) or "not set" for key in split}
    reference = {key: value for key, value in run.reference.items() if key not in ("prompts", "seeds")}
    return words | {"device": run.device} | {key: plain(value) for key, value in reference.items()}


def _differing(runs: Sequence[Run]) -> list[str]:
    """Config keys outside of `NEUTRAL` that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.flat)
    own = [key for key in keys if not any(key == n or key.startswith(f"{n}.") for n in NEUTRAL)]
    return [key for key in own if len({run.value(key) for run in runs}) > 1]


Key = tuple[str, tuple[tuple[str, str], ...]]
"""Policy or cell, and what else makes it a sweep of its own."""


def _label(key: Key, all_of: Sequence[Key]) -> str:
    """The sweep's name: the policy or the grid's cell, and what tells it from others of that name."""
    base, own = key[0], dict(key[1])
    others = [dict(identity) for name, identity in all_of if name == base]
    telling = [k for k in own if any(other.get(k) != own[k] for other in others)]
    telling = [k for k in telling if not k.endswith(".name")] or telling  # the policy's name says who is inside
    return ", ".join([base, *(f"{k.removeprefix('policy.')}={own[k]}" for k in telling)])


def _series(name: str, runs: Sequence[Run]) -> Series:
    """One sweep, its settings from little compute to much."""
    ordered = sorted(runs, key=lambda run: float(np.mean([_share(record) for record in run.records])))
    options = [leaves(run.config.get("policy"), "policy") for run in ordered]
    keys = dict.fromkeys(key for leaves in options for key in leaves)
    swept = [key for key in keys if len({plain(leaves.get(key)) for leaves in options}) > 1]
    if swept:
        labels = [", ".join(f"{k.removeprefix('policy.')}={plain(o.get(k))}" for k in swept) for o in options]
    else:
        names = [str((run.config.get("policy") or {}).get("name", "unknown")) for run in ordered]
        shown = [RunData(run.folder, "", config=run.config, policy=name).options for run, name in zip(ordered, names)]
        labels = [", ".join(f"{k}={plain(v)}" for k, v in own.items()) for own in shown]
    everywhere = set.intersection(*(set(run.clips) for run in ordered))
    common = [clip for clip in ordered[0].clips if clip in everywhere]
    metrics = list(dict.fromkeys(key for run in ordered for record in run.records for key in record["metrics"]))
    tables = [dict(zip(run.clips, run.records)) for run in ordered]
    read = lambda what: np.array([[what(t[clip], run) for t, run in zip(tables, ordered)] for clip in common])
    reference = read(lambda record, run: _number(record.get(f"reference_{run.clock}")))
    seconds = read(lambda record, run: _number(record.get(run.clock)))
    timed = ~np.isnan(reference)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_reference = np.nansum(reference, axis=1) / timed.sum(axis=1)
    quality = {name: read(lambda record, run, name=name: _number(record["metrics"].get(name))) for name in metrics}
    sweep = Sweep(
        name, labels, common, read(lambda record, run: _share(record)), seconds / reference, mean_reference, quality
    )
    return Series(sweep, ordered, swept)


def _share(record: Mapping[str, Any]) -> float:
    return float(record["flops_executed"]) / float(record["flops_full"])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _policy_name(policy: Any) -> str:
    if not isinstance(policy, Mapping):
        return str(policy or "unknown")
    inside = [value for value in policy.values() if isinstance(value, Mapping)]
    inside += [
        item for value in policy.values() if isinstance(value, list) for item in value if isinstance(item, Mapping)
    ]
    names = [_policy_name(one) for one in inside if "name" in one]
    return f"{policy.get('name', 'unknown')}({', '.join(names)})" if names else str(policy.get("name", "unknown"))


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a tree; lists of mappings by number."""
    if isinstance(tree, Mapping) and tree:
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    below = f"{prefix}." if prefix else ""
    return {key: leaf for name, value in items for key, leaf in leaves(value, below + name).items()}


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys with values in plain text."""
    return {key: plain(value) for key, value in leaves(tree).items()} if tree else {}


def _nearest(key: str, runs: Sequence[Run]) -> str:
    import difflib

    known = sorted({known for run in runs for known in run.flat})
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "See config.yaml in a run directory."
