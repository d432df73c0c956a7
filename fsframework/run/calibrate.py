"""`calibrate`: from a checked config to a policy's artifact; goes on where an earlier process stopped.

Every rollout that the policy's calibration names is generated for every clip, its record is kept, and the fit of all
records is written with where it came from. Nothing is decoded: rollouts end with the latents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsframework
from fsframework.config.load import to_dict
from fsframework.config.schema import ARTIFACT, RunConfig
from fsframework.data.prompts import Clip
from fsframework.run import artifacts, launch
from fsframework.run.attach import reuse
from fsframework.run.calibrate_picture import picture
from fsframework.run.calibrate_store import Records
from fsframework.run.job import open_model, pixels_of
from fsframework.run.observe import observe_run, without_reuse_warnings
from fsframework.run.progress import Progress, reuse_warnings_as_notes
from fsframework.run.resolve import Plan, make_plan, policy_options, policy_source_digest, sampling_of, source_digest

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core import Calibration, Fit, LoadedModel, ReusePolicy, Run

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


@dataclass
class _Job:
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


def calibrate(config: RunConfig, model: LoadedModel | None = None) -> Result:
    """Measure what `config.policy` needs to know about `config.model`, and write its artifact.

    Nothing is written before everything about the config, the model and the rollouts was found to be in order. Called
    again with the same config it generates only what is missing.

    Args:
        config: see `fsframework.config.load_config`. `metrics`, `reference` and `tracking` have no meaning here.
        model: the loaded `config.model`, for several calibrations in one process.

    Raises:
        ValueError: something the user can mend, or records that do not determine the result.
        KeyboardInterrupt: stopped; the records are left to go on from.
    """
    config, wanted_path = _without_artifact(config)
    plan = make_plan(config)
    if wanted_path is not None:
        _check_target(Path(wanted_path).expanduser(), plan.policy_name)
    calibration = plan.policy.calibration()
    if calibration is None:
        raise ValueError(f"the policy {plan.policy_name!r} needs no calibration. {_which_do()}")
    if ARTIFACT not in plan.policy_options:
        raise ValueError(
            f"the policy {plan.policy_name!r} reads no artifact itself; calibrate the one inside it. {_which_do()}"
        )
    world = launch.start(config.launch.num_processes, plan.device)
    if world.device is not None and plan.device.type == "cuda":
        plan = dataclasses.replace(plan, device=world.device)
    with contextlib.ExitStack() as opened:
        try:
            with world.together():
                job = _prepare(plan, calibration, open_model(plan, model), wanted_path, world)
                if world.is_first:
                    opened.enter_context(job.records.opened(job.key))
        except KeyboardInterrupt:
            if world.is_first:
                print("\nstopped before the first record; the same command begins again.", file=sys.stderr)
            raise
        try:
            with world.together():
                notes = _generate(job)
        except KeyboardInterrupt:
            if world.is_first:
                num_done = sum(job.records.load(name, clip) is not None for name in job.rollouts for clip in plan.clips)
                print(
                    f"\nstopped with {num_done} of {len(job.rollouts) * len(plan.clips)} records in "
                    f"{job.records.folder}; the same command goes on from there.",
                    file=sys.stderr,
                )
            raise
        with world.together():
            return _finish(job, notes) if world.is_first else _result(job, {}, None, {}, None, None)


def _without_artifact(config: RunConfig) -> tuple[RunConfig, str | None]:
    """The config of the policy as it is before there is an artifact, and where that shall go, if it says so."""
    policy = {key: value for key, value in config.policy.items() if key != ARTIFACT}
    path = config.output.artifact or config.policy.get(ARTIFACT)
    if path is not None and Path(path).suffix != ".json":
        raise ValueError(f"an artifact is a .json file; found {path!r}")
    return dataclasses.replace(config, policy=policy, metrics=[]), path


def _which_do() -> str:
    from fsframework.run.catalog import list_policies

    names = [entry.name for entry in list_policies() if entry.is_calibrated]
    return f"Those that can be calibrated: {', '.join(names) or 'none of the built-in ones'}."


def _prepare(
    plan: Plan, calibration: Calibration, model: LoadedModel, wanted_path: str | None, world: launch.World
) -> _Job:
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
    _check_target(path, name)
    records = Records(path.parent / "_records" / f"{label}-{artifacts.digest(key)}")
    return _Job(plan, model, sampling, calibration, run, rollouts, records, key, path, world)


def _describe(policy: ReusePolicy[Any]) -> dict[str, Any]:
    """A rollout's policy by its class and options."""
    own = policy_options(policy) if dataclasses.is_dataclass(policy) else dict(vars(policy))
    return {"class": type(policy).__qualname__, **own}


def _file_name(name: str) -> str:
    """A model's name, repository or folder as part of a file name."""
    return re.sub(r"[^\w.]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-") or "model"


# Generating.


def _generate(job: _Job) -> list[str]:
    """Make this process's share of the missing records. References come first, for all others are compared with them.

    Returns:
        What there is to know about the rollouts.
    """
    from fsframework.core.review import ReuseWarning

    first, later = _missing(job)
    most = max(job.calibration.most_rollouts(job.run), len(job.rollouts)) * len(job.plan.clips)
    total = len(job.world.share(range(most)))
    done = len(job.world.share([(clip, name) for clip in job.plan.clips for name in job.rollouts]))
    todo = len(first) + len(later)
    title = job.plan.policy_name if job.world.size == 1 else f"{job.plan.policy_name}, process 1 of {job.world.size}"
    progress = Progress(title, max(total, todo), max(done - todo, 0), quiet=not job.world.is_first)
    try:
        with reuse_warnings_as_notes(progress):
            # A recorder is meant to.
            warnings.filterwarnings("ignore", message=".* reused nothing in", category=ReuseWarning)
            _make(job, first, later, progress)
            while more := job.calibration.more_rollouts(_records_of(job), job.run):
                job.rollouts.update(more)
                job.world.barrier()  # all have read what there was
                _make(job, *_missing(job), progress)
    finally:
        progress.close()
    return progress.notes


