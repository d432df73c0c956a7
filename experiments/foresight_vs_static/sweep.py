"""Static reuse against Foresight on tiny Latte: every setting, the same clips, ordinary run directories; then compared.

    python experiments/foresight_vs_static/sweep.py            # makes what is missing, then prints and writes the tables
    python experiments/foresight_vs_static/sweep.py --compare  # only compares what is there

Killed runs go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from fsframework.config.load import load_config
from fsframework.metrics.statistics import bootstrap

HERE = Path(__file__).resolve().parent
STATIC = {
    "static 1 in 4": "policy.interval=4 policy.reuse_steps=1",
    "static 1 in 3": "policy.interval=3 policy.reuse_steps=1",
    "static 2 (1 in 2)": "policy.interval=2",
    "static 3 (2 in 3)": "policy.interval=3",
}
GAMMAS, CYCLES = (0.25, 0.5, 1.0, 2.0), {"(1,2)": 2, "(2,3)": 3}
FORESIGHT = {
    f"foresight {gamma} {cycle}": f"policy.gamma={gamma} policy.recompute_every={every}"
    for cycle, every in CYCLES.items()
    for gamma in GAMMAS
}
WHY = {
    "lag correction, 0.25 (1,2)": "policy.gamma=0.25 policy.lag_correction=true",
    "lag correction, 0.5 (1,2)": "policy.gamma=0.5 policy.lag_correction=true",
    "residual, 0.5 (1,2)": "policy.gamma=0.5 policy.storage=residual",
    "residual + lag, 0.5 (1,2)": "policy.gamma=0.5 policy.storage=residual policy.lag_correction=true",
    "dead blocks not run, 0.5 (1,2)": "policy.gamma=0.5 policy.eliminate_dead=true",
    "dead blocks not run, 1.0 (1,2)": "policy.gamma=1.0 policy.eliminate_dead=true",
    "dead not run + lag, 0.5 (1,2)": "policy.gamma=0.5 policy.eliminate_dead=true policy.lag_correction=true",
    "dead blocks not run, 0.5 (2,3)": "policy.gamma=0.5 policy.recompute_every=3 policy.eliminate_dead=true",
    "dead not run + lag, 0.25 (2,3)": "policy.gamma=0.25 policy.recompute_every=3 policy.eliminate_dead=true "
    "policy.lag_correction=true",
}


def settings() -> dict[str, list[str]]:
    """Name -> overrides, in the order they are made."""
    named = {name: f"policy=static {more}" for name, more in STATIC.items()}
    named |= {name: f"policy=foresight {more}" for name, more in {**FORESIGHT, **WHY}.items()}
    return {name: text.split() for name, text in named.items()}


def make(runs_dir: Path, per_prompt: int, limit: int, part: int, parts: int, first: int) -> dict[str, Path]:
    """Run this part of the settings, from number `first` on, over `limit` captions; finished ones are kept."""
    from fsframework.run.job import load
    from fsframework.run.resolve import make_plan
    from fsframework.run.runner import run

    common = [
        f"output.runs_dir={runs_dir}", f"prompts.limit={limit}", f"seeds.per_prompt={per_prompt}", "seeds.base=100",
        "reference.timing_videos=4", "tracking.wandb=disabled", "launch.num_threads=1",
    ]  # fmt: skip
    model, folders = None, {}
    for number, (name, changes) in enumerate(settings().items()):
        if number < first or number % parts != part:
            continue
        config = load_config(None, [f"name=sweep{number:02d}", *changes, *common])
        model = model or load(make_plan(config))
        print(f"== {name}", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folders[name] = run(config, model)
    return folders


def read(folder: Path) -> list[dict]:
    return sorted(
        (json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()), key=lambda r: r["index"]
    )


def compare(folders: dict[str, Path]) -> str:
    """Tables in Markdown: every setting, and PSNR at equal compute, paired over clips."""
    records = {name: read(folder) for name, folder in folders.items()}
    clips = len(next(iter(records.values())))
    lines = [
        f"{clips} clips (captions x seeds), 50 steps, guidance 4, float32 on a CPU; means with 95 % intervals over clips.",
        "",
        "| setting | FLOPs saved | CPU-time speedup | PSNR dB | SSIM | adherence | reused |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in records:
        metrics = json.loads((folders[name] / "metrics.json").read_text())
        cell = {
            key: _cell(metrics[key])
            for key in ("flops_saved", "speedup", "psnr", "ssim", "adherence", "reuse_fraction")
        }
        lines.append(
            f"| {name} | {cell['flops_saved']} | {cell['speedup']} | {cell['psnr']} | {cell['ssim']} | {cell['adherence']} | "
            f"{cell['reuse_fraction']} |"
        )
    static = [records[name] for name in STATIC]
    lines += [
        "",
        "PSNR minus that of static at the same compute. Static's is interpolated for each clip along its own four settings;",
        "`outside` where the setting's compute lies beyond them.",
        "",
        "| setting | compute (FLOPs / full) | PSNR above static, dB | n |",
        "| --- | --- | --- | --- |",
    ]
    for name, rows in records.items():
        if name in STATIC:
            continue
        gains = []
        for clip in range(clips):
            curve = sorted((1 - s[clip]["flops_saved"], s[clip]["metrics"]["psnr"]) for s in static)
            compute, psnr = 1 - rows[clip]["flops_saved"], rows[clip]["metrics"]["psnr"]
            xs, ys = zip(*curve)
            if xs[0] <= compute <= xs[-1]:
                gains.append(psnr - float(np.interp(compute, xs, ys)))
        compute = np.mean([1 - r["flops_saved"] for r in rows])
        if len(gains) < 4:
            lines.append(f"| {name} | {compute:.3f} | outside | {len(gains)} |")
        else:
            mean = bootstrap(gains)
            lines.append(
                f"| {name} | {compute:.3f} | {mean.mean:+.2f} ({mean.low:+.2f} to {mean.high:+.2f}) | {mean.n} |"
            )
    return "\n".join(lines) + "\n"


def _cell(value: dict) -> str:
    digits = 1 if value.get("unit") == "dB" else 3
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/foresight_vs_static"))
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1, help="per caption")
    parser.add_argument("--part", default="0/1", help="i/n makes every n-th setting from the i-th: one process each")
    parser.add_argument("--first", type=int, default=0, help="number of the first setting to make")
    parser.add_argument("--compare", action="store_true", help="only compare the runs that are there")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if not options.compare:
        made = make(options.runs_dir, options.seeds, options.captions, part, parts, options.first)
        if parts > 1 or options.first:
            print(f"part {options.part} is done ({len(made)} settings); compare with --compare when all are")
            return
    names = list(settings())
    finished = [p for p in sorted(options.runs_dir.glob("sweep*")) if (p / "metrics.json").is_file()]
    table = compare({names[int(p.name[5:7])]: p for p in finished})
    (options.runs_dir / "comparison.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
