"""A run that was checked and loaded, before anything of it is written."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsframework
from fsframework.run import artifacts, launch, provenance
from fsframework.run.artifacts import RunDirectory
from fsframework.run.progress import quiet_libraries
from fsframework.run.reference import ReferenceCache
from fsframework.run.resolve import (
    Plan,
    artifacts_of,
    check_policy_fits,
    chosen_sampling,
    filled_sampling,
    policy_source_digest,
    sampling_of,
    with_artifacts,
)
from fsframework.run.sampler import describe, with_scheduler

if TYPE_CHECKING:
    from fsframework.core import LoadedModel


@dataclass
class Job:
    """A plan with its model and places."""

    plan: Plan
    model: LoadedModel
    sampling: dict[str, Any]
    directory: RunDirectory
    references: ReferenceCache
    facts: dict[str, Any]
    """What stands at the top of metrics.json and in W&B's config."""
    world: launch.World


def prepare(plan: Plan, model: LoadedModel | None, runs_dir: Path, world: launch.World) -> Job:
    """Load and check; writes nothing."""
    config = plan.config
    model = open_model(plan, model)
    sampling = sampling_of(config, model)
    check_policy_fits(plan, model, sampling)
    pixels = pixels_of(plan, model, sampling)
    directory = RunDirectory(runs_dir / directory_name(plan, pixels))
    facts = {
        "policy": plan.policy_name,
        "policy_options": plan.policy_options,
        "model": model.name,
        "num_videos": len(plan.clips),
        "sampling": chosen_sampling(config, sampling),
        "scheduler": describe(model.pipe.scheduler),
        "dtype": pixels["dtype"],
        "device": str(plan.device),
        "model_fingerprint": pixels["model"],
    }
    return Job(plan, model, sampling, directory, ReferenceCache(runs_dir, pixels), facts, world)


def directory_name(plan: Plan, pixels: Mapping[str, Any]) -> str:
    """The config's name and a hash of everything that changes the results."""
    identity = {
        **pixels,
        "fsframework": fsframework.__version__,
        "policy": plan.policy_name,
        # An artifact counts by what it says, wherever it lies.
        "options": with_artifacts(plan.policy_options, {p: a.digest for p, a in artifacts_of(plan.policy).items()}),
        "policy_code": policy_source_digest(plan.policy),
        "clips": [(clip.prompt, clip.seed) for clip in plan.clips],
        "metrics": [metric.name for metric in plan.metrics],
        "reference": dataclasses.asdict(plan.config.reference),
        "engine": dataclasses.asdict(plan.config.engine),
    }
    return f"{plan.config.name}-{artifacts.digest(identity)}"


def pixels_of(plan: Plan, model: LoadedModel, sampling: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the pixels of a full-compute video, but the prompt and the seed."""
    return {
        "model": provenance.model_fingerprint(model.path),
        "dtype": str(next(model.transformer.parameters()).dtype).removeprefix("torch."),
        "device": plan.device.type,
        "threads": plan.config.launch.num_threads,  # sums are split among threads, so the last bits depend on it
        "sampling": chosen_sampling(plan.config, sampling),
    }


def expected_pixels(plan: Plan) -> dict[str, Any]:
    """`pixels_of` as far as it is known without loading the model: all of it for a bundled or registered model or a
    folder whose weights have one dtype.

    Raises:
        ValueError: there is no such model.
    """
    from fsframework.models.loading import dtype_of, locate

    config = plan.config
    source, checkpoint = locate(config.model.name, ask_hub=False)
    return {
        "model": provenance.model_fingerprint(source),
        "dtype": str(dtype_of(config.model.dtype, checkpoint, plan.device)).removeprefix("torch."),
        "device": plan.device.type,
        "threads": config.launch.num_threads,
        "sampling": chosen_sampling(config, filled_sampling(config, checkpoint)),
    }


def open_model(plan: Plan, model: LoadedModel | None) -> LoadedModel:
    """The model of a plan, loaded if it is not yet, with the plan's threads and scheduler and without a progress bar."""
    quiet_libraries()
    if plan.config.launch.num_threads is not None:
        import torch

        torch.set_num_threads(plan.config.launch.num_threads)
    if model is None:
        model = load(plan)
    model.pipe.set_progress_bar_config(disable=True)
    num_steps = sampling_of(plan.config, model)["num_steps"]
    return with_scheduler(model, plan.config.sampling.scheduler, num_steps)


def load(plan: Plan) -> LoadedModel:
    """The model of a plan, on its device."""
    from fsframework.models.loading import load_model

    wanted = plan.config.model
    quiet_libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers about names its next major release will want
        return load_model(wanted.name, device=plan.device, dtype=wanted.dtype, offload=wanted.offload)
