"""`Clock`: which step it is, and when a video begins. The index comes from the sampler, never from counting forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsframework.core.meter import Meter


class Clock:
    """Time of a session, from a diffusers scheduler or from the timesteps of a loop of one's own.

    With a scheduler: `set_timesteps` begins a video at the next forward, and `step` ends a step if the model ran since
    the last one (so another pipeline sharing the scheduler does not move our time). With timesteps: the step is found
    from the model's timestep argument, or told by `tell`; going back to step 0 begins a video. `in_stage` says of a
    timestep whether it is one of ours, where several denoisers share the steps.
    """

    def __init__(
        self,
        scheduler: Any,
        timesteps: Sequence[float] | Tensor | None,
        in_stage: Callable[[float], bool] | None = None,
    ) -> None:
        if (scheduler is None) == (timesteps is None):
            raise ValueError("give either the sampler's scheduler or the timesteps of your own loop")
        self._get: Callable[[], Any] | None = None
        if scheduler is not None:
            self._get = scheduler if callable(scheduler) else lambda: scheduler
        self.own = None if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).tolist()]
        if self.own is not None and not self.own:
            raise ValueError("timesteps is empty; give the timesteps your loop will use, in order")
        if self.own is not None and len(set(self.own)) < len(self.own):
            raise ValueError(
                "timesteps holds a value twice, so a step can not be told from its timestep. Give one distinct number per "
                "step (range(num_steps), say) and tell the session each step with session.step(i)."
            )
        self._step_of = {} if self.own is None else {t: i for i, t in enumerate(self.own)}
        self.scheduler: Any = None
        self.pending = False
        self._in_stage = in_stage
        self._told: int | None = None

    def open(self) -> Any:
        """At the session's start: the scheduler to wrap, or None."""
        if self._get is None:
            return None
        self.scheduler = self._get()
        # set_timesteps may have been called just before the session, as in a loop of one's own.
        self.pending = getattr(self.scheduler, "num_inference_steps", None) is not None
        return self.scheduler

    def tell(self, index: int) -> None:
        """The next forward belongs to step `index` of the session's own timesteps."""
        if self.own is None:
            raise ValueError("this session takes its steps from the scheduler; session.step is for timesteps=...")
        if not 0 <= index < len(self.own):
            raise ValueError(f"step {index} is outside the {len(self.own)} timesteps of this session")
        self._told = index

    def new_timesteps(self, running: bool, first: Any = None) -> list[float] | None:
        """The timesteps of a video that begins with this forward, or None while one goes on (`running`).

        `first` is the timestep the model was called with. A video-to-video pipeline uses only the later ones of the
        scheduler's; where the scheduler does not say from which (`begin_index`), it is found by this value, which on a
        GPU costs one host read per video.
        """
        if self._get is None:
            begins, self.pending = self.pending or not running, False
            return self.own if begins else None
        if self._get() is not self.scheduler:
            raise RuntimeError(
                "pipe.scheduler was replaced inside the reuse session, so its steps are not seen. Set the scheduler "
                "first, then open the session."
            )
        if self.pending:
            self.pending = False
            timesteps = [float(t) for t in self.scheduler.timesteps.tolist()]
            begin = getattr(self.scheduler, "begin_index", None)
            if self._in_stage is not None:
                timesteps = [t for t in timesteps[begin or 0 :] if self._in_stage(t)]
            else:
                timesteps = timesteps[_begin(timesteps, first) if begin is None else begin :]
            if not timesteps:
                raise ValueError(
                    "the sampler has no timesteps; call scheduler.set_timesteps(num_steps) before the model"
                )
            return timesteps
        if not running:
            raise RuntimeError(
                "the model was called outside a denoising loop: no scheduler.set_timesteps since the session began or "
                "the last video ended. For a loop without a diffusers scheduler open the session with timesteps=[...]."
            )
        return None

    def own_step(self, timestep: Any, meter: Meter) -> int:
        """The step of a forward in a loop of one's own. A timestep on a GPU costs one host read, a told step none."""
        told, self._told = self._told, None
        if told is not None:
            return told
        own = self.own
        assert own is not None
        if isinstance(timestep, Tensor):
            first = _of_first_sample(timestep)
            read: Any = first.tolist() if first.device.type == "cpu" else meter.fetch(first)[0]
            value = float(read)
        else:
            value = float(timestep)
        exactly = self._step_of.get(value)
        if exactly is not None:
            return exactly
        nearest = min(range(len(own)), key=lambda i: abs(own[i] - value))
        spacing = max(abs(own[0] - own[-1]) / max(len(own) - 1, 1), 1e-6)
        if abs(own[nearest] - value) > 0.25 * spacing:
            raise ValueError(
                f"the model was called with timestep {value:g}, which is none of the {len(own)} of this session "
                f"(nearest: {own[nearest]:g}). Give the session the timesteps your loop uses."
            )
        return nearest


def _of_first_sample(timestep: Tensor) -> Tensor:
    """The timestep of the first sample; where each token or frame has its own, of those that are denoised: the largest."""
    if timestep.ndim == 0:
        return timestep
    return timestep[0] if timestep.ndim == 1 else timestep[0].max()


def _begin(timesteps: Sequence[float], first: Any) -> int:
    """Index of the timestep a video begins with; 0 where the model is told something else, such as a noise level."""
    if not isinstance(first, Tensor) or not timesteps:
        return 0
    value = float(_of_first_sample(first).reshape(1).tolist()[0])
    return next((i for i, t in enumerate(timesteps) if abs(t - value) <= 1e-4 * max(1.0, abs(t))), 0)


class Context:
    """Which guidance branch a forward belongs to: a stack of names, None where nobody says."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._stack: list[str] = []

    def enter(self, name: str) -> None:
        """diffusers' `cache_context`, or the user, names the branch."""
        self._stack.append(self._names.get(name, name))

    def leave(self) -> None:
        """End of the context."""
        self._stack.pop()

    @property
    def branch(self) -> str | None:
        """The branch of the forward now, if it was named."""
        return self._stack[-1] if self._stack else None
