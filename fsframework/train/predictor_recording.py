"""Recordings for the trainer `predictor`: how far every site is from what it gave 1, 2, ... steps ago, in full compute."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsframework.core import RECOMPUTE, Call, Decision, Entry, Kind, Part, ReusePolicy, Run, Site, State, Trace
from fsframework.core.policy import Storage
from fsframework.core.prompt import NEUTRAL
from fsframework.policies.predictor import relative_change

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fsframework.data.prompts import Clip
    from fsframework.train.learned import Learning
    from fsframework.train.predictor import PredictorOptions

VERSION = 2
"""Of what a recording's file holds; files of others are not read but made anew."""


@dataclass(frozen=True)
class LagRecorder(ReusePolicy[None]):
    """Recomputes everything and logs each site's distance from its newest values, as `lag1`, `lag2`, ..., and at the first
    site of a video the norm of the prompt's embedding, as `prompt_norm`."""

    depth: int
    """The longest lag."""
    storage: Storage = "residual"
    """What is compared."""
    runs: list[Run] = field(default_factory=list, compare=False)
    """Filled in: the run of each guidance branch."""

    def start(self, run: Run) -> None:
        """Note the run."""
        self.runs.append(run)

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        """Always recompute."""
        return RECOMPUTE

    def schedule(self, run: Run) -> list[bool]:
        """Every step is computed."""
        return [True] * run.num_steps

    def observe(self, state: None, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Compare with every cached value."""
        if call.step.index == 0 and site == call.run.sites[0]:
            call.log(prompt_norm=call.probe("prompt_norm"))
        for entry in call.history(site):
            lag = call.step.index - entry.step
            call.log(**{f"lag{lag}": relative_change(fresh, call.input(), entry, self.storage)})


@dataclass(frozen=True)
class Recording:
    """One video of full compute, of one guidance branch."""

    run: Run
    distances: NDArray[np.float64]
    """[steps, sites, lags]: d(s, s - lag); NaN where there was no such step."""
    prompt_norm: float = NEUTRAL
    """Root mean square of the prompt's embedding."""


class Recordings:
    """Recordings on disk, a file per video; what is missing is made."""

    def __init__(self, learning: Learning, options: PredictorOptions) -> None:
        self._learning, self._options = learning, options
        self._folder = Path(learning.config.output_dir) / "recordings"

    def of(self, clips: Sequence[Clip], changes: Mapping[str, Any], title: str) -> list[Recording]:
        """The recordings of clips, one for each guidance branch, with changed sampling arguments; `title` for the screen."""
        from tqdm import tqdm

        sampling = {**self._learning.sampling, **changes}
        for clip in tqdm(clips, desc=f"recording, {title}", unit="clip", disable=None, file=sys.stderr):
            if not self._path(clip, sampling).is_file():
                self._record(clip, sampling)
        return [recording for clip in clips for recording in load(self._path(clip, sampling))]

    def _path(self, clip: Clip, sampling: Mapping[str, Any]) -> Path:
        model = self._learning.model
        identity = [
            VERSION, model.name, str(model.path), dict(sampling), clip.prompt, clip.seed, self._options.storage,
            self._options.max_lag,
        ]  # fmt: skip
        return self._folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}.json"

    def _record(self, clip: Clip, sampling: Mapping[str, Any]) -> None:
        import torch

        import fsframework as fsf

        model = self._learning.model
        policy = LagRecorder(self._options.max_lag, "output" if self._options.storage == "output" else "residual")
        with torch.no_grad(), fsf.reuse(model.pipe, policy) as session:
            model.generate_latents(clip.prompt, clip.seed, **sampling)
        path = self._path(clip, sampling)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps([to_plain(run, session.trace, policy.depth) for run in policy.runs]) + "\n")
        os.replace(temporary, path)


def to_plain(run: Run, trace: Trace, max_lag: int) -> dict[str, Any]:
    """JSON of what `LagRecorder` logged in one guidance branch."""
    column = {site.name: i for i, site in enumerate(run.sites)}
    rows = list(zip(trace.column("step"), trace.column("site"), trace.column("branch")))
    distances: list[list[list[float | None]]] = [[[None] * max_lag for _ in column] for _ in run.timesteps]
    for lag in range(1, max_lag + 1):
        for row, value in trace.logged(f"lag{lag}").items():
            step, site, branch = rows[row]
            if branch == run.branch:
                distances[step][column[site]][lag - 1] = float(f"{value:.7g}")
    (norm,) = [value for row, value in trace.logged("prompt_norm").items() if rows[row][2] == run.branch]
    facts = {k: list(v) if isinstance(v, tuple) else v for k, v in run.facts.items()}
    return {
        "branch": run.branch,
        "timesteps": [float(t) for t in run.timesteps],
        "sites": [[s.part.value, s.kind.value, s.start, s.stop, s.ordinal, s.denoiser] for s in run.sites],
        "facts": {k: v for k, v in facts.items() if isinstance(v, (str, int, float, bool, list))},
        "distances": distances,
        "prompt_norm": float(f"{norm:.7g}"),
    }


def load(path: Path) -> list[Recording]:
    """The recordings in a file, one for each guidance branch."""
    out = []
    for one in json.loads(path.read_text(encoding="utf-8")):
        sites = [Site(Part(s[0]), Kind(s[1]), *s[2:]) for s in one["sites"]]
        run = Run(len(one["timesteps"]), one["timesteps"], sites, one["branch"], one["facts"])
        out.append(Recording(run, np.array(one["distances"], dtype=float), one["prompt_norm"]))
    return out
