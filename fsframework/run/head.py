"""The files a run begins with: what a reader needs even if it never ends, and what `fsf run` needs to repeat it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsframework
from fsframework.config.load import to_dict
from fsframework.data.prompts import Prompt, plan_clips, to_jsonl
from fsframework.run import artifacts, provenance
from fsframework.run.job import Job
from fsframework.run.resolve import artifacts_of, with_artifacts

_PACKAGE = Path(fsframework.__file__).resolve().parent


def write_head(job: Job, note: Callable[[str], None]) -> None:
    """Write config.yaml, environment.json and copies of the files that the config names.

    `note` is told what a reader of the run should know, such as that the code changed since it began.
    """
    from omegaconf import OmegaConf

    resolved = to_dict(job.plan.config)
    options = with_artifacts(job.plan.policy_options, _keep_artifacts(job))
    resolved["policy"] = {"name": job.plan.policy_name, **options}
    resolved["sampling"] = {**job.sampling, "scheduler": job.plan.config.sampling.scheduler}
    resolved.update(_keep_prompts(job))
    copies = []
    for plugin in map(Path, job.plan.config.plugins):
        copies.append(f"plugins/{plugin.name}")
        artifacts.write_text(job.directory.path / copies[-1], plugin.read_text(encoding="utf-8"))
    resolved["plugins"] = copies
    artifacts.write_text(job.directory.config, OmegaConf.to_yaml(OmegaConf.create(resolved)))
    now = provenance.environment(str(job.plan.device), _PACKAGE)
    if changed := provenance.code_changed(job.directory, now["git"]):
        note(changed)
    provenance.record_environment(job.directory, now)


def _keep_prompts(job: Job) -> dict[str, Any]:
    """What config.yaml says of prompts and seeds: the captions, or a copy with a line per video where they have seeds or
    facts of their own."""
    clips, seeds = job.plan.clips, job.plan.config.seeds
    texts = list(dict.fromkeys(clip.prompt for clip in clips))
    if plan_clips([Prompt(text) for text in texts], seeds.base, seeds.per_prompt) == clips:
        return {"prompts": {"set": job.plan.config.prompts.set, "texts": texts, "limit": None}}
    artifacts.write_text(job.directory.path / "prompts.jsonl", to_jsonl(clips))
    return {
        "prompts": {"set": "prompts.jsonl", "texts": None, "limit": None},
        "seeds": {"base": seeds.base, "per_prompt": 1},
    }


def _keep_artifacts(job: Job) -> dict[str, str]:
    """Copy the policy's artifacts into the run directory; path -> the copy's, relative to config.yaml."""
    copies: dict[str, str] = {}
    for number, path in enumerate(artifacts_of(job.plan.policy)):
        source = Path(path).expanduser()
        copy = f"artifacts/{source.name}"
        if copy in copies.values():  # two files of one name
            copy = f"artifacts/{source.stem}-{number}{source.suffix}"
        artifacts.write_text(job.directory.path / copy, source.read_text(encoding="utf-8"))
        copies[path] = copy
    return copies
