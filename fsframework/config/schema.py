"""`RunConfig`: everything a run can be told, with unit, range and direction. Torch-free.

A YAML file states differences from these defaults. `policy` is a plain mapping here: which options it may hold is
stated by the policy's own class, and checked when the policy is built (`fsframework.run.resolve`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Which checkpoint, where. `model: NAME` is short for `model: {name: NAME}`."""

    name: str = "tiny-latte"
    """A name of `fsf list models`, a diffusers pipeline folder (relative to where you are), or a Hugging Face
    repository `owner/name`."""
    dtype: str | None = None
    """float32, bfloat16 or float16; null: the checkpoint's usual one, float32 on a CPU."""
    device: str = "auto"
    """auto (a CUDA device if there is one), cpu, cuda, cuda:1, ..."""
    offload: bool = False
    """Keep components on the CPU and move each to the device while it runs: less memory, slower."""


@dataclass
class SamplingConfig:
    """How a video is sampled. null everywhere means: as the checkpoint is meant to be used."""

    num_steps: int | None = None
    """Denoising steps, >= 1."""
    guidance_scale: float | None = None
    """Classifier-free guidance, >= 1; 1 switches guidance off."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    num_frames: int | None = None
    """Frames per video."""


@dataclass
class RunSamplingConfig(SamplingConfig):
    """How a video is sampled. null everywhere means: as the checkpoint is meant to be used."""

    scheduler: dict[str, Any] | None = None
    """Another sampler than the checkpoint's: `{name: DDIMScheduler, timestep_spacing: trailing}`, a scheduler class of
    diffusers and options of it; what is not given is as the checkpoint has it. `scheduler: NAME` is short for
    `{name: NAME}`."""


@dataclass
class PromptsConfig:
    """What to generate. `prompts: NAME` is short for `{set: NAME}`, `prompts: [a, b]` for `{texts: [a, b]}`."""

    set: str = "digits"
    """A name of `fsf list prompts`, or a .txt (one prompt per line), .csv (column `prompt`), .json (list of strings or
    objects) or .jsonl file, relative to the YAML file or to where you are. Files may give prompts seeds of their own."""
    texts: list[str] | None = None
    """Prompts written out; takes the place of `set`."""
    limit: int | None = None
    """Use the first so many prompts only, >= 1; null: all."""


@dataclass
class SeedsConfig:
    """Video i starts from noise of seed `base + i`, whichever process makes it."""

    base: int = 0
    """Seed of the first video, >= 0."""
    per_prompt: int = 1
    """Videos per prompt, >= 1, of prompts without seeds of their own. All prompts come once before any comes again."""


@dataclass
class ReferenceConfig:
    """The full-compute videos that a method is compared with; cached under `<runs_dir>/_reference`."""

    timing_videos: int | None = None
    """For how many videos full compute is timed right beside the method, >= 0; a speedup is only ever computed from such
    pairs. null: for all, but only for the first 3 once cached references are known to take over 60 s each."""


@dataclass
class TrackingConfig:
    """The Weights & Biases mirror of the run; the files in the run directory are the truth."""

    wandb: str = "offline"
    """offline (no account, no network), online, or disabled."""
    project: str = "fsframework"
    """W&B project."""
    group: str | None = None
    """W&B group, to find runs of one comparison together; in an ablation its name unless stated."""
    job_type: str | None = None
    """W&B job type; in an ablation the cell unless stated."""


@dataclass
class EngineConfig:
    """Options of the reuse engine that no policy decides."""

    timing: bool = False
    """Fill the trace's `seconds`: host time of every visit. Costs a little time itself."""
    cache_dtype: str | None = None
    """Store cached values as float32, bfloat16, float16, float8_e4m3fn or float8_e5m2 (the last three with a factor for
    each tensor); null: as computed. What each costs in quality: docs/how-to/memory.md."""
    cache_device: str | None = None
    """Store cached values on this device, such as cpu; null: where they were computed. They are brought back one site
    ahead."""


@dataclass
class LaunchConfig:
    """Processes on this machine."""

    num_processes: int = 1
    """Process r makes videos r, r + n, r + 2n, ...; the videos do not depend on n. Processes on one CPU compete, so
    compare times at 1."""
    num_threads: int | None = None
    """CPU threads of each process, >= 1; null: as many as torch takes. For small models 1 costs the least CPU time and
    gives the steadiest speedups."""


@dataclass
class OutputConfig:
    """Where results go."""

    runs_dir: str = "runs"
    """The run directory is `<runs_dir>/<name>-<config hash>`."""
    artifact: str | None = None
    """For `fsf calibrate`: the file to write, .json; null: `artifacts/<policy>-<model>-<steps>steps-<hash>.json` where you
    are. The picture and the records go beside it."""
    min_video_pixels: int = 128
    """Small clips are enlarged by a whole factor until their shorter side has so many pixels; the mp4 files only."""


@dataclass
class RunConfig:
    """One run: adapter x policy x prompts."""

    name: str = "run"
    """First part of the run directory's name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: dict[str, Any] = field(default_factory=lambda: {"name": "foresight"})
    """`name` of `fsf list policies` and that policy's options. `policy: NAME` is short for `{name: NAME}`."""
    sampling: RunSamplingConfig = field(default_factory=RunSamplingConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    metrics: list[str] | None = None
    """Names of `fsf list metrics`; null: all that can run here. Costs are always measured."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    plugins: list[str] = field(default_factory=list)
    """Python files, relative to the YAML file, run before the policy is looked up: they register policies of your own."""


SHORTHANDS = {"model": "name", "policy": "name", "prompts": "set"}
"""Sections that may be written as one string -> the field it stands for."""

ARTIFACT = "artifact"
"""The option of a policy that holds the path of what `fsf calibrate` wrote."""

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("float32", "bfloat16", "float16"),
    "engine.cache_dtype": ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
    "tracking.wandb": ("offline", "online", "disabled"),
}
"""Fields that take one of a few words (or null, where the default is null)."""

LISTS = ("metrics", "plugins", "prompts.texts")
"""Fields that take a list of strings."""

MINIMUM: dict[str, float] = {
    "sampling.num_steps": 1,
    "sampling.guidance_scale": 1,
    "sampling.height": 1,
    "sampling.width": 1,
    "sampling.num_frames": 1,
    "prompts.limit": 1,
    "seeds.base": 0,
    "seeds.per_prompt": 1,
    "reference.timing_videos": 0,
    "launch.num_processes": 1,
    "launch.num_threads": 1,
    "output.min_video_pixels": 1,
}
"""Smallest value of a number."""
