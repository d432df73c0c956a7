"""`SessionTime`: which video, step and guidance branch a forward belongs to, from what the sampler does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsframework.core.adapter import ModelAdapter
from fsframework.core.clock import Clock, Context
from fsframework.core.meter import Meter
from fsframework.core.trace import Trace
from fsframework.core.video import VideoInProgress


class SessionTime(ABC):
    """The part of a session that is told of time; `ReuseEngine` is the rest."""

    meter: Meter

    def __init__(self, clock: Clock, adapter: ModelAdapter) -> None:
        self.predictions: dict[str, Tensor] = {}
        """What the model predicted in this step, by guidance branch."""
        self.num_videos = 0
        self.num_started = 0
        """How often the scheduler was given new timesteps."""
        self.video_started = 0
        """`num_started` when the newest video began."""
        self._clock = clock
        self._context = Context(adapter.contexts)
        self._timestep_input = adapter.timestep_input
        self._calls = adapter.calls()
        """The guidance branches of a step's forwards, in order, where nobody names them."""
        self._video: VideoInProgress | None = None
        self._last: VideoInProgress | None = None

    # The sampler, through its wrappers.

    def on_set_timesteps(self) -> None:
        """The scheduler was given new timesteps: the next forward begins a video."""
        self._clock.pending = True
        self.num_started += 1

    def on_scheduler_step(self) -> None:
        """The scheduler took a step; it is ours if our model ran since the last one."""
        video = self._video
        if video is None or not video.ran:
            return
        video.go_to(video.step + 1)
        self.predictions.clear()
        if video.step == len(video.trace.timesteps):
            self._finish_video()

    def enter_context(self, name: str) -> None:
        """diffusers' `cache_context` names the guidance branch."""
        self._context.enter(name)

    def leave_context(self) -> None:
        """End of a `cache_context`."""
        self._context.leave()

    # A forward's place in it.

    def _now(self, arguments: Mapping[str, Any], named: str | None) -> VideoInProgress:
        """The video in progress, at the step this forward belongs to."""
        own_step: int | None = None
        first, video = arguments.get(self._timestep_input), self._video
        if self._clock.own is not None:
            own_step = self._clock.own_step(first, self.meter)
            if video is not None and (own_step < video.step or (own_step == 0 and self._branch(named, video) is None)):
                self._clock.pending = True
        timesteps = self._clock.new_timesteps(video is not None, first)
        if timesteps is not None:
            self._finish_video()
            video = self._video = VideoInProgress(self._begin_video(timesteps))
            self.num_videos += 1
            self.video_started = self.num_started
        assert video is not None
        if own_step is not None and own_step != video.step:
            video.go_to(own_step)
            self.predictions.clear()
        return video

    @abstractmethod
    def _begin_video(self, timesteps: list[float]) -> Trace:
        """Make everything new that is for one video; gives its trace."""

    def _finish_video(self) -> None:
        self.predictions.clear()
        if self._video is not None:
            self._last, self._video = self._video, None
            self._last.states.clear()

    def _branch(self, named: str | None, video: VideoInProgress) -> str | None:
        """The branch of a forward at the video's step: its name if it has one, else the next of the family's calls that
        did not come yet; None if there is none left in this step."""
        if named is not None:
            return None if named in video.seen else named
        for name in self._calls:
            if name not in video.seen:
                return name
        return None

    def state_of(self, branch: str) -> object | None:
        """The policy's state for another branch of this video."""
        return None if self._video is None else self._video.states.get(branch)


class BranchContext:
    """Names the guidance branch of the forwards inside it."""

    def __init__(self, time: SessionTime, name: str) -> None:
        self._time, self._name = time, name

    def __enter__(self) -> None:
        self._time.enter_context(self._name)

    def __exit__(self, *exc: object) -> None:
        self._time.leave_context()
