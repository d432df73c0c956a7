"""Every policy on the three trained tiny models: tune its main knob to some FLOPs fractions, then measure.

    python experiments/policy_comparison/sweep.py tune --model tiny-latte       # which settings reach which fraction
    python experiments/policy_comparison/sweep.py measure --model tiny-latte    # 16 clips of each setting; resumes
    python experiments/policy_comparison/sweep.py measure --model tiny-latte --policies static foresight
    python experiments/policy_comparison/sweep.py tune --model tiny-latte --policies foresight --add 0.69    # one more

`measure` takes clips in turn and all settings within a clip, full compute again after every few of them, so that what is
compared was measured side by side. Both write into `runs/policy_comparison/<model>/`; `compare.py` reads it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/policy_comparison")
NUM_STEPS = 30
TARGETS = (0.75, 0.5, 0.33)
"""Shares of full compute at which policies are compared, and to which each is tuned."""
TUNING_CLIPS = 1
EVALUATIONS = 6
"""Values of a knob that are tried per target."""
FULL_EVERY = 10
"""Settings between two runs of full compute, the time that speedups are taken from."""


@dataclass(frozen=True)
class Ladder:
    """How one method gets from little reuse to much."""

    policy: Mapping[str, Any]
    """The config block, without the knob."""
    knob: str = ""
    """The option that is tuned; dotted where it lies in a policy inside."""
    between: tuple[float, float] = (0.0, 0.0)
    """Its ends, from little reuse to much; tuned by bisection on a logarithmic scale."""
    values: tuple[Any, ...] = ()
    """Instead: the settings to take, each a value of the knob or a mapping of options."""
    targets: tuple[float, ...] = TARGETS
    models: tuple[str, ...] = ("tiny-latte", "tiny-cogvideox", "tiny-opensora")
    per_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further options by model."""


def block(ladder: Ladder, model: str, value: Any) -> dict[str, Any]:
    """The config block of one setting."""
    out = json.loads(json.dumps({**ladder.policy, **ladder.per_model.get(model, {})}))
    for key, one in (value if isinstance(value, Mapping) else {ladder.knob: value}).items():
        into = out
        *path, last = key.split(".")
        for name in path:
            into = into[name]
        into[last] = one
    return out


class Bench:
    """A loaded model and its clips."""

    def __init__(self, name: str, num_clips: int) -> None:
        import torch

        import fsframework.models
        import fsframework.policies  # noqa: F401
        from fsframework.data.prompts import load_prompts, plan_clips
        from fsframework.metrics import METRICS
        from fsframework.models.loading import load_model

        torch.set_num_threads(1)
        self.name = name
        self.model = load_model(name, device=torch.device("cpu"))
        self.model.pipe.set_progress_bar_config(disable=True)
        self.clips = plan_clips(load_prompts("digits", None, min(num_clips, 20)), 500, math.ceil(num_clips / 20))
        self.clips = self.clips[:num_clips]
        self.metrics = {key: METRICS[key]() for key in ("psnr", "ssim", "adherence")}
        self.device = torch.device("cpu")
        self.model.generate(self.clips[0].prompt, 0, num_steps=2)

    def full(self, clip: Any) -> Any:
        """The reference, timed."""
        from fsframework.run.reference import generate_timed

        return generate_timed(self.model, clip, {"num_steps": NUM_STEPS}, self.device)

    def make(self, options: Mapping[str, Any], clip: Any) -> tuple[Any, dict[str, float]]:
        """One video under a policy, timed, and the session's summary."""
        import fsframework as fsf
        from fsframework.run.reference import generate_timed
        from fsframework.run.resolve import build_policy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fsf.reuse(self.model.pipe, build_policy(options)) as session:
                made = generate_timed(self.model, clip, {"num_steps": NUM_STEPS}, self.device)
            return made, session.summary()

    def fraction(self, options: Mapping[str, Any]) -> float:
        """Executed FLOPs / full, over the tuning clips."""
        return sum(1 - self.make(options, c)[1]["flops_saved"] for c in self.clips[-TUNING_CLIPS:]) / TUNING_CLIPS


def tune(bench: Bench, ladder: Ladder) -> Iterator[tuple[dict[str, Any], float]]:
    """The settings of a ladder with the fraction each reaches."""
    known: dict[str, float] = {}

    def fraction(value: Any) -> float:
        key = json.dumps(value)
        if key not in known:
            known[key] = bench.fraction(block(ladder, bench.name, value))
        return known[key]

    if ladder.values:
        for value in ladder.values:
            yield block(ladder, bench.name, value), fraction(value)
        return
    done = set()
    for target in ladder.targets:
        for _ in range(EVALUATIONS):
            value = _between(ladder, known, target)
            if abs(fraction(value) - target) < 0.02:
                break
        best = min(known, key=lambda key: abs(known[key] - target))
        if best not in done:
            done.add(best)
            yield block(ladder, bench.name, json.loads(best)), known[best]


