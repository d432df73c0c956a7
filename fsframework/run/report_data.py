"""Reads run directories for the report. Whatever is missing or broken becomes a note, never an exception."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fsframework.metrics import METRICS, Interval
from fsframework.run.report_trace import TraceGrid, read_trace

Json = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One entry of metrics.json."""

    interval: Interval
    unit: str
    better: str
    """`higher` or `lower`."""


@dataclass(frozen=True)
class Clip:
    """One line of videos.jsonl. Files are None where they do not exist."""

    index: int
    prompt: str
    seed: int
    video: Path | None
    reference: Path | None
    metrics: dict[str, float]
    reuse_fraction: float


@dataclass
class RunData:
    """One run directory, as far as it could be read; `notes` says in sentences what could not."""

    folder: Path
    mark: str
    """The run's letter in the report: A, B, ..."""
    config: Json = field(default_factory=dict)
    config_text: str = ""
    """config.yaml as it stands."""
    environment: Json = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    clips: list[Clip] = field(default_factory=list)
    trace: TraceGrid | None = None
    policy: str = "unknown"
    model: str = "unknown"
    timing: dict[str, str] = field(default_factory=dict)
    """How its seconds were taken, from metrics.json."""
    remarks: list[str] = field(default_factory=list)
    """What the run says about its own numbers, from metrics.json."""
    notes: list[str] = field(default_factory=list)
    cell: str = ""
    """Its label in a grid; empty for a run by itself."""
    group: str | None = None
    """The name of its `cells` entry in a grid."""
    says_model: bool = False
    """Whether its name must say the model, because the report holds several."""

    @property
    def clock(self) -> str:
        """The clock of `speedup`: `wall` on a GPU, else `process CPU`."""
        return "wall" if self.timing.get("clock_of_speedup", "").startswith("wall") else "process CPU"

    @property
    def options(self) -> Json:
        """The policy's options that are not at their default; all of them for a policy that is not known here."""
        given = self.config.get("policy")
        given = {k: v for k, v in given.items() if k != "name"} if isinstance(given, dict) else {}
        defaults = _policy_defaults(self.policy)
        return {k: v for k, v in given.items() if k not in defaults or defaults[k] != v}

    @property
    def title(self) -> str:
        """What it is called in a few words: its name in the grid, else the policy."""
        return self.group or self.policy

    @property
    def names_policy(self) -> bool:
        """Whether the title holds the policy's name."""
        return self.policy in self.title.split()

    @property
    def label(self) -> str:
        """The policy with its non-default options, its name in the grid and the model where those say more:
        `foresight(gamma=2, storage=residual)`, `foresight N1R2(gamma=2) on tiny-latte`, `ours: foresight(gamma=2)`."""
        options = ", ".join(f"{k}={plain(v)}" for k, v in self.options.items())
        name = self.title if self.names_policy else f"{self.title}: {self.policy}"
        label = f"{name}({options})" if options else name
        return f"{label} on {self.model}" if self.says_model else label

    def mean(self, key: str) -> float:
        """The mean of a metric, NaN if it was not measured."""
        measure = self.measures.get(key)
        return measure.interval.mean if measure else math.nan

    def fact(self, *path: str) -> Any:
        """A value of the config, or of the environment if the config lacks it; None if neither has it."""
        for tree in (self.config, self.environment):
            value: Any = tree
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None


