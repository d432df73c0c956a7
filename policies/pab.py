"""Pyramid Attention Broadcast: attention outputs reused for as long as their kind changes little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsframework.core import POLICIES, Call, Decision, Kind, Part, ReusePolicy, Run, Site
from fsframework.core.schedule import check_every, most_kept, plan

Windows = tuple[tuple[float, float], ...]


@dataclass
class PabState:
    """One video and branch."""

    decisions: dict[Site, list[Decision]]
    """By site, what to do at each step; sites of a kind share one list."""


@POLICIES.register("pab")
@dataclass(frozen=True)
class PyramidAttentionBroadcast(ReusePolicy[PabState]):
    """Pyramid Attention Broadcast (arXiv:2408.12588): each kind of attention has its own range of steps.

    With r the range of a site's kind and t(s) the timestep of step s, the site is reused iff

        s mod r != 0   and   window_low < floor(t(s)) < window_high

    (without the floor where the timesteps are 1 to 0), where s counts from the video's first step, not from the window's.
    r = 1 never reuses. MLPs of the blocks in `mlp_blocks` have windows of their own: for each (first, last) in
    `mlp_windows` the step nearest to timestep `first` is computed and the following ones up to the step nearest to `last`
    are reused. VideoSys instead lists exact integer timesteps and how many steps follow; those are steps of one step count
    (and, for Open-Sora, of one video size), and at any other nothing ever matches. The published windows give its very
    steps at its own step counts (Latte: 50 steps, Open-Sora: 30) and the same stretch of noise levels at others.

    Granularity: sub-module. Caches one value per site that is ever reused: 4 hidden states per layer of a model of spatial
    and temporal blocks with cross-attention, and the few MLPs. Host reads: none; VideoSys reads the timestep back to the
    host in every block. Source: VideoSys `pab_mgr`, diffusers `hooks/pyramid_attention_broadcast.py`.
    """

    paper = "Pyramid Attention Broadcast, arXiv:2408.12588, VideoSys"
    signal = "the step's number and timestep"
    deviations = (
        "MLP windows are intervals of timesteps, so that they hold at any number of steps. Values are kept before the gate "
        "as in the diffusers hook; gate='post' is VideoSys, for families whose adapter states its gates. Cross-attention "
        "has no gate on Latte and Open-Sora."
    )
    published = {
        "opensora": {
            "spatial": 2, "temporal": 4, "cross_attention": 6, "window_low": 450.0, "window_high": 930.0,
            "mlp_windows": ((864.0, 829.0), (788.0, 738.0), (676.0, 597.0)), "mlp_blocks": (0, 1, 2, 3, 4),
        },
        "latte": {
            "spatial": 2, "temporal": 3, "cross_attention": 6, "window_low": 100.0, "window_high": 800.0,
            "mlp_windows": ((720.0, 680.0), (640.0, 600.0), (560.0, 520.0), (480.0, 440.0), (400.0, 360.0)),
            "mlp_blocks": (0, 1, 2, 3, 4),
        },
        "cogvideox": {"joint": 2, "window_low": 100.0, "window_high": 850.0, "mlp_windows": ()},
        "": {
            "spatial": 2, "temporal": 1, "joint": 2, "cross_attention": 1, "window_low": 100.0, "window_high": 800.0,
            "mlp_windows": (), "mlp_blocks": (0, 1, 2, 3, 4),
        },
    }  # fmt: skip
    never = {"spatial": 1, "temporal": 1, "joint": 1, "cross_attention": 1, "mlp_windows": ()}

    spatial: int | None = None
    """Range of self-attention in spatial blocks, in steps, >= 1: one step in so many is computed. Higher reuses more. None:
    as published for the model, else 2, the default of diffusers."""
    temporal: int | None = None
    """Range of self-attention in temporal blocks. None: as published, else 1."""
    joint: int | None = None
    """Range of attention over all tokens at once (joint and single-stream blocks). None: as published, else 2."""
    cross_attention: int | None = None
    """Range of attention to the text. None: as published, else 1."""
    window_low: float | None = None
    """Attention is reused only at timesteps above this, in the scheduler's unit (0 to 1000). None: as published, else 100."""
    window_high: float | None = None
    """Attention is reused only at timesteps below this. None: as published, else 800."""
    mlp_windows: Windows | None = None
    """(first, last) timesteps, first > last: MLPs are computed at the step nearest to `first` and reused up to the step
    nearest to `last`. Empty: no MLP is asked about. None: as published, else empty."""
    mlp_blocks: tuple[int, ...] | None = None
    """Blocks whose MLP is reused, by index in their own list (4 is the fifth spatial and the fifth temporal block)."""
    gate: str = "pre"  # type: ignore[assignment]
    """`pre` keeps what the sub-module gave and applies the gate of the step it is reused at (diffusers); `post` keeps the
    gated value (VideoSys), only where the adapter states its gates, else an error."""

    def __post_init__(self) -> None:
        for name in ("spatial", "temporal", "joint", "cross_attention"):
            if (range_ := getattr(self, name)) is not None:
                check_every(range_, name, "pab")
        if self.gate not in ("pre", "post"):
            raise ValueError(f"pab: gate={self.gate!r} must be pre or post")
        low, high = self.window_low, self.window_high
        for name, end in (("window_low", low), ("window_high", high)):
            if end is not None and math.isnan(end):
                raise ValueError(f"pab: {name}={end} must be a timestep, or infinite for no limit on that side")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"pab: window_low={low} must be below window_high={high}; timesteps fall from 1000 to 0")
        for window in self.mlp_windows or ():
            if len(window) != 2 or not window[0] > window[1]:
                raise ValueError(
                    f"pab: mlp_windows holds {window!r}; each is a pair (first, last) of timesteps with first > last, such "
                    f"as (720, 680)"
                )
        if self.mlp_windows is not None:  # lists, from a config
            object.__setattr__(self, "mlp_windows", tuple((float(a), float(b)) for a, b in self.mlp_windows))
        if self.mlp_blocks is not None:
            object.__setattr__(self, "mlp_blocks", tuple(self.mlp_blocks))

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Both kinds of attention, and MLPs unless their windows are given as empty."""
        attention = {Part.ATTENTION, Part.CROSS_ATTENTION}
        return frozenset(attention if self.mlp_windows == () else attention | {Part.MLP})

    def start(self, run: Run) -> PabState:
        """Work out all decisions.

        Raises:
            ValueError: the timesteps are on another scale than the window.
        """
        if run.num_steps > 1 and max(run.timesteps) <= 1 < self.option("window_low", run):
            raise ValueError(
                f"pab: this sampler's timesteps are {run.timesteps[0]:g} to {run.timesteps[-1]:g}, so none is within the "
                f"window of window_low={self.option('window_low', run):g}. Give window_low and window_high on that scale."
            )
        known: dict[tuple[bool, ...], list[Decision]] = {}
        decisions = {}
        for site in run.sites:
            reused = self._reused(site, run)
            if reused not in known:
                known[reused] = plan([not now for now in reused], run.depth)
            decisions[site] = known[reused]
        return PabState(decisions)

    def decide(self, state: PabState, call: Call, site: Site) -> Decision:
        """By the plan."""
        return state.decisions[site][call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """Steps in which no site is reused."""
        return [not any(step) for step in zip(*{self._reused(site, run) for site in run.sites})]

    def num_cached(self, run: Run) -> int:
        """What each site's plan keeps: a value, where it is reused at some step."""
        return sum(most_kept([not now for now in self._reused(site, run)], run.depth) for site in run.sites)

    def _reused(self, site: Site, run: Run) -> tuple[bool, ...]:
        """Per step, whether a site is reused."""
        if site.part is Part.MLP:
            if site.ordinal not in self.option("mlp_blocks", run):
                return (False,) * run.num_steps
            return _within(self.option("mlp_windows", run), run.timesteps)
        if site.part is Part.CROSS_ATTENTION:
            name = "cross_attention"
        else:
            name = {Kind.SPATIAL: "spatial", Kind.TEMPORAL: "temporal"}.get(site.kind, "joint")
        every, low, high = (self.option(option, run) for option in (name, "window_low", "window_high"))
        # VideoSys compares whole timesteps: of 450.33, 450 is not above a low end of 450.
        times = [math.floor(t) for t in run.timesteps] if max(run.timesteps, default=0) > 1 else run.timesteps
        return tuple([s % every != 0 and low < t < high for s, t in enumerate(times)])


def _within(windows: Windows, timesteps: Sequence[float]) -> tuple[bool, ...]:
    """Per step, whether it follows the first step of a window, no later than its last."""
    steps = [(_nearest(first, timesteps), _nearest(last, timesteps)) for first, last in windows]
    computed = {first for first, _ in steps}
    return tuple([s not in computed and any(first < s <= last for first, last in steps) for s in range(len(timesteps))])


def _nearest(timestep: float, timesteps: Sequence[float]) -> int:
    """The step whose timestep is nearest; of two as near, the earlier."""
    return min(range(len(timesteps)), key=lambda s: abs(timesteps[s] - timestep))
