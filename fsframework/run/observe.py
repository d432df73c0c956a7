"""What a run really is, before it is paid for: the timesteps, the latent's shape and the facts of a pipeline's first forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from fsframework.core import Call, Decision, Part, Recompute, ReusePolicy, Run, Site
from fsframework.run.attach import reuse

if TYPE_CHECKING:
    from fsframework.core import LoadedModel
    from fsframework.data.prompts import Clip


def observe_run(model: LoadedModel, policy: ReusePolicy[Any], clip: Clip, sampling: Mapping[str, Any]) -> Run:
    """The `Run` that `policy` would be started with for the first guidance branch of a clip.

    Generates up to the first forward of the denoiser and no further: it costs the text encoding. `policy` is asked for
    its sites only, so it may be one that can not run yet.

    Raises:
        ValueError: the model has no site the policy asks about, or the pipeline refuses the sampling settings.
    """
    session = reuse(model.pipe, _Onlooker(policy))
    try:
        with session, sampling_errors(model, sampling):
            model.generate_latents(clip.prompt, clip.seed, **sampling)
    except _Seen as seen:
        return seen.run
    raise RuntimeError(f"{type(model.pipe).__name__} generated without calling its denoiser")


@contextmanager
def sampling_errors(model: LoadedModel, sampling: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a setting that the pipeline refuses becomes a ValueError for the user."""
    try:
        yield
    except _Seen:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        if "out of memory" in str(error):
            raise
        settings = ", ".join(f"{name}={value}" for name, value in sampling.items() if value is not None)
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ValueError(
            f"{type(model.pipe).__name__} can not generate with {settings}: {reason} Check the sampling section."
        ) from error


@contextmanager
def without_reuse_warnings() -> Iterator[None]:
    """Inside, no `ReuseWarning` is shown: a rehearsal's will come again."""
    from fsframework.core.review import ReuseWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReuseWarning)
        yield


class _Seen(Exception):
    """Ends the generation that was only begun to see its run."""

    def __init__(self, run: Run) -> None:
        self.run = run


@dataclass(frozen=True)
class _Onlooker(ReusePolicy[None]):
    """Asks about the parts that another policy asks about, and leaves when it is told of the run."""

    other: ReusePolicy[Any]
    """Whose sites."""

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Those of the other."""
        return self.other.parts

    @property
    def jumps(self) -> bool:
        """As the other."""
        return self.other.jumps

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """Those of the other."""
        return self.other.spans(num_blocks)

    def start(self, run: Run) -> NoReturn:
        """Leave."""
        raise _Seen(run)

    def decide(self, state: None, call: Call, site: Site) -> Decision:
        """Never asked."""
        return Recompute(keep=False)