def _missing(job: _Job) -> tuple[list[Clip], list[tuple[Clip, str]]]:
    """This process's share of what is missing: references, whose latents others need, and others."""
    missing = {name: [clip for clip in job.plan.clips if job.records.load(name, clip) is None] for name in job.rollouts}
    later = [(clip, name) for clip in job.plan.clips for name in job.rollouts if clip in missing[name]]
    later = [(clip, name) for clip, name in later if name != job.reference]
    compared = {clip for clip, _ in later}
    first = [
        clip
        for clip in job.plan.clips
        if clip in missing[job.reference] or (clip in compared and job.records.load_latents(clip) is None)
    ]
    job.world.barrier()  # all looked before any writes, so all share the same lists
    return job.world.share(first), job.world.share(later)


def _make(job: _Job, first: Sequence[Clip], later: Sequence[tuple[Clip, str]], progress: Progress) -> None:
    """Generate and keep the records; at the end all processes have."""
    with job.world.together():
        for clip in first:
            _reference(job, clip, progress, keep=len(job.rollouts) > 1)
            progress.advance(_one_line(job.reference, clip))
    with job.world.together():
        reference: tuple[Clip, Tensor] | None = None
        for clip, name in later:
            if reference is None or reference[0] != clip:
                kept = job.records.load_latents(clip)
                reference = (clip, _reference(job, clip, progress, keep=True) if kept is None else kept)
            _rollout(job, clip, name, progress, reference[1])
            progress.advance(_one_line(name, clip))


def _records_of(job: _Job) -> dict[str, list[dict[str, Any]]]:
    """The records of all rollouts so far, over all clips."""
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in job.rollouts}
    for name, found in records.items():
        for clip in job.plan.clips:
            record = job.records.load(name, clip)
            if record is None:
                raise RuntimeError(f"{job.records.path(name, clip)} is missing; the same command makes it")
            found.append(record)
    return records


def _reference(job: _Job, clip: Clip, progress: Progress, keep: bool) -> Tensor:
    """The first rollout of a clip; with `keep` its latents are on disk before its record is."""
    return _rollout(job, clip, job.reference, progress, None, keep)


def _rollout(
    job: _Job, clip: Clip, name: str, progress: Progress, reference: Tensor | None, keep: bool = False
) -> Tensor:
    """Generate one rollout and keep its record; its latents."""
    import torch

    progress.stage(name)
    engine = job.plan.config.engine
    dtype = None if engine.cache_dtype is None else getattr(torch, engine.cache_dtype)
    with reuse(
        job.model.pipe, job.rollouts[name], timing=engine.timing, cache_dtype=dtype, cache_device=engine.cache_device
    ) as session:
        latents = job.model.generate_latents(clip.prompt, clip.seed, **job.sampling)
    if keep:
        job.records.save_latents(clip, latents)
    record = job.calibration.record(name, session.trace, latents, latents if reference is None else reference)
    job.records.save(name, clip, record)
    return latents


def _one_line(rollout: str, clip: Clip) -> str:
    return f"{rollout}, {clip.prompt[:50]!r} seed {clip.seed}"


# The result.


def _finish(job: _Job, notes: Sequence[str]) -> Result:
    """Fit, check, write."""
    from fsframework.core import Artifact

    fit = job.calibration.fit(_records_of(job), job.run)
    values = _as_json(fit.values, job.plan.policy_name)
    numbers = {name: float(value) for name, value in fit.numbers.items()}
    artifact = Artifact(job.plan.policy_name, values, _facts(job.run), _provenance(job, numbers, notes))
    replaced = _replaced(_check_target(job.artifact, job.plan.policy_name), artifact.facts)
    artifact.save(job.artifact)
    artifacts.write_text(job.artifact.with_suffix(".svg"), picture(fit, *_captions(job, numbers)))
    job.records.drop_latents()
    return _result(job, numbers, *_rehearse(job, fit), replaced)


def _result(
    job: _Job,
    numbers: Mapping[str, float],
    recomputed_steps: int | None,
    options: Mapping[str, Any],
    wanting: str | None,
    replaced: str | None,
) -> Result:
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


def _check_target(path: Path, policy: str) -> dict[str, Any] | None:
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


def _provenance(job: _Job, numbers: Mapping[str, float], notes: Sequence[str]) -> dict[str, Any]:
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
            **artifacts.environment(str(job.plan.device), _PACKAGE),
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


def _captions(job: _Job, numbers: Mapping[str, float]) -> tuple[str, str]:
    """Title of the picture, and the lines below: what was set, and what the fit came to."""
    size = "x".join(str(job.sampling[key]) for key in ("num_frames", "height", "width") if job.sampling.get(key))
    title = f"{job.plan.policy_name} on {job.model.name}"
    conditions = [_clips(len(job.plan.clips)), f"{job.run.num_steps} steps", *([size] if size else [])]
    guidance = job.sampling.get("guidance_scale")
    if guidance is not None:
        conditions.append(f"guidance {guidance:g}")
    said = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
    return title, "\n".join([", ".join(conditions), *(["fit: " + ", ".join(said)] if said else [])])


def _rehearse(job: _Job, fit: Fit) -> tuple[int | None, dict[str, Any], str | None]:
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
