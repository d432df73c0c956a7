"""The Weights & Biases mirror of a run. The files in the run directory are the truth: losing the mirror loses nothing.

Config, then a row per video with its clips as each is finished, and at the end the curves over steps, a table of all videos, the
totals and the artifacts (the trace, what the policy read, which checkpoint it was).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.config.schema import TrackingConfig
from fsframework.run.artifacts import RunDirectory

if TYPE_CHECKING:
    import pandas

_INIT_TIMEOUT_SECONDS = 20
"""How long an unreachable server may hold up a run that asked for `online`."""
_CURVES = ("reuse_fraction", "distance", "threshold")


class Tracker:
    """Sends one run to W&B. Any failure becomes one note, after which the tracker does nothing."""

    def __init__(self, run: Any, warn: Callable[[str], None]) -> None:
        self._run = run
        self._warn = warn
        self._logged: set[int] = set()
        self._list: Path | None = None

    @classmethod
    def start(
        cls, config: TrackingConfig, directory: RunDirectory, facts: Mapping[str, Any], warn: Callable[[str], None]
    ) -> Tracker:
        """Begin the mirror in `<run directory>/wandb`; a tracker that does nothing if it is disabled or fails."""
        if config.wandb == "disabled":
            return cls(None, warn)
        # With an unwritable folder wandb would go to /tmp and say nothing.
        if not os.access(directory.path, os.W_OK):
            warn(f"not tracked by W&B: {directory.path} is not writable")
            return cls(None, warn)
        try:
            import wandb

            settings = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_TIMEOUT_SECONDS,
                x_disable_stats=True,
                save_code=False,
                disable_git=True,
            )
            run = wandb.init(
                project=config.project,
                group=config.group,
                job_type=config.job_type,
                name=directory.path.name,
                # A run that goes on goes on in W&B too. Offline, every attempt leaves a whole mirror under this id.
                id=directory.path.name[-120:],
                resume="allow",
                dir=str(directory.path),
                mode=config.wandb,  # type: ignore[arg-type]
                config={**facts, "run": _config_of(directory)},
                settings=settings,
                reinit="create_new",
            )
        except Exception as error:
            warn(f"not tracked by W&B: {type(error).__name__}: {_first_line(error)}")
            return cls(None, warn)
        tracker = cls(run, warn)
        tracker._try(lambda: tracker._begin(directory.path / "wandb" / "logged.txt"))
        return tracker

    def _begin(self, path: Path) -> None:
        self._run.define_metric("step/*", step_metric="step/index")
        self._remember(path)

    def _remember(self, path: Path) -> None:
        """Keep a list of the videos that were logged; those of an attempt that the server goes on with are not logged
        again."""
        if self._run.resumed and path.is_file():
            self._logged = {int(line) for line in path.read_text().split() if line.isdigit()}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        self._list = path

    def log_video(self, record: Mapping[str, Any], folder: Path) -> None:
        """Numbers and clips of one finished video; a second call for the same video does nothing."""
        if self._run is None or record["index"] in self._logged:
            return
        self._logged.add(record["index"])

        def send() -> None:
            import wandb

            payload: dict[str, Any] = {f"video/{name}": value for name, value in _numbers(record).items()}
            caption = f"{record['prompt']} (seed {record['seed']})"
            for name, file in (("method", record["file"]), ("reference", record["reference_file"])):
                if file:
                    # From a path: from an array wandb would need moviepy.
                    payload[f"clips/{name}"] = wandb.Video(str(folder / file), caption=caption, format="mp4")
            self._run.log(payload)
            if self._list is not None:
                with self._list.open("a") as file:
                    file.write(f"{record['index']}\n")

        self._try(send)

    def finish(
        self,
        directory: RunDirectory,
        records: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, Any],
        trace: Callable[[], pandas.DataFrame],
    ) -> None:
        """Log what this process did not see, the curves over steps, the table, the totals and the artifacts; close."""
        if self._run is None:
            return
        for record in records:
            self.log_video(record, directory.path)

        def send() -> None:
            import wandb

            for index, row in step_curves(trace()).iterrows():
                curves = {f"step/{name}": float(row[name]) for name in _CURVES if math.isfinite(row[name])}
                self._run.log({"step/index": index, **curves})
            columns, rows = video_table(records)
            self._run.log({"videos": wandb.Table(columns=columns, data=rows)})
            for name, entry in metrics.items():
                if isinstance(entry, Mapping) and "mean" in entry:
                    for part in ("mean", "low", "high"):
                        if entry[part] is not None and math.isfinite(entry[part]):
                            self._run.summary[name if part == "mean" else f"{name}.{part}"] = float(entry[part])
            for artifact in _artifacts(directory, metrics):
                self._run.log_artifact(artifact)

        self._try(send)
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """End the mirror; `exit_code` 1 marks a run that was stopped."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish(exit_code=exit_code)
            except Exception as error:
                self._warn(f"W&B did not finish: {type(error).__name__}: {_first_line(error)}")

    def _try(self, send: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            send()
        except Exception as error:
            self._warn(f"no longer tracked by W&B: {type(error).__name__}: {_first_line(error)}")
            self.close(exit_code=1)


def _config_of(directory: RunDirectory) -> Any:
    """The resolved config, as config.yaml has it; None if there is none."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(directory.config)) if directory.config.is_file() else None


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a video's record and its metrics, those without a value left out: W&B has no infinity either."""
    found = {k: v for k, v in record.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    found |= record["metrics"]
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def video_table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and a row per video: what it is, the facts of its prompt, its numbers; None where a video has no such value."""
    numbers = [_numbers(record) for record in records]
    facts = [f"fact/{name}" for name in dict.fromkeys(name for record in records for name in record.get("facts", {}))]
    names = [name for name in dict.fromkeys(name for row in numbers for name in row) if name not in ("index", "seed")]
    rows = []
    for record, row in zip(records, numbers):
        given = {f"fact/{name}": str(value) for name, value in record.get("facts", {}).items()}
        what = [record["index"], record["prompt"], record["seed"]]
        rows.append([*what, *(given.get(name) for name in facts), *(row.get(name) for name in names)])
    return ["index", "prompt", "seed", *facts, *names], rows


def _artifacts(directory: RunDirectory, metrics: Mapping[str, Any]) -> list[Any]:
    """The trace with the records; what the policy read, such as a calibration; and which checkpoint it was, without its
    weights."""
    import wandb

    name = directory.path.name
    trace = wandb.Artifact(f"trace-{name}", type="trace")
    for file in (directory.trace, directory.records, directory.config, directory.metrics):
        trace.add_file(str(file))
    found = [trace]
    if (read := directory.path / "artifacts").is_dir():
        calibration = wandb.Artifact(f"calibration-{name}", type="calibration", metadata={"policy": metrics["policy"]})
        calibration.add_dir(str(read))
        found.append(calibration)
    facts = {key: metrics.get(key) for key in ("model", "model_fingerprint", "dtype")}
    checkpoint = wandb.Artifact(f"checkpoint-{_slug(metrics['model'])}", type="checkpoint", metadata=facts)
    with checkpoint.new_file("checkpoint.json") as writer:
        writer.write(json.dumps(facts, indent=2) + "\n")
    return [*found, checkpoint]


def _slug(text: str) -> str:
    """A name that W&B takes for an artifact."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")[-100:]


def step_curves(trace: pandas.DataFrame) -> pandas.DataFrame:
    """Per step, over all videos, branches and sites: share of decisions that are not recomputes, mean distance and
    threshold (NaN where none was measured)."""
    frame = trace.assign(reuse_fraction=(~trace["decision"].isin(["recompute", "blend"])).astype(float))
    return frame.groupby("step")[list(_CURVES)].mean()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
