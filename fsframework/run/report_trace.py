"""A run's trace over sites and steps: shares of decisions, and distance and threshold curves.

Shape suffixes: S sites in execution order, T denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

NOT_REUSED = ("recompute", "blend", "eliminated")
"""Decisions that put no cached value in place."""


@dataclass(frozen=True)
class Curves:
    """Distance and threshold of one branch over the videos, NaN where nothing was measured."""

    distance_ST: np.ndarray
    low_ST: np.ndarray
    """10th percentile over videos."""
    high_ST: np.ndarray
    """90th percentile over videos."""
    count_ST: np.ndarray
    """In how many videos the distance was measured."""
    threshold_ST: np.ndarray


@dataclass(frozen=True)
class CacheSteps:
    """Bytes of the cache in each step, means over the videos; NaN where no video came to the step's end."""

    held_T: np.ndarray
    """Held at the step's end."""
    most_T: np.ndarray
    """The most at once within the step."""
    num_videos: int

    @property
    def peak(self) -> float:
        """The largest of `most_T`."""
        return float(np.nanmax(self.most_T))

    @property
    def peak_step(self) -> int:
        """The first step that has it."""
        return int(np.nanargmax(self.most_T))


@dataclass(frozen=True)
class TraceGrid:
    """What happened at each site and step; shares are over all videos and branches, NaN where a site was not visited."""

    sites: list[str]
    num_steps: int
    num_videos: int
    timesteps: list[float]
    reuse_ST: np.ndarray
    eliminated_ST: np.ndarray
    forced_ST: np.ndarray
    lag_ST: np.ndarray
    """Mean lag of the reused values, in steps; NaN where nothing was reused."""
    reuse_T: np.ndarray
    """Share reused in each step, over the sites of the sort that the policy reuses at all."""
    curves: dict[str, Curves]
    """Per branch; empty if the policy measures no distance."""
    cache: CacheSteps | None = None
    """None for a trace of a release that did not record it."""

    @property
    def labels(self) -> list[str]:
        """Short names: s0 t0 s1 t1 ... and s0.mlp."""
        return short_names(self.sites)


_KINDS = ("spatial", "temporal", "joint", "single", "control", "mixed")


def short_names(sites: list[str]) -> list[str]:
    """`spatial.3` -> `s3`, `temporal.3.mlp` -> `t3.mlp`, `transformer_2.joint.3` -> `2:j3`; full names where two kinds
    share a first letter."""
    split = [_split(site) for site in sites]
    kinds = {kind for _, kind, _ in split if kind}
    if len({kind[0] for kind in kinds}) < len(kinds):
        return list(sites)
    out = []
    for denoiser, kind, rest in split:
        number = denoiser.rpartition("_")[2]
        out.append((f"{number}:" if number else "") + (kind[:1] + rest))
    return out


def _split(site: str) -> tuple[str, str, str]:
    """(denoiser, kind, what follows) of a site's name; no kind for `trunk`, `model` and spans."""
    words = site.split(".")
    known = (*_KINDS, "span", "trunk", "model")
    denoiser = "" if words[0] in known else words.pop(0)
    if words[0] in _KINDS:
        return denoiser, words[0], ".".join(words[1:])
    return denoiser, "", ".".join(words)


def read_trace(path: Path) -> TraceGrid:
    """Reduce a trace.parquet with the columns of `fsframework.core.trace.COLUMNS`. ValueError if it has no rows."""
    import pandas as pd

    frame = pd.read_parquet(path)
    if frame.empty:
        raise ValueError("it has no rows")
    sites = list(dict.fromkeys(frame["site"]))
    num_steps = int(frame["step"].max()) + 1
    frame["reused"] = ~frame["decision"].isin(NOT_REUSED)
    frame["gone"] = frame["decision"] == "eliminated"
    frame["reuse_lag"] = frame["lag"].astype(float).where(frame["reused"])
    frame["part"] = [_part(site) for site in frame["site"]]

    def grid(column: str, rows: pandas.DataFrame, how: str = "mean") -> np.ndarray:
        grouped = rows.groupby(["site", "step"], sort=False)[column]
        series = {"low": grouped.quantile, "high": grouped.quantile}.get(how)
        values = series({"low": 0.1, "high": 0.9}[how]) if series else getattr(grouped, how)()
        table = values.unstack().reindex(index=sites, columns=range(num_steps))
        return table.to_numpy(dtype=np.float64)

    reusing = set(frame.loc[frame["decision"] != "recompute", "part"]) or {"block"}
    asked = frame[frame["part"].isin(reusing)]
    reuse_T = asked.groupby("step")["reused"].mean().reindex(range(num_steps)).to_numpy(dtype=np.float64)
    curves = {}
    for branch, rows in frame.groupby("branch", sort=True):
        if rows["distance"].notna().any():
            measured = rows[np.isfinite(rows["distance"])]
            curves[str(branch)] = Curves(
                distance_ST=grid("distance", measured),
                low_ST=grid("distance", measured, "low"),
                high_ST=grid("distance", measured, "high"),
                count_ST=grid("distance", measured, "count"),
                threshold_ST=grid("threshold", rows),
            )
    timesteps = frame.groupby("step")["timestep"].first().reindex(range(num_steps))
    return TraceGrid(
        sites=[str(site) for site in sites],
        num_steps=num_steps,
        num_videos=int(frame["video"].nunique()),
        timesteps=[float(t) for t in timesteps],
        reuse_ST=grid("reused", frame),
        eliminated_ST=grid("gone", frame),
        forced_ST=grid("forced", frame),
        lag_ST=grid("reuse_lag", frame),
        reuse_T=reuse_T,
        curves=curves,
        cache=_cache_steps(frame, num_steps),
    )


def _cache_steps(frame: pandas.DataFrame, num_steps: int) -> CacheSteps | None:
    """The columns `cache_bytes` and `cache_bytes_peak`, which are the same in all rows of a video's step."""
    names = ["cache_bytes", "cache_bytes_peak"]
    if any(name not in frame.columns or frame[name].isna().all() for name in names):
        return None
    per_video = frame.groupby(["video", "step"], sort=False)[names].first().dropna()
    held_T, most_T = per_video.groupby("step").mean().reindex(range(num_steps)).to_numpy(dtype=np.float64).T
    return CacheSteps(held_T, most_T, per_video.index.get_level_values("video").nunique())


def _part(site: str) -> str:
    words = site.split(".")
    if words[-1] in ("model", "trunk"):
        return words[-1]
    if "span" in words:
        return "span"
    return "block" if words[-1].isdigit() else words[-1]
