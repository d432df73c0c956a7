"""One video of a frozen model with a router at work: the error of every step, and its gradient for the gates.

Shape suffixes: T steps, M sites.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fsframework as fsf
from fsframework.core import Call, Decision, Part, ReusePolicy, Run, Site, StagedSession
from fsframework.core.decision import DISCARD
from fsframework.core.gates import GRANULARITIES
from fsframework.train.router import Blending

if TYPE_CHECKING:
    from fsframework.core import LoadedModel
    from fsframework.data.prompts import Clip


@dataclass(frozen=True)
class Rollout:
    """What one video gave."""

    errors_T: Tensor
    """Mean squared difference of the blended and the full prediction for the same latent; 0 where nothing was blended.
    Where each guidance branch has a call of its own, the sum of theirs."""
    gradient_TM: Tensor
    """Of the sum of errors times importance, for the weights; zeros without gradients."""
    latents: Tensor
    """The final ones."""


def rollout(
    model: LoadedModel,
    policy: Blending,
    clip: Clip,
    sampling: Mapping[str, Any],
    importance: Sequence[float],
    *,
    follow: str,
    learn: bool = True,
) -> Rollout:
    """Generate a clip through the pipeline; at every step that may reuse, run the model blended and in full.

    The graph of a step ends at its latent and at the cache, so memory is that of one forward, however many steps there are.

    Args:
        model: frozen.
        policy: with the weights of the gates; a leaf that requires gradients if `learn`.
        clip: caption and seed.
        sampling: arguments of `LoadedModel.generate_latents`.
        importance: [T], the factor of each step's error in the gradient.
        follow: whose predictions the sampler gets: `teacher` (the full model's) or `student` (the blended).
        learn: whether to work out gradients.
    """
    num_steps = len(policy.gated)
    device = policy.weights.device
    errors_T = torch.zeros(num_steps, device=device, dtype=policy.weights.dtype)
    gradient_TM = torch.zeros_like(policy.weights)

    def forward(under_policy: Callable[..., Any], bare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(learn):
            blended = under_policy(*args, **kwargs)
            step = policy.progress.step
            if not policy.gated[step]:
                return blended
            with torch.no_grad():
                full = bare(*args, **kwargs)
            error = squared_difference(blended, full).to(errors_T)
            errors_T[step] += error.detach()
            if learn:
                (gradient,) = torch.autograd.grad(error * importance[step], policy.weights)
                gradient_TM.add_(gradient)
        return full if follow == "teacher" else detached(blended)

    with _both(model, policy, forward):
        latents = model.generate_latents(clip.prompt, clip.seed, **sampling)
    return Rollout(errors_T, gradient_TM, latents)


@contextlib.contextmanager
def _both(model: LoadedModel, policy: Blending, forward: Callable[..., Any]) -> Iterator[None]:
    """A session in which `forward` stands in for the denoiser's, and can call it under the policy and bare.

    Put over the session's own wrapper as hooks are (`__wrapped__`), so the session still knows that it is there.
    """
    transformer = model.transformer
    bare = transformer.forward
    session = fsf.reuse(model.pipe, policy, record=False)
    if isinstance(session, StagedSession):
        raise ValueError(
            f"{type(model.pipe).__name__} shares its steps among several denoisers; a router is trained for one"
        )
    with session:
        under_policy = transformer.forward

        @functools.wraps(under_policy)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return forward(under_policy, bare, *args, **kwargs)

        object.__setattr__(transformer, "forward", replaced)
        try:
            yield
        finally:
            object.__setattr__(transformer, "forward", under_policy)


def squared_difference(blended: Any, full: Any) -> Tensor:
    """Mean squared difference of two outputs of the denoiser, at least in float32; of several tensors the mean of theirs."""
    pairs = list(zip(_tensors(blended), _tensors(full), strict=True))
    assert pairs
    wide = [torch.promote_types(a.dtype, torch.float32) for a, _ in pairs]
    return torch.stack([(a.to(w) - b.to(w)).square().mean() for (a, b), w in zip(pairs, wide)]).mean()


def detached(output: Any) -> Any:
    """An output of the denoiser without its graph."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):  # diffusers' outputs
        return type(output)(**{name: detached(value) for name, value in output.items()})
    return type(output)(detached(value) for value in output) if isinstance(output, (tuple, list)) else output


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list, dict)):
        for value in output.values() if isinstance(output, dict) else output:
            yield from _tensors(value)


# Before the first video.


@dataclass(frozen=True)
class Surroundings:
    """What a router is made for."""

    run: Run
    shares: dict[str, float]
    """Site name -> share of the FLOPs of one forward of the model."""


def surroundings(model: LoadedModel, granularity: str, clip: Clip, sampling: Mapping[str, Any]) -> Surroundings:
    """The run that a policy of that granularity would see, and what its sites cost; runs one forward of the denoiser.

    Raises:
        ValueError: FLOPs can not be counted, several denoisers share the steps, or there are no such sites.
    """
    session = fsf.reuse(model.pipe, _LOOKS[granularity]())
    if isinstance(session, StagedSession):
        raise ValueError(
            f"{type(model.pipe).__name__} shares its steps among several denoisers; a router is trained for one"
        )
    run: Run | None = None
    try:
        with session:
            model.generate_latents(clip.prompt, clip.seed, **sampling)
    except _Seen as seen:
        run = seen.run
    assert run is not None
    flops = session.trace.flops_per_site()
    whole = next((f for site, f in flops.items() if site.part is Part.MODEL), 0.0)
    if not whole:
        raise ValueError(f"the FLOPs of {type(model.transformer).__name__} can not be counted, so compute has no price")
    return Surroundings(run, {site.name: flops[site] / whole for site in run.sites})


class _Seen(Exception):
    """Ends a generation that was only begun to see its run."""

    def __init__(self, run: Run) -> None:
        self.run = run


class _Look(ReusePolicy[Run]):
    """Computes one forward and leaves."""

    parts = GRANULARITIES["block"]

    def start(self, run: Run) -> Run:
        """Remember the run."""
        return run

    def decide(self, state: Run, call: Call, site: Site) -> Decision:
        """Compute."""
        return DISCARD

    def end_forward(self, state: Run, call: Call) -> None:
        """Leave."""
        raise _Seen(state)


class _LookAtParts(_Look):
    """The same at sub-modules."""

    parts = GRANULARITIES["submodule"]


_LOOKS: dict[str, type[_Look]] = {"block": _Look, "submodule": _LookAtParts}
