"""`run`: from a checked config to a finished run directory; goes on where an earlier process stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsframework
from fsframework.config.schema import RunConfig
from fsframework.data.prompts import Clip
from fsframework.data.video import write_video
from fsframework.run import artifacts, features, launch, provenance
from fsframework.run.attach import reuse
from fsframework.run.costs import COST_UNITS
from fsframework.run.head import write_head
from fsframework.run.job import Job, prepare
from fsframework.run.observe import sampling_errors
from fsframework.run.progress import Progress, reuse_warnings_as_notes
from fsframework.run.reference import Timed, generate_timed
from fsframework.run.resolve import make_plan
from fsframework.run.results import summarize
from fsframework.run.sampler import timesteps_of
from fsframework.run.tracking import Tracker

if TYPE_CHECKING:
    from fsframework.core import LoadedModel, ReuseEngine, StagedSession

SLOW_REFERENCE_SECONDS = 60.0
"""From here on full compute is timed beside the method for a few videos only, unless the config says otherwise."""
NUM_SLOW_TIMINGS = 3
_WARM_UP_STEPS = 2
_PACKAGE = Path(fsframework.__file__).resolve().parent
_COSTS = ("reuse_fraction", "flops_executed", "flops_full", "flops_saved", "cache_bytes_peak", "host_reads_per_step")
"""Entries of a session's summary that go into a video's record."""


def run(config: RunConfig, model: LoadedModel | None = None) -> Path:
    """Generate, measure and report what `config` says; returns the run directory.

    Nothing is written before everything about the config, the model and the policy was found to be in order. Called
    again with the same config it does only what is missing.

    Args:
        config: see `fsframework.config.load_config`.
        model: the loaded `config.model`, for several runs in one process.

    Raises:
        ValueError: something the user can mend, before anything is written.
        KeyboardInterrupt: stopped; the directory is left resumable.
    """
    plan = make_plan(config)
    runs_dir = Path(config.output.runs_dir)
    artifacts.check_writable(runs_dir)
    world = launch.start(config.launch.num_processes, plan.device)
    if world.device is not None and plan.device.type == "cuda":
        plan = dataclasses.replace(plan, device=world.device)
    with world.together():
        job = prepare(plan, model, runs_dir, world)
    total = len(plan.clips)
    if len(job.directory.read_records()) == total and job.directory.is_finished:
        if world.is_first:
            print(f"{job.directory.path}: all {total} videos are there already", file=sys.stderr)
            if changed := provenance.code_changed(job.directory, provenance.git_state(_PACKAGE)):
                print(f"note: {changed}", file=sys.stderr)
            if not job.directory.report.is_file():
                _write_report(job)
        world.barrier()
        return job.directory.path
    with world.together():
        _warm_up(job)
        if world.is_first:
            job.directory.create()
            job.directory.tidy_records()
    done = job.directory.read_records()
    progress = Progress(plan.policy_name, total, len(done), quiet=not world.is_first)
    tracker = Tracker(None, progress.note)
    try:
        with reuse_warnings_as_notes(progress):
            with world.together():
                if world.is_first:
                    write_head(job, progress.note)
                    tracker = Tracker.start(config.tracking, job.directory, job.facts, progress.note)
                _generate(job, {record["index"] for record in done}, progress, tracker)
            with world.together():
                if world.is_first:
                    _finish(job, progress, tracker)
    except BaseException as error:
        progress.close()
        tracker.close(exit_code=1)
        if isinstance(error, KeyboardInterrupt) and world.is_first:
            num_done = len(job.directory.read_records())
            print(
                f"\nstopped with {num_done} of {total} videos finished in {job.directory.path}; the same command goes on "
                f"from there.",
                file=sys.stderr,
            )
        raise
    progress.close()
    return job.directory.path


def _generate(job: Job, done: set[int], progress: Progress, tracker: Tracker) -> None:
    """Make this process's share of the videos that are not finished."""
    clips = [clip for clip in job.world.share(job.plan.clips) if clip.index not in done]
    if not clips:
        return
    session = _open_session(job)
    for clip in clips:
        record = _make_video(job, session, clip, progress)
        tracker.log_video(record, job.directory.path)
        progress.advance(_one_line(record))


def _warm_up(job: Job) -> None:
    """Generate for a step or two, unmeasured: first calls are slow. A setting the pipeline refuses is found here.

    Raises:
        ValueError: the pipeline refuses the sampling settings; nothing of the run is written yet.
    """
    clip = job.plan.clips[0]
    few = {**job.sampling, "num_steps": min(_WARM_UP_STEPS, job.sampling["num_steps"])}
    with sampling_errors(job.model, job.sampling):
        job.model.generate(clip.prompt, clip.seed, **few)


def _open_session(job: Job) -> ReuseEngine | StagedSession:
    import torch

    options = job.plan.config.engine
    dtype = None if options.cache_dtype is None else getattr(torch, options.cache_dtype)
    return reuse(
        job.model.pipe, job.plan.policy, timing=options.timing, cache_dtype=dtype, cache_device=options.cache_device
    )


