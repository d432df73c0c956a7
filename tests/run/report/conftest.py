"""Run directories like those of a real run: traces from the real engine on a random Latte, mp4s from real clips."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fsframework as fsf
from fsframework.core.trace import concatenate
from fsframework.data import bouncing_digits
from fsframework.data.video import write_video
from fsframework.metrics import METRICS, aggregate, bootstrap, ratio
from fsframework.policies import Foresight, FullCompute, StaticReuse

NUM_STEPS = 20
NUM_LAYERS = 4
PROMPTS = ("digit 6 is moving up and down", "digit 3 is moving left and right", "digit 9 is moving left and right")
SEEDS = (0, 1)
BLUR = {"full": 0.0, "static": 0.12, "foresight": 0.05}
POLICIES = {
    "full": (FullCompute(), {"name": "full"}),
    "static": (StaticReuse(interval=2), {"name": "static", "interval": 2}),
    "foresight": (
        Foresight(gamma=0.3, storage="residual", lag_correction=True),
        {"name": "foresight", "gamma": 0.3, "storage": "residual", "lag_correction": True},
    ),
}


def toy_model():
    from diffusers import LatteTransformer3DModel

    torch.manual_seed(0)
    return LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=NUM_LAYERS,
        sample_size=8, patch_size=2, cross_attention_dim=16, caption_channels=12, attention_bias=True,
        norm_type="ada_norm_single", activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6,
        num_embeds_ada_norm=1000, video_length=4,
    ).eval()  # fmt: skip


@torch.no_grad()
def generate(session, model, scheduler, index: int):
    """One toy video in a session: its trace and summary."""
    generator = torch.Generator().manual_seed(index)
    latent, text = torch.randn(1, 4, 4, 8, 8, generator=generator), torch.randn(1, 5, 12, generator=generator)
    latent = latent * (0.6 + 0.3 * index)  # so that the videos decide differently
    scheduler.set_timesteps(NUM_STEPS)
    for timestep in scheduler.timesteps:
        noise = model(latent, timestep.expand(1), encoder_hidden_states=text, return_dict=False)[0]
        latent = scheduler.step(noise, timestep, latent).prev_sample
    return session.trace, session.summary()


def clip(index: int, prompt: str, blur: float) -> np.ndarray:
    digit, motion = bouncing_digits.parse_caption(prompt)
    clips, _ = bouncing_digits.sample_clips(index, 1, "eval", [(digit, motion)])
    video = clips[0].astype(np.float32)
    noise = np.random.default_rng(index).random(video.shape[:3], dtype=np.float32)[..., None]
    return np.clip(video * (1 - blur) + blur * (1 + index / 4) * (noise - 0.5) * (video > 0.05), 0, 1)


def write_run(root: Path, name: str, prompts=PROMPTS, seeds=SEEDS) -> Path:
    """A complete run directory under `root`, in the runner's format."""
    from diffusers import DDIMScheduler

    policy, config = POLICIES[name]
    folder = root / f"{name}-{'a1b2c3d4'}"
    folder.mkdir(parents=True)
    model, rows = toy_model(), []
    clips = [(prompt, seed) for prompt in prompts for seed in seeds]
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with fsf.reuse(model, policy, scheduler=scheduler) as session:
        made = [generate(session, model, scheduler, index) for index in range(len(clips))]
    metrics = [METRICS[m]() for m in ("psnr", "ssim", "adherence")]
    for index, ((prompt, seed), (_, summary)) in enumerate(zip(clips, made)):
        reference, video = clip(index, prompt, 0.0), clip(index, prompt, BLUR[name])
        files = f"videos/{index:03d}.mp4", f"../_reference/{index:03d}.mp4"
        for file, pixels in zip(files, (video, reference)):
            if not (folder / file).exists():
                write_video(folder / file, pixels, fps=8, min_pixels=256)
        values = {}
        for metric in metrics:
            if metric.applies_to(prompt):
                values |= metric(torch.from_numpy(video), torch.from_numpy(reference), prompt)
        rows.append({
            "index": index, "prompt": prompt, "seed": seed, "file": files[0], "reference_file": files[1],
            "cpu_seconds": 2.0 / summary["flops_speedup"] + 0.01 * index, "wall_seconds": 1.1 / summary["flops_speedup"],
            "reference_cpu_seconds": 2.0 + 0.01 * index, "reference_wall_seconds": 1.1,
            **{k: summary[k] for k in ("reuse_fraction", "flops_executed", "flops_full", "flops_saved")},
            "cache_bytes_peak": summary["cache_bytes_peak"], "host_reads_per_step": summary["host_reads_per_step"],
            "metrics": values,
        })  # fmt: skip
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    concatenate(trace for trace, _ in made).to_parquet(folder / "trace.parquet")
    entries = {
        "speedup": column_ratio(rows, "reference_cpu_seconds", "cpu_seconds").entry("x"),
        "wall_speedup": column_ratio(rows, "reference_wall_seconds", "wall_seconds").entry("x"),
        "flops_speedup": column_ratio(rows, "flops_full", "flops_executed").entry("x"),
        **{k: bootstrap([row[k] for row in rows]).entry() for k in ("flops_saved", "reuse_fraction")},
        "cache_bytes_peak": bootstrap([row["cache_bytes_peak"] for row in rows]).entry("bytes", "lower"),
        "host_reads_per_step": bootstrap([row["host_reads_per_step"] for row in rows]).entry("", "lower"),
        **aggregate(metrics, [row["metrics"] for row in rows]),
    }
    head = {"policy": name, "model": "tiny-latte", "num_videos": len(rows)}
    (folder / "metrics.json").write_text(json.dumps(head | entries, indent=2))
    (folder / "config.yaml").write_text(
        f"name: {name}\nmodel: tiny-latte\npolicy: {json.dumps(config)}\n"
        f"sampling:\n  num_steps: {NUM_STEPS}\n  guidance_scale: 4.0\n  height: 32\n  width: 32\n  num_frames: 16\n"
        f"prompts: {json.dumps(list(prompts))}\nseeds: {list(seeds)}\nseed: 0\ndevice: cpu\ndtype: float32\n"
    )
    environment = {
        "command": f"fsf run experiments/quickstart/run.yaml policy.name={name}", "git_revision": "0123abc",
        "device": "cpu", "device_name": "a test CPU", "dtype": "float32", "python": "3.11", "torch": "2.13",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def column_ratio(rows, above, below):
    return ratio([row[above] for row in rows], [row[below] for row in rows])


@dataclass
class Runs:
    full: Path
    static: Path
    foresight: Path

    def __iter__(self):
        return iter((self.full, self.static, self.foresight))


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    """Three complete runs of six videos. Do not change them: copy first."""
    root = tmp_path_factory.mktemp("runs")
    return Runs(*(write_run(root, name) for name in POLICIES))


@pytest.fixture(scope="session")
def read_trace():
    return lambda folder: pd.read_parquet(folder / "trace.parquet")
