"""`calibrate`: from a checked config to a policy's artifact; goes on where an earlier process stopped.

Every rollout that the policy's calibration names is generated for every clip, its record is kept, and the fit of all
records is written with where it came from. Nothing is decoded: rollouts end with the latents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsframework.config.schema import ARTIFACT, RunConfig
from fsframework.data.prompts import Clip
from fsframework.run import launch
from fsframework.run.attach import reuse
from fsframework.run.calibrate_job import Job, check_target, prepare
from fsframework.run.calibrate_result import Result, as_result, finish
from fsframework.run.job import open_model
from fsframework.run.progress import Progress, reuse_warnings_as_notes
from fsframework.run.resolve import make_plan

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core import LoadedModel


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
        check_target(Path(wanted_path).expanduser(), plan.policy_name)
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
                job = prepare(plan, calibration, open_model(plan, model), wanted_path, world)
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
            return finish(job, notes) if world.is_first else as_result(job, {}, None, {}, None, None)


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


# Generating.


def _generate(job: Job) -> list[str]:
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
            while more := job.calibration.more_rollouts(job.all_records(), job.run):
                job.rollouts.update(more)
                job.world.barrier()  # all have read what there was
                _make(job, *_missing(job), progress)
    finally:
        progress.close()
    return progress.notes


def _missing(job: Job) -> tuple[list[Clip], list[tuple[Clip, str]]]:
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


def _make(job: Job, first: Sequence[Clip], later: Sequence[tuple[Clip, str]], progress: Progress) -> None:
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


def _reference(job: Job, clip: Clip, progress: Progress, keep: bool) -> Tensor:
    """The first rollout of a clip; with `keep` its latents are on disk before its record is."""
    return _rollout(job, clip, job.reference, progress, None, keep)


def _rollout(
    job: Job, clip: Clip, name: str, progress: Progress, reference: Tensor | None, keep: bool = False
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