def _make_video(job: Job, session: ReuseEngine | StagedSession, clip: Clip, progress: Progress) -> dict[str, Any]:
    """One video with its reference, side by side; everything is on disk before its record is."""
    num_notes = len(progress.notes)
    cached = job.references.load(clip)
    timed_too = cached is None or clip.index < _num_timings(job, cached)

    def full_compute() -> Timed | None:
        if not timed_too:
            return None
        progress.stage("full compute")
        return generate_timed(job.model, clip, job.sampling, job.plan.device)

    # Whoever goes second may profit from warm caches or suffer from a hot processor: take turns.
    fresh = full_compute() if clip.index % 2 == 0 else None
    progress.stage(job.plan.policy_name)
    with session:
        made = generate_timed(job.model, clip, job.sampling, job.plan.device)
    fresh = full_compute() if clip.index % 2 == 1 else fresh
    if fresh is not None:
        _check_finite(fresh, clip, "full compute", "The model overflows by itself: try another model.dtype.")
    _check_finite(made, clip, f"policy {job.plan.policy_name}", "Full compute does not: see the policy's options.")
    if fresh is not None and cached is None:
        job.references.save(clip, fresh)
    elif fresh is not None and cached is not None:
        difference = float((fresh.video - cached.video).abs().max())
        if difference > 0.5 / 255:
            progress.note(
                f"full compute of {clip.prompt!r}, seed {clip.seed}, now differs from its cached reference by up to "
                f"{difference:.3f} of full brightness; comparing with the new one. Delete {job.references.folder} if this "
                f"is no rounding."
            )
    reference = fresh if fresh is not None else cached
    assert reference is not None
    progress.stage("metrics and files")
    record = _measure(job, session, clip, made, reference, timed=fresh is not None)
    record["warnings"] = progress.notes[num_notes:]
    job.directory.append_record(record, job.world.rank if job.world.num_nodes > 1 else None)
    return record


def _check_finite(made: Timed, clip: Clip, method: str, hint: str) -> None:
    """Refuse a video that is no picture, before a metric takes its pixels for a wrong range."""
    broken = int((~made.video.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{method} gave a video of which {broken / made.video.numel():.0%} is not finite (NaN or infinite): "
            f"{clip.prompt!r}, seed {clip.seed}. {hint}"
        )


def _num_timings(job: Job, cached: Timed) -> float:
    asked = job.plan.config.reference.timing_videos
    if asked is not None:
        return asked
    return math.inf if cached.wall_seconds <= SLOW_REFERENCE_SECONDS else NUM_SLOW_TIMINGS


def _measure(
    job: Job, session: ReuseEngine | StagedSession, clip: Clip, made: Timed, reference: Timed, timed: bool
) -> dict[str, Any]:
    """Metrics and costs of one video as its record; its mp4 files and trace rows are on disk afterwards."""
    directory, output = job.directory, job.plan.config.output
    metrics: dict[str, float] = {}
    kept: dict[str, features.Features] = {}
    for metric in job.plan.metrics:
        if metric.applies_to(clip.prompt):
            other = reference.video if metric.needs_reference else None
            metrics.update(metric(made.video, other, clip.prompt))
            kept[metric.name] = metric.features(made.video, other, clip.prompt)
    features.save(directory.path, clip.index, kept)
    file, reference_file = (directory.video_file(clip.index, clip.prompt, ref) for ref in (False, True))
    fps = job.model.checkpoint.fps
    write_video(directory.path / file, made.video, fps, output.min_video_pixels)
    write_video(directory.path / reference_file, reference.video, fps, output.min_video_pixels)
    directory.write_trace_part(clip.index, session.trace.to_pandas().assign(video=clip.index))
    summary = session.summary()
    return {
        "index": clip.index,
        "prompt": clip.prompt,
        "seed": clip.seed,
        "facts": dict(clip.facts),
        "file": file,
        "reference_file": reference_file,
        **{name: getattr(made.costs, name) for name in COST_UNITS},
        **{f"reference_{name}": getattr(reference.costs, name) if timed else None for name in COST_UNITS},
        **{name: summary[name] for name in _COSTS},
        "identical": bool((made.video == reference.video).all()),
        "metrics": metrics,
    }


def _finish(job: Job, progress: Progress, tracker: Tracker) -> None:
    """Join what the processes made: trace, metrics, mirror, report."""
    directory, total = job.directory, len(job.plan.clips)
    records = directory.tidy_records()  # by number, however many processes and stops there were
    if len(records) != total:
        missing = sorted({clip.index for clip in job.plan.clips} - {record["index"] for record in records})
        raise RuntimeError(f"{len(missing)} of {total} videos are missing: {missing[:10]}; the same command makes them")
    progress.stage("report")
    directory.join_traces(record["index"] for record in records)
    kept = features.load(directory.path, (record["index"] for record in records))
    numbers = summarize(records, job.plan.metrics, job.plan.device.type, kept)
    noted = list(dict.fromkeys(text for record in records for text in record["warnings"]))
    facts = {**job.facts, "scheduler": {**job.facts["scheduler"], **timesteps_of(directory.trace)}}
    metrics: Mapping[str, Any] = {**facts, **numbers, "warnings": noted}
    artifacts.write_text(directory.metrics, artifacts.to_json(metrics, indent=2) + "\n")

    def trace() -> Any:
        import pandas

        return pandas.read_parquet(directory.trace)

    tracker.finish(directory, records, json.loads(directory.metrics.read_text()), trace)
    _write_report(job)


def _write_report(job: Job) -> None:
    from fsframework.run.report import write_report

    write_report([job.directory.path], job.directory.report, job.plan.config.name)


def _one_line(record: Mapping[str, Any]) -> str:
    quality = "".join(
        f", {name} {record['metrics'][name]:.3g}" for name in ("psnr", "adherence") if name in record["metrics"]
    )
    return (
        f"{record['prompt'][:50]!r} seed {record['seed']}: {record['wall_seconds']:.1f} s, "
        f"reused {100 * record['reuse_fraction']:.0f} %{quality}"
    )
