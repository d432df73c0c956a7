"""`StagedSession`: one session over a pipeline whose steps are shared by several denoisers (Wan 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from fsframework.core.engine import ReuseEngine
from fsframework.core.site import Site
from fsframework.core.trace import Trace


class StagedSession:
    """Several engines, one per denoiser, on one scheduler.

    Each denoiser is a run of its own to the policy: with its own steps, warmup and state, since nothing one of them
    computed is worth anything to the next. The records are joined: sites of a later denoiser carry its name
    (`transformer_2.joint.3`), and steps count over the whole video.

    Args:
        engines: one per denoiser, in the order they take steps; each knows its timesteps (`in_stage`).
    """

    def __init__(self, engines: Sequence[ReuseEngine]) -> None:
        self.engines = tuple(engines)
        self.policy = self.engines[0].policy
        for engine in self.engines[1:]:
            engine.share_warnings(self.engines[0])
        self.sites: list[Site] = [site for engine in self.engines for site in engine.sites]

    def __enter__(self) -> StagedSession:
        entered: list[ReuseEngine] = []
        try:
            for engine in self.engines:
                engine.__enter__()
                entered.append(engine)
        except BaseException as error:
            for engine in reversed(entered):
                engine.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with ExitStack() as stack:  # all are left, also if a warning of one is an error
            for engine in self.engines:
                engine.may_idle = self.num_forwards > 0  # a video of few steps may have none at low noise
                stack.callback(engine.__exit__, *exc)

    @property
    def num_forwards(self) -> int:
        """Forwards of all denoisers in this session."""
        return sum(engine.num_forwards for engine in self.engines)

    @property
    def num_videos(self) -> int:
        """Videos begun in this session."""
        return max(engine.num_videos for engine in self.engines)

    def attach(self) -> StagedSession:
        """Open the session without a `with` block; `detach` closes it."""
        return self.__enter__()

    def detach(self) -> None:
        """Close a session opened with `attach`."""
        self.__exit__(None, None, None)

    @property
    def trace(self) -> Trace:
        """The trace of the last video, or of the one in progress, over all denoisers."""
        traces = [engine.trace for engine in self._of_one_video()]
        return traces[0] if len(traces) == 1 else join(traces)

    def summary(self) -> dict[str, float]:
        """As `ReuseEngine.summary`. The denoisers run one after the other, so the cache's peak is the larger one."""
        engines = self._of_one_video()
        if len(engines) == 1:
            return engines[0].summary()
        numbers = engines[0].recorded(self.trace)
        reads = sum(engine.meter.num_reads for engine in engines)
        return {
            **numbers,
            "cache_bytes_peak": float(max(engine.cache.peak_bytes for engine in engines)),
            "host_reads_per_step": reads / sum(len(engine.trace.timesteps) for engine in engines),
        }

    def _of_one_video(self) -> list[ReuseEngine]:
        """The engines that took part in the newest video: a stopped one, or one of few steps, may not reach the second."""
        having = [engine for engine in self.engines if engine.num_videos]
        if not having:
            raise RuntimeError("no video was generated in this session yet, so there is no trace")
        newest = max(engine.video_started for engine in having)
        return [engine for engine in having if engine.video_started == newest]


def join(traces: Sequence[Trace]) -> Trace:
    """One trace of the stages of one video, in order; steps are counted on from stage to stage."""
    first = traces[0]
    out = Trace(
        first.video, [s for t in traces for s in t.sites], [t for one in traces for t in one.timesteps], first.parts
    )

    def counter(branch: str) -> Callable[[], dict[Site, float]]:
        return lambda: {site: flops for trace in traces for site, flops in trace.flops_per_site(branch).items()}

    out.count_flops = {branch: counter(branch) for trace in traces for branch in trace.count_flops}
    first_step = 0
    for trace in traces:
        out.extend(trace, first_step)
        first_step += len(trace.timesteps)
    return out


def two_stages(boundary: float) -> tuple[Callable[[float], bool], Callable[[float], bool]]:
    """For each of two denoisers, whether a timestep is its own: the first has those at or above `boundary`."""
    return (lambda timestep: timestep >= boundary), (lambda timestep: timestep < boundary)
