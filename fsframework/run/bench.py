"""`fsf bench`: the bare model, our policies and the peers' caches, side by side in one process, in interleaved rounds."""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsframework.core import LoadedModel
from fsframework.run import bench_methods
from fsframework.run.bench_config import BenchConfig
from fsframework.run.bench_counts import flops_and_reads
from fsframework.run.bench_methods import Method
from fsframework.run.costs import measure
from fsframework.run.progress import Progress


@dataclass
class Row:
    """One method in one section: a value per round, and what was counted once."""

    name: str
    kind: str
    note: str = ""
    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    device_seconds: list[float] = field(default_factory=list)
    memory_growth: list[float] = field(default_factory=list)
    """Bytes beyond what was held when the call began."""
    error: list[float] = field(default_factory=list)
    """|latents - bare latents| / |bare latents|, of the same prompt and seed."""
    flops: float = math.nan
    """Of one video."""
    host_reads: float = math.nan
    """Per step, beyond the bare model's."""
    failed: str = ""
    """Why it could not be measured."""

    @property
    def seconds(self) -> list[float]:
        """What speedups are made of: CUDA events on a GPU, process CPU time elsewhere."""
        return self.device_seconds or self.cpu_seconds


@dataclass
class Section:
    """Rows that were measured together; the first is the bare model."""

    title: str
    rows: list[Row]
    sampling: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bare(self) -> Row:
        """What the others are compared with."""
        return self.rows[0]


@dataclass
class Result:
    """All that was measured until the end, or until it was stopped."""

    config: BenchConfig
    conditions: dict[str, Any]
    engine: dict[str, Any] | None = None
    """What `bench_engine` found."""
    sections: list[Section] = field(default_factory=list)
    stopped: bool = False


def bench(config: BenchConfig) -> Result:
    """Measure, print the tables, and write bench.json, bench.md and a picture per section below `config.out`.

    Ctrl-C stops it: what was measured until then is printed and written, then the interrupt goes on.
    """
    from fsframework.run.bench_table import write
    from fsframework.run.provenance import environment
    from fsframework.run.resolve import resolve_device

    torch.set_num_threads(config.num_threads)
    device = resolve_device(config.device)
    result = Result(config, environment(str(device), Path(__file__).resolve().parents[2]))
    interrupt: KeyboardInterrupt | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _sections(config, result)
        except KeyboardInterrupt as stop:
            interrupt, result.stopped = stop, True
    write(result, Path(config.out))
    if interrupt is not None:
        raise interrupt
    return result


def _sections(config: BenchConfig, result: Result) -> None:
    if "engine" in config.sections:
        from fsframework.run.bench_engine import engine_costs

        result.engine = engine_costs(config.rounds)
    if "model" in config.sections:
        model = bench_methods.load(config)
        steps = config.num_steps or (30 if isinstance(model.path, Path) else model.checkpoint.num_steps)
        asked = {"num_steps": steps, "height": config.height, "width": config.width, "num_frames": config.num_frames}
        _measure(config, result, model, {key: value for key, value in asked.items() if value is not None}, wide=False)
    if "wide" in config.sections:
        model = bench_methods.load_wide(config)
        sampling = {"num_steps": config.wide_steps, "num_frames": config.wide_frames}
        _measure(config, result, model, sampling, wide=True)


def _measure(config: BenchConfig, result: Result, model: LoadedModel, sampling: dict[str, Any], wide: bool) -> None:
    """One section, into `result` as it grows."""
    from fsframework.data.prompts import load_prompts

    prompts = load_prompts(config.prompts)
    print(f"{model.name}: {_steps(sampling)}, {config.rounds} rounds", file=sys.stderr)
    compared = bench_methods.methods(config, model, sampling, wide)
    section = Section(model.name, [Row(m.name, m.kind, m.note) for m in compared], sampling)
    section.notes = bench_methods.notes(config, model)
    result.sections.append(section)
    progress = Progress(model.name, len(compared) * (config.rounds + 1), 0)
    device = next(model.transformer.parameters()).device

    def call(number: int) -> Callable[[], Tensor]:
        prompt = prompts[number % len(prompts)].text
        return lambda: model.generate_latents(prompt, config.seed + number, **sampling)

    try:
        _count(section.rows, compared, model, call(0), int(sampling["num_steps"]), device, progress)
        for number in range(config.rounds):
            order = list(zip(section.rows, compared))
            reference: Tensor | None = None
            # Turned round from round to round, so that no method always follows the same one; the bare model stays first,
            # for the others are compared with its latents.
            for row, method in [order[0], *(order[1:] if number % 2 == 0 else order[:0:-1])]:
                if not row.failed:
                    reference = _one_round(row, method, model, call(number), device, reference)
                progress.advance(method.name)
    finally:
        progress.close()


def _steps(sampling: dict[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('num_')} {value}" for key, value in sampling.items())


def _count(
    rows: Sequence[Row],
    compared: Sequence[Method],
    model: LoadedModel,
    call: Callable[[], Tensor],
    num_steps: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """FLOPs and host reads of each method, in a pass of its own that also warms everything up."""
    bare_reads = 0
    for row, method in zip(rows, compared):
        try:
            with method.session(model.pipe):
                row.flops, reads = flops_and_reads(call, device)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # a peer that does not know this model says so in ways of its own
            if method.kind in ("bare", "ours"):
                raise
            row.failed = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no message'}"
        else:
            bare_reads = reads if method.kind == "bare" else bare_reads
            row.host_reads = (reads - bare_reads) / num_steps
        progress.advance(f"{method.name}, counted")


def _one_round(
    row: Row,
    method: Method,
    model: LoadedModel,
    call: Callable[[], Tensor],
    device: torch.device,
    reference: Tensor | None,
) -> Tensor:
    """Generate and measure once; gives the bare model's latents."""
    with method.session(model.pipe):
        latents, costs = measure(call, device)
    row.cpu_seconds.append(costs.cpu_seconds)
    row.wall_seconds.append(costs.wall_seconds)
    if costs.device_seconds is not None:
        row.device_seconds.append(costs.device_seconds)
    if costs.memory_bytes_growth is not None:
        row.memory_growth.append(float(costs.memory_bytes_growth))
    if reference is None:
        reference = latents
    row.error.append(float((latents - reference).norm() / reference.norm()))
    return reference


def median(values: Sequence[float]) -> float:
    """The median, NaN of nothing."""
    return statistics.median(values) if values else math.nan
