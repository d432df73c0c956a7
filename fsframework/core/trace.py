"""`Trace`: one row per visit of a site. Its columns are documented here and nowhere else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fsframework.core.site import Branch, Part, Site
from fsframework.core.trace_views import CacheBytes, Heatmap, cache_curves, heatmap

if TYPE_CHECKING:
    import pandas

COLUMNS: dict[str, str] = {
    "video": "0-based number of the video in this session",
    "step": "0-based denoising step",
    "timestep": "the scheduler's value at that step",
    "branch": "guidance forward: cond, uncond, or joint for a batch of both",
    "site": "name of the site, in execution order within a step",
    "decision": "recompute | reuse | forecast | blend | partial | synthesize | eliminated (dead, so not run)",
    "forced": "True where the policy wanted to reuse but nothing was cached yet",
    "lag": "steps since the value put in place was computed; 0 where the site ran",
    "distance": "what the policy measured at this visit, in its own unit; NaN where it measured nothing",
    "threshold": "what it compares distances with at this visit; NaN where there is none",
    "seconds": "host time of a block's visit; NaN for other parts and unless the session was opened with timing=True",
    "flops": "floating-point operations really executed at this visit, from shapes; NaN if they could not be counted",
    "cache_bytes": "bytes the cache held at the end of this row's step, the same in all rows of the step; NaN if it never ended",
    "cache_bytes_peak": "the most bytes it held at once within the step",
}
"""Column name -> meaning."""

RECOMPUTE, REUSE, FORECAST, BLEND, PARTIAL, SYNTHESIZE, ELIMINATED = range(7)
DECISIONS = ("recompute", "reuse", "forecast", "blend", "partial", "synthesize", "eliminated")
LETTERS = "CRFBPSE"
"""One letter per decision, for strings like `CCCCCRCR` (C recompute, R reuse)."""

NAN = math.nan
Value = Tensor | float


@dataclass
class Trace:
    """The decisions of one video, written by the engine during the run and resolved on the first read.

    Columns are lists with a value per row. The engine lengthens them once per forward (`begin`), with what nearly every
    row holds, so that a visit only writes what it alone knows: its site, and whatever is not a recompute.

    Distances and thresholds may be device scalars; they are brought over in one transfer when first asked for.
    """

    video: int
    sites: Sequence[Site]
    timesteps: Sequence[float]
    parts: frozenset[Part]
    """The parts the policy is asked about: only their rows count as decisions."""
    count_flops: dict[str, Callable[[], dict[Site, float]]] = field(default_factory=dict)
    """By branch: gives the FLOPs of each site, and of the whole model under the MODEL site, when first needed. Branches may
    differ, in samples or in text tokens."""

    step: list[int] = field(default_factory=list)
    branch: list[str] = field(default_factory=list)
    site: list[Site] = field(default_factory=list)
    decision: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    lag: list[int] = field(default_factory=list)
    distance: list[Value | None] = field(default_factory=list)
    """As the policy logged it, None where it did not; `logged` gives numbers."""
    threshold: list[Value | None] = field(default_factory=list)
    """As `distance`."""
    seconds: dict[int, float] = field(default_factory=dict)
    batch_share: dict[int, float] = field(default_factory=dict)
    """Share of the batch, for rows of a forward of half a guidance batch."""
    share: dict[int, float] = field(default_factory=dict)
    """Share of the tokens really executed, for `partial` rows."""
    forwards: list[tuple[int, str, float, str]] = field(default_factory=list)
    """(step, branch, share of the batch, denoiser) of every forward of the model."""
    cache: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By step: bytes that the cache held at its end, and the most at once within it. `cache_bytes` gives curves."""
    _logged: dict[str, dict[int, Value]] = field(default_factory=lambda: defaultdict(dict))
    """By name and row, what else the policy logged."""
    _resolved: dict[str, dict[int, float]] = field(default_factory=dict)
    _flops: dict[str, dict[Site, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step)

    def begin(self, step: int, branch: str, num_rows: int) -> int:
        """Prepare rows for a forward, all recomputes so far; gives the number of the first. `end` takes back the rest."""
        first = len(self.step)
        self.step += [step] * num_rows
        self.branch += [branch] * num_rows
        self.site += [self.sites[0]] * num_rows
        self.decision += [RECOMPUTE] * num_rows
        self.forced += [False] * num_rows
        self.lag += [0] * num_rows
        self.distance += [None] * num_rows
        self.threshold += [None] * num_rows
        return first

    def end(self, num_rows: int) -> None:
        """Keep `num_rows` rows of the whole trace: a forward may have fewer visits than were prepared for."""
        if num_rows < len(self.step):
            for column in self._columns():
                del column[num_rows:]

    def extend(self, other: Trace, first_step: int) -> None:
        """Add the rows and forwards of another trace, whose steps count on from `first_step`."""
        first_row = len(self)
        for own, more in zip(self._columns(), other._columns()):
            own += more
        self.step[first_row:] = [first_step + step for step in other.step]
        for name in ("seconds", "batch_share", "share"):
            getattr(self, name).update({first_row + row: value for row, value in getattr(other, name).items()})
        self.forwards += [(first_step + step, branch, share, model) for step, branch, share, model in other.forwards]
        self.cache.update({first_step + step: noted for step, noted in other.cache.items()})
        for column in ("distance", "threshold", *other._logged):  # as numbers: the traces' devices may differ
            for row, value in other.logged(column).items():
                self.log(column, first_row + row, value)

    def note_cache(self, step: int, held: int, most: int) -> None:
        """A forward of `step` is over: `held` bytes are cached now, and `most` were at once since the step began."""
        self.cache[step] = (held, most)

    def _columns(self) -> tuple[list[Any], ...]:
        return (
            self.step, self.branch, self.site, self.decision, self.forced, self.lag, self.distance, self.threshold
        )  # fmt: skip

    def log(self, column: str, row: int, value: Value) -> None:
        """Note a distance, threshold or other named number for a row; a tensor is read later."""
        if column == "distance":
            self.distance[row] = value
        elif column == "threshold":
            self.threshold[row] = value
        else:
            self._logged[column][row] = value

    def column(self, name: str) -> list[Any]:
        """One column as a list, a value per row."""
        n = len(self)
        if name == "video":
            return [self.video] * n
        if name == "timestep":
            return [self.timesteps[s] for s in self.step]
        if name == "site":
            return [site.name for site in self.site]
        if name == "decision":
            return [DECISIONS[d] for d in self.decision]
        if name in ("step", "branch", "forced", "lag"):
            return list(getattr(self, name))
        if name == "seconds":
            return [self.seconds.get(row, NAN) for row in range(n)]
        if name in ("distance", "threshold"):
            values = self.logged(name)
            return [values.get(row, NAN) for row in range(n)]
        if name == "flops":
            return self._row_flops()
        if name in ("cache_bytes", "cache_bytes_peak"):
            curves = self.cache_bytes()
            per_step = curves.held if name == "cache_bytes" else curves.most
            return [per_step[step] for step in self.step]
        raise ValueError(f"no trace column {name!r}; columns are {', '.join(COLUMNS)}")

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per visit, in execution order, with the columns of `COLUMNS`."""
        columns = {name: self.column(name) for name in COLUMNS}
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame({name: self.column(name) for name in COLUMNS})

    def decisions(self, site: Site | str, branch: str | None = None) -> str:
        """A site's decisions over the steps as letters, `CCCCCRCR`: C recompute, R reuse, F forecast, ... E eliminated."""
        name = site if isinstance(site, str) else site.name
        if name not in {s.name for s in self.site}:
            from fsframework.core.registry import nearest

            raise ValueError(f"no site {name!r} in this trace. {nearest(name, sorted({s.name for s in self.site}))}")
        return "".join(
            LETTERS[d]
            for s, b, d in zip(self.site, self.branch, self.decision)
            if s.name == name and (branch is None or b == branch)
        )

    def heatmap(self, column: str = "decision", part: Part | None = None, branch: str | None = None) -> Heatmap:
        """Sites x steps of one column: `decision` as 1 where the site was not recomputed and 0 where it was.

        Several branches are averaged unless one is named. `part` defaults to blocks, or to what the policy asked about.
        """
        return heatmap(self, column, part, branch)

    def cache_bytes(self) -> CacheBytes:
        """Bytes of the cache over the denoising steps: held at the end of each step, and the most at once within it.

        As stored, so values packed into a smaller dtype count less; the values that a policy keeps of its own are in it.
        """
        return cache_curves(self)

    def summary(self) -> dict[str, float]:
        """Counts and shares of the video.

        `reuse_fraction` counts decisions at the sites the policy was asked about; an eliminated block was to be recomputed,
        so it does not count as reused, a partial one does. `flops_saved` and `flops_speedup`
        count live compute: a recomputed block whose result a later reuse throws away still costs, an eliminated one
        does not. `forced` is the number of reuses of an empty cache.
        """
        asked = [d for s, d in zip(self.site, self.decision) if s.part in self.parts]
        reused = sum(d not in (RECOMPUTE, BLEND, ELIMINATED) for d in asked)
        executed, full = self.total_flops()
        return {
            "num_steps": float(len(self.timesteps)),
            "num_decisions": float(len(asked)),
            "reuse_fraction": reused / len(asked) if asked else 0.0,
            "forced": float(sum(self.forced)),
            "flops_full": full,
            "flops_executed": executed,
            "flops_saved": 1 - executed / full if full else 0.0,
            "flops_speedup": full / executed if executed else NAN,
        }

    def total_flops(self) -> tuple[float, float]:
        """(executed, full): FLOPs of all forwards of this video, and what full compute would have cost."""
        full = executed = 0.0
        for _, branch, share, model in self.forwards:
            counted = self.flops_per_site(branch)
            whole = next((f for s, f in counted.items() if s.part is Part.MODEL and s.denoiser == model), NAN)
            full += whole
            executed += whole * share
        for row, (site, branch, decision) in enumerate(zip(self.site, self.branch, self.decision)):
            if site.part in (Part.MODEL, Part.TRUNK, Part.SPAN) or decision in (RECOMPUTE, BLEND):
                continue  # regions own no FLOPs: their blocks have rows of their own
            cost = self.flops_per_site(branch).get(site, NAN)
            executed -= cost * (1 - self.share.get(row, 0.0)) * self.batch_share.get(row, 1.0)
        return executed, full

    def flops_per_site(self, branch: str | None = None) -> dict[Site, float]:
        """FLOPs of one full visit of each site in a branch; the whole model under the MODEL site. Counted once.

        A half of a joint batch that was run alone has the batch's count (and a share of it in `batch_share`). Without a
        branch: those of the first.
        """
        counters = self.count_flops
        if not counters:
            return {}
        name = branch if branch in counters else Branch.JOINT if Branch.JOINT in counters else next(iter(counters))
        if name not in self._flops:
            self._flops[name] = counters[name]()
        return self._flops[name]

    def _row_flops(self) -> list[float]:
        inside: dict[tuple[str, int], list[Site]] = defaultdict(list)
        for site in {s for s in self.site if s.part.inside_block}:
            inside[(site.denoiser, site.start)].append(site)
        out = []
        for row, (site, branch, decision) in enumerate(zip(self.site, self.branch, self.decision)):
            if site.part in (Part.MODEL, Part.TRUNK, Part.SPAN):
                out.append(0.0)
                continue
            per_site = self.flops_per_site(branch)
            own = per_site.get(site, NAN)
            if site.part is Part.BLOCK:
                own -= sum(per_site.get(part, NAN) for part in inside[(site.denoiser, site.start)])
            executed = 1.0 if decision in (RECOMPUTE, BLEND) else self.share.get(row, 0.0)
            out.append(own * executed * self.batch_share.get(row, 1.0))
        return out

    def logged(self, column: str) -> dict[int, float]:
        """`distance`, `threshold` or whatever else the policy logged, by row, only the rows that have one; device scalars
        come over in one transfer."""
        if column not in self._resolved:
            if column in ("distance", "threshold"):
                logged = {row: v for row, v in enumerate(getattr(self, column)) if v is not None}
            else:
                logged = self._logged.get(column, {})
            tensors = {row: v for row, v in logged.items() if isinstance(v, Tensor)}
            values = {row: v for row, v in logged.items() if not isinstance(v, Tensor)}
            if tensors:
                flat = torch.stack([v.detach().to(torch.float32).reshape(()) for v in tensors.values()])
                values.update(zip(tensors, flat.tolist()))
            self._resolved[column] = values
        return self._resolved[column]


def concatenate(traces: Iterable[Trace]) -> pandas.DataFrame:
    """Several videos' traces in one DataFrame."""
    import pandas as pd

    return pd.concat([trace.to_pandas() for trace in traces], ignore_index=True)
