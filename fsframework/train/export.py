"""From trained weights to a folder that `DiffusionPipeline.from_pretrained` loads, and its evaluation.

Shape suffixes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsframework.data import bouncing_digits
from fsframework.data.bouncing_digits import HELD_OUT_PAIRS


def export_pipeline(denoiser: Any, autoencoder: Any, folder: Path) -> None:
    """Save the denoiser's pipeline: transformer and autoencoder in float16 (half the size), text encoder in float32.

    The text encoder keeps its type because transformers loads the stored type while diffusers loads float32; it is
    small. `from_pretrained(folder)` therefore gives a float32 pipeline, as the CPU wants it.
    """
    import copy

    import torch

    pipeline = copy.deepcopy(denoiser).pipeline(copy.deepcopy(autoencoder))
    pipeline.transformer.to(torch.float16)
    pipeline.vae.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _rename_tokenizer_class(folder)
    for path in folder.glob("*/config.json"):
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:  # where it happened to be trained
            path.write_text(json.dumps(settings, indent=2) + "\n")


def _rename_tokenizer_class(folder: Path) -> None:
    """Name the tokenizer's class as every transformers release since 4 knows it; release 5 saves a new name."""
    for path in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        text = path.read_text()
        path.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def wilson_interval(num_right: int, num_all: int) -> tuple[float, float]:
    """95 % interval of a proportion after E. B. Wilson (1927), sensible also for all or none right."""
    z = 1.96
    share = num_right / num_all
    centre = share + z * z / (2 * num_all)
    spread = z * math.sqrt(share * (1 - share) / num_all + z * z / (4 * num_all**2))
    return (centre - spread) / (1 + z * z / num_all), (centre + spread) / (1 + z * z / num_all)


@dataclass(frozen=True)
class _ClipJob:
    """One clip to generate and judge."""

    digit: int
    motion: str
    seed: int


def evaluate_folder(
    folder: Path,
    sampling: dict[str, Any],
    *,
    seeds_per_caption: int,
    first_seed: int,
    num_steps: int,
    guidance_scale: float,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Generate every caption with fresh seeds through the saved pipeline and judge the clips.

    `sampling` are the pipeline's other arguments (`Denoiser.sampling`).
    The clips are dealt out among `num_processes` processes of one thread each. Returns what is written to
    `evaluation.json`: the conditions, shares with 95 % intervals over all captions, over those trained on and over the
    held-out ones, and one row per clip.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    pairs = bouncing_digits.all_pairs() * seeds_per_caption
    jobs = [_ClipJob(digit, motion, first_seed + index) for index, (digit, motion) in enumerate(pairs)]
    shares = [jobs[rank::num_processes] for rank in range(num_processes)]
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_judge_clips, folder, share, sampling, num_steps, guidance_scale) for share in shares]
        rows = sorted((row for future in futures for row in future.result()), key=lambda row: row["seed"])
    cpu_seconds = sum(row.pop("cpu_seconds") for row in rows)
    return {
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "sampling": sampling,
        "dtype": "float32",
        "cpu_seconds_per_clip": round(cpu_seconds / len(rows), 2),
        "all": _summary(rows),
        "trained": _summary([row for row in rows if not row["held_out"]]),
        "held_out": _summary([row for row in rows if row["held_out"]]),
        "clips": rows,
    }


def _judge_clips(
    folder: Path, jobs: list[_ClipJob], sampling: dict[str, Any], num_steps: int, guidance_scale: float
) -> list[dict[str, Any]]:
    """Rows of `evaluate_folder`, in this process on one thread."""
    import torch

    from fsframework.metrics.adherence import PromptAdherence
    from fsframework.models.loading import load_model

    torch.set_num_threads(1)
    pipeline = load_model(str(folder)).pipe
    pipeline.set_progress_bar_config(disable=True)
    judge = PromptAdherence()
    rows = []
    for job in jobs:
        prompt = bouncing_digits.caption(job.digit, job.motion)
        start_seconds = time.process_time()
        frames = pipeline(
            prompt,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(job.seed),
            output_type="np",
            **sampling,
        ).frames[0]
        cpu_seconds = time.process_time() - start_seconds
        result = judge.score(frames, prompt)
        rows.append(
            {
                "prompt": prompt,
                "seed": job.seed,
                "held_out": (job.digit, job.motion) in bouncing_digits.HELD_OUT_PAIRS,
                "digit": result.digit,
                "motion": result.motion,
                "cpu_seconds": cpu_seconds,
            }
        )
    return rows


SAMPLES = ((6, "up and down"), (6, "left and right"), (3, "up and down"), (8, "left and right"), *HELD_OUT_PAIRS[:2])
"""What `samples.png` shows; the last two were held out of training."""


def save_samples(folder: Path, sampling: dict[str, Any], num_steps: int, guidance_scale: float, zoom: int = 2) -> None:
    """Write `samples.png`: a row per clip of `SAMPLES` (seeds 0, 1, ...), a column per frame, grey."""
    import numpy as np
    import torch
    from PIL import Image

    from fsframework.models.loading import load_model

    pipeline = load_model(str(folder)).pipe
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for seed, pair in enumerate(SAMPLES):
        frames_THWC = pipeline(
            bouncing_digits.caption(*pair),
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **sampling,
        ).frames[0]
        rows.append(np.concatenate(list(frames_THWC.mean(-1)), axis=1))
    grey = (np.concatenate(rows).clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(grey)
    image.resize((zoom * image.width, zoom * image.height), Image.Resampling.BICUBIC).save(folder / "samples.png")


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"num_clips": len(rows)}
    for name in ("digit", "motion", "both"):
        right = sum(row["digit"] and row["motion"] if name == "both" else row[name] for row in rows)
        low, high = wilson_interval(right, len(rows))
        summary[name] = {"share": round(right / len(rows), 4), "interval_95": [round(low, 4), round(high, 4)]}
    return summary


def write_training_record(config: Any, metrics_path: Path, evaluation: dict[str, Any] | None, folder: Path) -> None:
    """Put the resolved config, the metrics curve and the evaluation into `folder`/training."""
    from omegaconf import OmegaConf

    from fsframework.train.stage import MetricsFile

    target = folder / "training"
    target.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.structured(config)
    for place in ("output_dir", "export_dir", "export_only"):  # where it ran says nothing about the model
        OmegaConf.set_struct(settings, False)
        del settings[place]
    OmegaConf.save(settings, target / "config.yaml")
    rows = MetricsFile(metrics_path).rows()
    columns = ["stage", "step", *sorted({key for row in rows for key in row} - {"stage", "step"})]
    lines = [",".join(columns)]
    lines += [
        ",".join(f"{row[c]:.5g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns)
        for row in rows
    ]
    (target / "metrics.csv").write_text("\n".join(lines) + "\n")
    if evaluation is not None:
        clips = ",\n  ".join(json.dumps(row) for row in evaluation["clips"])
        summary = json.dumps({**evaluation, "clips": []}, indent=1)
        text = summary.replace('"clips": []', f'"clips": [\n  {clips}\n ]')
        (target / "evaluation.json").write_text(text + "\n")