def _between(ladder: Ladder, known: Mapping[str, float], target: float) -> float:
    """The next value to try: in the middle, on a logarithmic scale, of the closest known ones around the target."""
    little, much = map(math.log, ladder.between)
    sign = 1 if much > little else -1  # in which direction the knob reuses more
    for key, found in known.items():
        at = math.log(json.loads(key))
        if found > target:
            little = max(little, at, key=lambda v: sign * v)
        else:
            much = min(much, at, key=lambda v: sign * v)
    return float(f"{math.exp((little + much) / 2):.3g}")


def run_tune(bench: Bench, names: list[str], add: Sequence[float] = ()) -> None:
    """Write `settings.json`: method -> its settings; with `add`, further ones of the named methods, tuned to these fractions."""
    from ladders import FAST, LADDERS

    path = RUNS / bench.name / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.is_file() else {}
    if add:
        for name in names:
            for target in add:
                ladder = LADDERS[name][0 if target > max(FAST) else -1]
                known = [one["options"] for one in found[name]]
                for options, fraction in tune(bench, replace(ladder, targets=(target,))):
                    print(f"{bench.name} {name} {fraction:.3f} {options}", flush=True)
                    if options not in known:
                        found[name].append({"options": options, "fraction": fraction})
        path.write_text(json.dumps(found, indent=1))
        return
    for name, ladders in LADDERS.items():
        if (names and name not in names) or (name in found and not names):
            continue
        settings = []
        for ladder in ladders:
            if bench.name not in ladder.models:
                continue
            started = time.monotonic()
            try:
                for options, fraction in tune(bench, ladder):
                    settings.append({"options": options, "fraction": fraction})
                    print(f"{bench.name} {name} {fraction:.3f} {options}", flush=True)
            except ValueError as error:
                print(f"{bench.name} {name} refused: {error}", flush=True)
            print(f"{bench.name} {name}: {time.monotonic() - started:.0f} s", flush=True)
        found = json.loads(path.read_text()) if path.is_file() else {}
        found[name] = settings
        path.write_text(json.dumps(found, indent=1))


def run_measure(bench: Bench, names: list[str]) -> None:
    """Append a line per (setting, clip) to `videos.jsonl`; what is there is kept."""
    folder = RUNS / bench.name
    settings = json.loads((folder / "settings.json").read_text())
    rows = [(n, s["options"]) for n, all_of in settings.items() if not names or n in names for s in all_of]
    path = folder / "videos.jsonl"
    done = set()
    if path.is_file():
        done = {(r["clip"], json.dumps(r["options"])) for r in map(json.loads, path.read_text().splitlines())}
    for clip in bench.clips:
        missing = [(n, o) for n, o in rows if (clip.index, json.dumps(o)) not in done]
        if not missing:
            continue
        before = bench.full(clip)
        for first in range(0, len(missing), FULL_EVERY):
            chunk = [(n, o, bench.make(o, clip)) for n, o in missing[first : first + FULL_EVERY]]
            after = bench.full(clip)
            seconds = (before.cpu_seconds + after.cpu_seconds) / 2
            with path.open("a") as file:
                for name, options, (made, summary) in chunk:
                    quality: dict[str, float] = {}
                    for metric in bench.metrics.values():
                        quality.update(
                            metric(made.video, before.video if metric.needs_reference else None, clip.prompt)
                        )
                    record = {
                        "method": name, "options": options, "clip": clip.index, "prompt": clip.prompt, "seed": clip.seed,
                        "fraction": 1 - summary["flops_saved"], "cpu_seconds": made.cpu_seconds,
                        "full_cpu_seconds": seconds, "reuse_fraction": summary["reuse_fraction"],
                        "cache_bytes_peak": summary["cache_bytes_peak"],
                        "host_reads_per_step": summary["host_reads_per_step"], **quality,
                    }  # fmt: skip
                    file.write(json.dumps(record) + "\n")
            before = after
        print(f"{bench.name}: clip {clip.index + 1} of {len(bench.clips)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "measure"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--policies", nargs="*", default=[], help="names in ladders.py; default: all")
    parser.add_argument(
        "--add", nargs="*", type=float, default=[], help="tune: one more setting per named policy, at these"
    )
    options = parser.parse_args()
    if options.add and not options.policies:
        parser.error("--add needs --policies")
    bench = Bench(options.model, options.clips)
    if options.what == "tune":
        run_tune(bench, options.policies, options.add)
    else:
        run_measure(bench, options.policies)


if __name__ == "__main__":
    main()
