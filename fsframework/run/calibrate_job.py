"""A calibration that was checked, before anything of it is written."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsframework
from fsframework.run import artifacts, launch
from fsframework.run.calibrate_store import Records
from fsframework.run.job import pixels_of
from fsframework.run.observe import observe_run, without_reuse_warnings
from fsframework.run.resolve import Plan, policy_options, policy_source_digest, sampling_of, source_digest

if TYPE_CHECKING:
    from fsframework.core import Calibration, LoadedModel, ReusePolicy, Run


@dataclass
class Job:
    """A calibration that was checked, before anything of it is written."""

    plan: Plan
    model: LoadedModel
    sampling: dict[str, Any]
    calibration: Calibration
    run: Run
    rollouts: dict[str, ReusePolicy[Any]]
    records: Records
    key: dict[str, Any]
    artifact: Path
    world: launch.World

    @property
    def reference(self) -> str:
        """The first rollout, with which the others are compared."""
        return next(iter(self.rollouts))

    def all_records(self) -> dict[str, list[dict[str, Any]]]:
        """The records of all rollouts so far, over all clips."""
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in self.rollouts}
        for name, found in records.items():
            for clip in self.plan.clips:
                record = self.records.load(name, clip)
                if record is None:
                    raise RuntimeError(f"{self.records.path(name, clip)} is missing; the same command makes it")
                found.append(record)
        return records


def prepare(
    plan: Plan, calibration: Calibration, model: LoadedModel, wanted_path: str | None, world: launch.World
) -> Job:
    """Observe the run, name the rollouts, and check all of it; writes nothing.

    Raises:
        ValueError: the calibration or a rollout refuses the run, or the artifact's place is taken by something else.
    """
    config, name = plan.config, plan.policy_name
    sampling = sampling_of(config, model)
    run = observe_run(model, plan.policy, plan.clips[0], sampling)
    rollouts = dict(calibration.rollouts(run))
    if not rollouts:
        raise ValueError(f"the calibration of {name} names no rollout")
    calibration.check(run, len(plan.clips))
    with without_reuse_warnings():
        for policy in rollouts.values():
            policy.start(dataclasses.replace(run, sites=model.bind().sites(policy)))
    key = {
        **pixels_of(plan, model, sampling),
        "fsframework": fsframework.__version__,
        "policy": name,
        "options": {k: v for k, v in plan.policy_options.items() if k not in calibration.fit_options},
        "rollouts": {rollout: _describe(policy) for rollout, policy in rollouts.items()},
        "code": sorted({source_digest(calibration), *map(policy_source_digest, [plan.policy, *rollouts.values()])}),
        "engine": dataclasses.asdict(config.engine),
    }
    label = f"{name}-{_file_name(model.name)}"
    if wanted_path is not None:
        path = Path(wanted_path).expanduser()
    else:
        clips = [(clip.prompt, clip.seed) for clip in plan.clips]
        identity = artifacts.digest({**key, "options": plan.policy_options, "clips": clips})
        path = Path("artifacts") / f"{label}-{run.num_steps}steps-{identity}.json"
    check_target(path, name)
    records = Records(path.parent / "_records" / f"{label}-{artifacts.digest(key)}")
    return Job(plan, model, sampling, calibration, run, rollouts, records, key, path, world)


def _describe(policy: ReusePolicy[Any]) -> dict[str, Any]:
    """A rollout's policy by its class and options."""
    own = policy_options(policy) if dataclasses.is_dataclass(policy) else dict(vars(policy))
    return {"class": type(policy).__qualname__, **own}


def _file_name(name: str) -> str:
    """A model's name, repository or folder as part of a file name."""
    return re.sub(r"[^\w.]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-") or "model"


def check_target(path: Path, policy: str) -> dict[str, Any] | None:
    """What the artifact would take the place of; None if there is nothing.

    Raises:
        ValueError: something that may not be replaced is there: no artifact, one of another policy, or a picture that is
            of no calibration.
    """
    drawing = path.with_suffix(".svg")
    if drawing.exists() and not _is_picture(drawing):
        raise ValueError(f"{drawing} exists and is no picture of a calibration; choose another output.artifact")
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"policy", "values", "facts", "version"} <= set(content):
        raise ValueError(f"{path} exists and is no artifact; choose another output.artifact")
    if content["policy"] != policy:
        raise ValueError(
            f"{path} is an artifact of {content['policy']}, not of {policy}; choose another output.artifact, or remove it"
        )
    return content


def _is_picture(path: Path) -> bool:
    """Whether a calibration drew this; the picture's head says so."""
    try:
        with path.open(encoding="utf-8") as file:
            return 'class="calibration"' in file.read(500)
    except (OSError, UnicodeDecodeError):
        return False
