"""The caches of diffusers and cache-dit beside ours, set to the same decisions, in one process.

    pip install "fsframework[bench]"
    python experiments/policy_comparison/peers.py [--model tiny-cogvideox] [--clips 16] [--out peers.md]

For every clip: full compute, each peer, ours with the corresponding settings, in turns. What was really computed is
counted by a hook on one block's query projection, in ours and in theirs alike, so "same decisions" is measured. Errors are
against full compute of the same seed; "apart" is the PSNR between their video and ours.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fsframework.metrics import METRICS
from fsframework.metrics.statistics import ratio

NUM_STEPS = 30
BLOCK = 5
"""Index of the block whose attention is watched."""


@dataclass(frozen=True)
class Pair:
    """A peer's setting and ours."""

    name: str
    enable: Callable[[Any], Any]
    disable: Callable[[Any], Any]
    ours: Mapping[str, Any]
    note: str = ""


def pairs(ratios: list[float]) -> list[Pair]:
    """What is compared on a CogVideoX pipeline."""
    import diffusers
    from diffusers.hooks.mag_cache import MagCacheConfig
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

    def hook(config: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        return (lambda pipe: pipe.transformer.enable_cache(config(pipe))), (
            lambda pipe: pipe.transformer.disable_cache()
        )

    def timestep(pipe: Any) -> Callable[[], Any]:
        return lambda: pipe.current_timestep

    out = [
        Pair(
            "diffusers PAB",
            *hook(
                lambda pipe: diffusers.PyramidAttentionBroadcastConfig(
                    spatial_attention_block_skip_range=2,
                    spatial_attention_timestep_skip_range=(100, 800),
                    current_timestep_callback=timestep(pipe),
                )
            ),
            ours={"name": "pab", "joint": 2, "window_low": 100, "window_high": 800, "gate": "pre"},
        ),
        *(
            Pair(
                f"diffusers FirstBlockCache {threshold}",
                *hook(lambda pipe, t=threshold: diffusers.FirstBlockCacheConfig(threshold=t)),
                ours={"name": "first_block_cache", "threshold": threshold},
            )
            for threshold in (0.05, 0.1)
        ),
        Pair(
            "diffusers TaylorSeer, with names that match",
            *hook(
                lambda pipe: TaylorSeerCacheConfig(
                    cache_interval=2,
                    disable_cache_before_step=4,
                    max_order=1,
                    taylor_factors_dtype=torch.float32,
                    cache_identifiers=[r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"],
                )
            ),
            ours={"name": "taylorseer", "interval": 2, "first_steps": 4, "order": 1},
        ),
        Pair(
            "diffusers TaylorSeer, as it comes",
            *hook(lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=4, max_order=1)),
            ours={"name": "taylorseer", "interval": 2, "first_steps": 4, "order": 1},
            note="its default names match no module of CogVideoX, so it silently computes everything",
        ),
        Pair(
            "diffusers MagCache",
            *hook(
                lambda pipe: MagCacheConfig(
                    threshold=0.12,
                    max_skip_steps=3,
                    retention_ratio=0.2,
                    num_inference_steps=NUM_STEPS,
                    mag_ratios=torch.tensor(ratios),
                )
            ),
            ours={"name": "magcache", "threshold": 0.12, "max_consecutive": 3, "retention": 0.2, "ratios": ratios},
            note="theirs puts the text stream's input in place of its residual",
        ),
        Pair(
            "diffusers FasterCache",
            *hook(
                lambda pipe: diffusers.FasterCacheConfig(
                    spatial_attention_block_skip_range=2,
                    spatial_attention_timestep_skip_range=(-1, 681),
                    unconditional_batch_skip_range=5,
                    unconditional_batch_timestep_skip_range=(-1, 641),
                    attention_weight_callback=lambda _: 0.5,
                    tensor_format="BFCHW",
                    current_timestep_callback=timestep(pipe),
                )
            ),
            ours={
                "name": "fastercache",
                "attention_start": 10,
                "attention_interval": 2,
                "attention_phase": 0,
                "weight": 0.5,
                "rise": 0,
                "guidance_start": 11,
                "guidance_interval": 5,
                "alpha": 1.1,
                "low_stop": 27,
                "high_start": 21,
            },
            note="theirs multiplies its cached difference by alpha again at every step",
        ),
    ]
    try:
        import cache_dit
    except ImportError:
        print("cache-dit is not installed: pip install 'fsframework[bench]'")
        return out
    logging.getLogger("cache_dit").setLevel(logging.ERROR)
    for first, threshold in ((1, 0.08), (1, 0.12), (8, 0.08)):

        def enable(pipe: Any, first: int = first, threshold: float = threshold) -> None:
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=first, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=5
            )
            cache_dit.enable_cache(pipe, cache_config=config)

        out.append(
            Pair(
                f"cache-dit DBCache F{first}B0 {threshold}",
                enable,
                cache_dit.disable_cache,
                ours={"name": "dbcache", "first_blocks": first, "last_blocks": 0, "threshold": threshold, "warmup": 5},
            )
        )
    return out


