"""The end of a calibration: the fit of its records, the artifact with where it came from, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsframework
from fsframework.config.load import to_dict
from fsframework.config.schema import ARTIFACT, RunConfig
from fsframework.run import artifacts, provenance
from fsframework.run.calibrate_job import Job, check_target
from fsframework.run.calibrate_picture import picture

if TYPE_CHECKING:
    from fsframework.core import Fit, Run

_PACKAGE = Path(fsframework.__file__).resolve().parent


@dataclass(frozen=True)
class Result:
    """What a calibration left on disk, and its numbers."""

    artifact: Path
    picture: Path
    records: Path
    policy: str
    model: str
    num_clips: int
    num_steps: int
    rollouts: Sequence[str]
    numbers: Mapping[str, float]
    recomputed_steps: int | None
    """Steps in which the policy recomputes everything with the artifact; None where it decides as it goes."""
    options: Mapping[str, Any]
    """Options of the policy to give with the artifact: those it was calibrated with, and those it needs besides."""
    wanting: str | None
    """What the policy says if the artifact alone is not enough for it."""
    replaced: str | None
    """What the artifact took the place of, if that was of another run."""

    def text(self) -> str:
        """What to print: the numbers, the files, and how to use them."""
        rollouts = self.rollouts[0] if len(self.rollouts) == 1 else f"{len(self.rollouts)} rollouts"
        lines = [
            f"{self.policy} calibrated on {self.model}: {_clips(self.num_clips)} of {self.num_steps} steps, {rollouts}"
        ]
        width = max((len(name) for name in self.numbers), default=0)
        lines += [f"  {name.ljust(width)}  {value:.6g}" for name, value in self.numbers.items()]
        if self.recomputed_steps is not None:
            lines.append(f"  with it everything is recomputed in {self.recomputed_steps} of {self.num_steps} steps")
        if self.replaced is not None:
            lines.append(f"note: {self.artifact} held {self.replaced}; that is replaced")
        if self.wanting is not None:
            lines.append(f"note: the artifact alone is not enough: {self.wanting}")
        options = "".join(f", {name}: {json.dumps(value)}" for name, value in self.options.items())
        block = f"{{name: {self.policy}, {ARTIFACT}: {self.artifact}{options}}}"
        lines += [
            f"picture:  {self.picture}",
            f"records:  {self.records}",
            f"artifact: {self.artifact}",
            f"use it:   policy: {block}",
            f"          fsf run CONFIG.yaml {shlex.quote(f'policy={block}')}",
        ]
        return "\n".join(lines)


def finish(job: Job, notes: Sequence[str]) -> Result:
    """Fit, check, write."""
    from fsframework.core import Artifact

    fit = job.calibration.fit(job.all_records(), job.run)
    values = _as_json(fit.values, job.plan.policy_name)
    numbers = {name: float(value) for name, value in fit.numbers.items()}
    artifact = Artifact(job.plan.policy_name, values, _facts(job.run), _provenance(job, numbers, notes))
    replaced = _replaced(check_target(job.artifact, job.plan.policy_name), artifact.facts)
    artifact.save(job.artifact)
    artifacts.write_text(job.artifact.with_suffix(".svg"), picture(fit, *_captions(job, numbers)))
    job.records.drop_latents()
    return as_result(job, numbers, *_rehearse(job, fit), replaced)


def as_result(
    job: Job,
    numbers: Mapping[str, float],
    recomputed_steps: int | None,
    options: Mapping[str, Any],
    wanting: str | None,
    replaced: str | None,
) -> Result:
    """What a calibration left on disk, with what only its end knows."""
    return Result(
        job.artifact,
        job.artifact.with_suffix(".svg"),
        job.records.folder,
        job.plan.policy_name,
        job.model.name,
        len(job.plan.clips),
        job.run.num_steps,
        list(job.rollouts),
        numbers,
        recomputed_steps,
        options,
        wanting,
        replaced,
    )


def _as_json(values: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """What will be read back: plain JSON of finite numbers."""
    try:
        plain = json.loads(json.dumps(values))
    except TypeError as error:
        raise ValueError(f"the fit of {policy} is not JSON: {error}") from None
    for place, value in _numbers_in(plain, "values"):
        if not math.isfinite(value):
            raise ValueError(
                f"the fit of {policy} gave {value} for {place}: the rollouts hold numbers that are not finite, or too few"
            )
    assert isinstance(plain, dict)
    return plain


def _numbers_in(value: Any, place: str) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in _numbers_in(item, f"{place}.{key}")]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in _numbers_in(item, f"{place}[{i}]")]
    return [(place, float(value))] if isinstance(value, (int, float)) else []


def _replaced(before: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> str | None:
    """In what the artifact that was there is of another run than the new one."""
    old = {} if before is None or not isinstance(before["facts"], dict) else before["facts"]
    names = [name for name in ("checkpoint", "scheduler", "num_steps", "latent_shape") if name in old]
    differences = [f"{name} {old[name]} (now {facts.get(name)})" for name in names if old[name] != facts.get(name)]
    return f"an artifact of {', '.join(differences)}" if differences else None


def _facts(run: Run) -> dict[str, Any]:
    """What the artifact is checked against later, and what else the run is known by."""
    known = {k: list(v) if isinstance(v, tuple) else v for k, v in run.facts.items() if k != "device"}
    plain = {k: v for k, v in known.items() if isinstance(v, (str, int, float, bool, list))}
    return {**plain, "num_steps": run.num_steps, "timesteps": list(run.timesteps)}


def _provenance(job: Job, numbers: Mapping[str, float], notes: Sequence[str]) -> dict[str, Any]:
    """Where the values come from."""
    scheduler = job.model.pipe.scheduler
    content = {
        "numbers": numbers,
        "model": {"name": job.model.name, "fingerprint": job.key["model"], "dtype": job.key["dtype"]},
        "sampler": {
            "class": type(scheduler).__name__,
            "config_digest": artifacts.digest(dict(scheduler.config)),
            "config": dict(scheduler.config),
        },
        "sampling": job.sampling,
        "clips": [{"prompt": clip.prompt, "seed": clip.seed} for clip in job.plan.clips],
        "policy_options": job.plan.policy_options,
        "rollouts": job.key["rollouts"],
        "notes": list(notes),
        "environment": {
            **provenance.environment(str(job.plan.device), _PACKAGE),
            "command": command_of(job.plan.config, job.plan.policy_name, job.artifact),
        },
    }
    plain: dict[str, Any] = json.loads(artifacts.to_json(content))
    return plain


def command_of(config: RunConfig, policy: str, artifact: Path) -> list[str]:
    """The command that asks for the same calibration, from whatever called it: what differs from the defaults."""
    given, usual = to_dict(config), to_dict(RunConfig())
    words = ["fsf", "calibrate", policy, config.model.name]
    for section, values in given.items():
        if section in ("name", "metrics", "reference", "tracking"):  # these mean nothing here
            continue
        if not isinstance(values, dict):
            words += [f"{section}={_override(values)}"] if values != usual[section] else []
            continue
        before = {} if section == "policy" else usual[section]
        words += [
            f"{section}.{key}={_override(value)}"
            for key, value in values.items()
            if f"{section}.{key}" not in ("policy.name", "model.name", "output.artifact", "output.runs_dir")
            and (section == "policy" or value != before[key])
        ]
    return [*words, f"output.artifact={artifact}"]


def _override(value: Any) -> str:
    """A value as an override of the command line."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./:@+-]+", value)
    return str(value) if plain else json.dumps(value)


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def _captions(job: Job, numbers: Mapping[str, float]) -> tuple[str, str]:
    """Title of the picture, and the lines below: what was set, and what the fit came to."""
    size = "x".join(str(job.sampling[key]) for key in ("num_frames", "height", "width") if job.sampling.get(key))
    title = f"{job.plan.policy_name} on {job.model.name}"
    conditions = [_clips(len(job.plan.clips)), f"{job.run.num_steps} steps", *([size] if size else [])]
    guidance = job.sampling.get("guidance_scale")
    if guidance is not None:
        conditions.append(f"guidance {guidance:g}")
    said = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
    return title, "\n".join([", ".join(conditions), *(["fit: " + ", ".join(said)] if said else [])])


def _rehearse(job: Job, fit: Fit) -> tuple[int | None, dict[str, Any], str | None]:
    """Start the policy with its artifact on the very run it was measured on.

    Returns:
        The steps in which it recomputes everything, the options to give with the artifact, and what it says if it can not
        be started without those that the fit proposes.
    """
    given = {key: value for key, value in job.plan.config.policy.items() if key not in ("name", ARTIFACT)}
    wanting: str | None = None
    for proposed in ({}, dict(fit.proposed)):
        try:
            policy = dataclasses.replace(
                job.plan.policy,  # type: ignore[type-var]
                **{ARTIFACT: str(job.artifact), **proposed},
            )
            policy.start(job.run)
            schedule = policy.schedule(job.run)
        except ValueError as error:
            wanting = wanting or str(error)
        else:
            if wanting is not None:
                wanting += f" Below: {', '.join(f'{k} = {v}' for k, v in proposed.items())}, a value to start from."
            return None if schedule is None else sum(schedule), {**given, **proposed}, wanting
    return None, given, wanting
