"""The Weights & Biases mirror of a run. The files in the run directory are the truth: losing the mirror loses nothing."""

from __future__ import annotations

import math
import os
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
    """Sends one run to W&B: config, metrics and curves of every video, the files, the trace.

    Any failure becomes one note, after which the tracker does nothing.
    """

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
                config=dict(facts),
                settings=settings,
                reinit="create_new",
            )
            run.define_metric("step/*", step_metric="step/index")
            tracker = cls(run, warn)
            tracker._remember(directory.path / "wandb" / "logged.txt")
            return tracker
        except Exception as error:
            warn(f"not tracked by W&B: {type(error).__name__}: {_first_line(error)}")
            return cls(None, warn)

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

            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            numbers |= record["metrics"]
            payload: dict[str, Any] = {
                f"video/{k}": float(v) for k, v in numbers.items() if v is not None and math.isfinite(v)
            }
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
        """Log what this process did not see, the curves over steps, the totals and the trace as an artifact; close."""
        if self._run is None:
            return
        for record in records:
            self.log_video(record, directory.path)

        def send() -> None:
            import wandb

            for index, row in step_curves(trace()).iterrows():
                curves = {f"step/{name}": float(row[name]) for name in _CURVES if math.isfinite(row[name])}
                self._run.log({"step/index": index, **curves})
            for name, entry in metrics.items():
                if isinstance(entry, Mapping) and "mean" in entry:
                    for part in ("mean", "low", "high"):
                        if entry[part] is not None and math.isfinite(entry[part]):
                            self._run.summary[name if part == "mean" else f"{name}.{part}"] = float(entry[part])
            artifact = wandb.Artifact(f"trace-{directory.path.name}", type="trace")
            for file in (directory.trace, directory.records, directory.config, directory.metrics):
                artifact.add_file(str(file))
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


def step_curves(trace: pandas.DataFrame) -> pandas.DataFrame:
    """Per step, over all videos, branches and sites: share of decisions that are not recomputes, mean distance and
    threshold (NaN where none was measured)."""
    frame = trace.assign(reuse_fraction=(~trace["decision"].isin(["recompute", "blend"])).astype(float))
    return frame.groupby("step")[list(_CURVES)].mean()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