@contextmanager
def computed_steps(pipe: Any) -> Any:
    """A list that gets the step of every real run of the watched query projection."""
    steps: list[int] = []
    now = [-1]

    def tick(*_: Any) -> None:  # one call of the transformer a step: guidance is batched
        now[0] += 1

    def count(*_: Any) -> None:
        steps.append(now[0])

    module = pipe.transformer.transformer_blocks[BLOCK].attn1.to_q
    handles = [pipe.transformer.register_forward_pre_hook(tick), module.register_forward_pre_hook(count)]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def measured_ratios(model: Any) -> list[float]:
    """Magnitude ratios of one clip, from our recorder."""
    import fsframework as fsf
    from fsframework.core import Run
    from fsframework.policies.magcache import MagCache

    policy = MagCache()
    calibration = policy.calibration()
    bound = model.bind()
    timesteps = [float(t) for t in _timesteps(model)]
    run = Run(len(timesteps), timesteps, bound.sites(policy), facts={"family": "cogvideox"})
    recorder = next(iter(calibration.rollouts(run).values()))
    with fsf.reuse(model.pipe, recorder) as session:
        model.generate("digit 3 is moving left and right", 1, num_steps=NUM_STEPS)
    latent = torch.zeros(1)
    record = calibration.record("full", session.trace, latent, latent)
    values = calibration.fit({next(iter(calibration.rollouts(run))): [record]}, run).values
    return list(next(iter(values["ratios"].values())) if isinstance(values["ratios"], Mapping) else values["ratios"])


def _timesteps(model: Any) -> Any:
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler.timesteps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-cogvideox")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import fsframework as fsf
    import fsframework.models
    import fsframework.policies
    from fsframework.data.prompts import load_prompts, plan_clips
    from fsframework.models.loading import load_model
    from fsframework.run.resolve import build_policy

    model = load_model(options.model, device=torch.device("cpu"))
    model.pipe.set_progress_bar_config(disable=True)
    clips = plan_clips(load_prompts("digits", None, options.clips), 500, math.ceil(options.clips / 20))[: options.clips]
    to_psnr, pooled = METRICS["psnr"](), METRICS["psnr"]().aggregate

    def make(clip: Any) -> tuple[torch.Tensor, float]:
        started = time.process_time()
        video = model.generate(clip.prompt, clip.seed, num_steps=NUM_STEPS)
        return video, time.process_time() - started

    make(clips[0])
    compared = pairs(measured_ratios(model))
    rows: dict[str, list[dict[str, Any]]] = {pair.name: [] for pair in compared}
    for clip in clips:
        for number, pair in enumerate(compared):
            full, full_seconds = make(clip)

            def theirs(pair: Pair = pair, clip: Any = clip) -> tuple[torch.Tensor, float, list[int]]:
                pair.enable(model.pipe)
                try:
                    video, seconds = make(clip)
                    with computed_steps(model.pipe) as steps:
                        make(clip)
                finally:
                    pair.disable(model.pipe)
                return video, seconds, list(dict.fromkeys(steps))

            def ours(pair: Pair = pair, clip: Any = clip) -> tuple[torch.Tensor, float, list[int]]:
                with fsf.reuse(model.pipe, build_policy(pair.ours)):
                    video, seconds = make(clip)
                    with computed_steps(model.pipe) as steps:
                        make(clip)
                return video, seconds, list(dict.fromkeys(steps))

            order = (theirs, ours) if (clip.index + number) % 2 else (ours, theirs)
            made = {run.__name__: run() for run in order}
            (a, a_seconds, a_steps), (b, b_seconds, b_steps) = made["theirs"], made["ours"]
            rows[pair.name].append(
                {
                    "theirs": to_psnr(a, full, "")["psnr"], "ours": to_psnr(b, full, "")["psnr"],
                    "apart": to_psnr(a, b, "")["psnr"], "their_seconds": a_seconds, "our_seconds": b_seconds,
                    "full_seconds": full_seconds, "same": a_steps == b_steps,
                    "their_steps": len(a_steps), "our_steps": len(b_steps),
                }
            )  # fmt: skip
        print(f"clip {clip.index + 1} of {len(clips)}", flush=True)
    lines = [
        f"{options.model}, {NUM_STEPS} steps, {len(clips)} clips, float32, one thread, torch {torch.__version__}; process CPU "
        "time; 95 % bootstrap intervals.",
        "",
        "| peer | same steps computed (theirs, ours of 30) | PSNR theirs | PSNR ours | theirs to ours | speedup theirs | "
        "speedup ours | their time / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in compared:
        own = rows[pair.name]
        column = lambda key, own=own: [r[key] for r in own]
        same = sum(column("same"))
        steps = f"{statistics.mean(column('their_steps')):.1f}, {statistics.mean(column('our_steps')):.1f}"
        quality = [pooled(column(key)).mean for key in ("theirs", "ours", "apart")]
        speed = [ratio(column("full_seconds"), column(key)) for key in ("their_seconds", "our_seconds")]
        speed.append(ratio(column("their_seconds"), column("our_seconds")))
        cells = [f"{q:.1f} dB" if math.isfinite(q) else "identical" for q in quality]
        cells += [f"{s.mean:.2f} ({s.low:.2f} to {s.high:.2f})" for s in speed]
        lines.append(f"| {pair.name} | {same} of {len(own)} clips ({steps}) | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {pair.name}: {pair.note}." for pair in compared if pair.note)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
