"""The caches of diffusers and cache-dit beside ours, set to the same decisions, in one process.

    pip install "fsframework[bench]"
    python experiments/policy_comparison/peers.py [--model tiny-cogvideox] [--clips 16] [--out peers.md]

For every clip: full compute, each peer, ours with the corresponding settings, in turns. What was really computed is
counted by a hook on one block's query projection, in ours and in theirs alike, so "same decisions" is measured. Errors are
against full compute of the same seed; "apart" is the PSNR between their video and ours.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from fsframework.metrics import METRICS
from fsframework.metrics.statistics import ratio
from fsframework.run.bench_peers import Pair, computed_steps, has_cache_dit, measured_ratios, pairs

NUM_STEPS = 30


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
    if not has_cache_dit():
        print("cache-dit is not installed: pip install 'fsframework[bench]'")
    compared = pairs(measured_ratios(model, NUM_STEPS), NUM_STEPS)
    rows: dict[str, list[dict[str, Any]]] = {pair.name: [] for pair in compared}
    for clip in clips:
        for number, pair in enumerate(compared):
            full, full_seconds = make(clip)

            def theirs(pair: Pair = pair, clip: Any = clip) -> tuple[torch.Tensor, float, list[int]]:
                with pair.session(model.pipe):
                    video, seconds = make(clip)
                    with computed_steps(model.pipe) as steps:
                        make(clip)
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