def plain(value: Any) -> str:
    """A config value as it would be typed: 2 for 2.0, true, residual."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def load_run(folder: Path, mark: str) -> RunData:
    """Read one run directory. Raises ValueError only if there is no such directory."""
    if not folder.is_dir():
        raise ValueError(f"no run directory {str(folder)!r}; give the folders that `fsf run` printed")
    run = RunData(folder, mark)
    run.config = _read(run, "config.yaml", _yaml)
    if run.config:
        run.config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    run.environment = _read(run, "environment.json", json.loads)
    rows = _read_rows(run)
    metrics = _read(run, "metrics.json", json.loads)
    policy = run.config.get("policy")
    run.policy = str((policy.get("name") if isinstance(policy, dict) else policy) or metrics.get("policy") or "unknown")
    model = run.config.get("model")
    run.model = str((model.get("name") if isinstance(model, dict) else model) or metrics.get("model") or "unknown")
    if not metrics and rows:
        metrics = _summary(run, rows)
    run.measures = {key: measure for key, value in metrics.items() if (measure := _measure(value))}
    timing = metrics.get("timing")
    run.timing = {str(k): str(v) for k, v in timing.items()} if isinstance(timing, dict) else {}
    remarks = metrics.get("notes")
    run.remarks = [str(remark) for remark in remarks] if isinstance(remarks, list) else []
    run.notes += _warnings(rows)
    run.clips = [clip for row in rows if (clip := _clip(folder, row))]
    missing = [clip.index for clip in run.clips if clip.video is None]
    if missing:
        run.notes.append(
            f"{len(missing)} of {len(run.clips)} video files are missing, the first of them for {missing[0]}."
        )
    path = folder / "trace.parquet"
    path = path if path.is_file() else folder / "trace.parts"  # of an interrupted run
    if not path.exists():
        run.notes.append("There is no trace.parquet: no heat map and no curves.")
    else:
        try:
            run.trace = read_trace(path)
        except Exception as error:  # a truncated file may fail anywhere inside the reader
            run.notes.append(f"{path.name} could not be read: {error}")
    return run


def _summary(run: RunData, rows: Sequence[Json]) -> Json:
    """What metrics.json would hold for the videos there are, for a run that did not come to write its own."""
    from fsframework.run.results import summarize

    known = {name: metric for _, metric in METRICS.items() for name in metric.value_names()}
    names = dict.fromkeys(key for row in rows for key in (row.get("metrics") or {}))
    metrics = {known[name]: None for name in names if name in known}
    device = str(run.fact("device") or "cpu").partition(":")[0]
    try:
        found = summarize(rows, [metric() for metric in metrics], device)
    except (KeyError, TypeError, ValueError) as error:
        run.notes.append(f"There is no metrics.json, and videos.jsonl does not allow to compute it: {error!r}.")
        return {}
    run.notes.append(f"The run was interrupted: its numbers are computed here from the {len(rows)} videos it finished.")
    return found


def _policy_defaults(name: str) -> Json:
    import fsframework.policies  # noqa: F401  registers the policies
    from fsframework.core import POLICIES

    if name not in POLICIES:
        return {}
    return {f.name: f.default for f in fields(POLICIES[name])}  # type: ignore[arg-type]


def _yaml(text: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(text))


def _read(run: RunData, name: str, parse: Callable[[str], Any]) -> Json:
    path = run.folder / name
    if not path.is_file():
        run.notes.append(f"There is no {name}.")
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # each parser has its own; the file is the user's
        run.notes.append(f"{name} could not be read: {error}")
        return {}
    if not isinstance(value, dict):
        run.notes.append(f"{name} holds {type(value).__name__} instead of keys and values.")
        return {}
    return value


def _read_rows(run: RunData) -> list[Json]:
    path = run.folder / "videos.jsonl"
    if not path.is_file():
        run.notes.append("There is no videos.jsonl: no values per video.")
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            bad += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if bad:
        run.notes.append(f"Unfinished lines of videos.jsonl, left out: {bad}.")
    return sorted(rows, key=lambda row: _number(row.get("index"), 0))


def _warnings(rows: Sequence[Json]) -> list[str]:
    """What the engine warned of while the videos were made, each once."""
    counts: dict[str, int] = {}
    for row in rows:
        found = row.get("warnings")
        for warning in dict.fromkeys(map(str, found)) if isinstance(found, list) else ():
            counts[warning] = counts.get(warning, 0) + 1
    return [f"Warning in {count} of {len(rows)} videos: {warning}" for warning, count in counts.items()]


def _measure(value: Any) -> Measure | None:
    if not isinstance(value, dict) or "mean" not in value:
        return None
    mean, low, high = (_number(value.get(k)) for k in ("mean", "low", "high"))
    n = _number(value.get("n"), 0)
    interval = Interval(mean, low, high, 0 if math.isnan(n) else int(n))
    return Measure(interval, str(value.get("unit", "")), str(value.get("better", "higher")))


def _clip(folder: Path, row: Json) -> Clip | None:
    index = _number(row.get("index"))
    if math.isnan(index):
        return None
    metrics = row.get("metrics")
    values = {str(k): _number(v) for k, v in metrics.items()} if isinstance(metrics, dict) else {}
    seed = _number(row.get("seed"), -1)
    return Clip(
        int(index),
        str(row.get("prompt", "")),
        -1 if math.isnan(seed) else int(seed),
        _find(folder, row.get("file")),
        _find(folder, row.get("reference_file")),
        values,
        _number(row.get("reuse_fraction")),
    )


def _find(folder: Path, name: Any) -> Path | None:
    if not isinstance(name, str) or not name:
        return None
    for path in (folder / name, folder / "videos" / name):
        if path.is_file():
            return path.resolve()
    return None


def _number(value: Any, default: float = math.nan) -> float:
    """A float; `default` for anything that is none. JSON may say "Infinity" or "inf"."""
    if value is None or isinstance(value, (dict, list)):
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
