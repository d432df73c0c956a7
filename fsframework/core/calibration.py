"""Calibration: how the numbers a policy needs are measured for a model, and the artifact they are kept in."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.core.review import ReuseWarning
from fsframework.core.site import Run

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core.policy import ReusePolicy
    from fsframework.core.trace import Trace

VERSION = 1
"""Of the artifact's format."""
CHECKED = ("family", "checkpoint", "scheduler", "num_steps", "latent_shape")
"""Facts of a run that an artifact is compared with. One that either side does not know is not compared."""


@dataclass(frozen=True)
class Artifact:
    """What calibration or training produced for one policy and model: one JSON file."""

    policy: str
    """Registered name of the policy it is for."""
    values: Mapping[str, Any]
    """What the policy reads; its class says what that is."""
    facts: Mapping[str, Any]
    """The run it was measured on: `CHECKED`, and the timesteps."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Prompts, seeds, options, revision, versions, date."""
    version: int = VERSION

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(target)

    @staticmethod
    def load(path: str | Path, policy: str) -> Artifact:
        """Read the file; the same file is read once.

        Raises:
            ValueError: there is none, it is damaged, of another version, or for another policy.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"{policy}: no artifact {path}. Make it with `fsf calibrate {policy} MODEL`.")
        artifact = _read(str(file), file.stat().st_mtime_ns)
        if artifact.policy != policy:
            raise ValueError(f"{path} was made for the policy {artifact.policy!r}, not for {policy!r}")
        return artifact

    def check(self, run: Run, interpolates: Collection[str] = ()) -> None:
        """Compare with the run it is to be used in.

        Args:
            run: the run.
            interpolates: those of `CHECKED` that the policy can carry over to another value; a difference there is a
                warning, any other an error.

        Raises:
            ValueError: the run differs in a fact that can not be interpolated.
        """
        now = {**run.facts, "num_steps": run.num_steps}
        differences = {
            name: (_plain(self.facts[name]), _plain(now[name]))
            for name in CHECKED
            if self.facts.get(name) is not None
            and now.get(name) is not None
            and _plain(self.facts[name]) != _plain(now[name])
        }
        fatal = [name for name in differences if name not in interpolates]
        said = "; ".join(
            f"{name} was {differences[name][0]}, is {differences[name][1]}" for name in fatal or differences
        )
        if fatal:
            raise ValueError(
                f"the {self.policy} artifact does not fit this run: {said}. Calibrate again for it: `fsf calibrate`."
            )
        if differences:
            warnings.warn(
                f"the {self.policy} artifact was measured on another run and is carried over: {said}.",
                ReuseWarning,
                stacklevel=3,
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


@lru_cache(maxsize=64)
def _read(path: str, _modified: int) -> Artifact:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        artifact = Artifact(**content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not an artifact of `fsf calibrate`: {error}") from None
    if artifact.version != VERSION:
        raise ValueError(f"{path} has format version {artifact.version}; this fsframework reads version {VERSION}")
    return artifact


@dataclass(frozen=True)
class Fit:
    """What a calibration came to."""

    values: Mapping[str, Any]
    """For `Artifact.values`."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """How good it is: R^2, residuals, expected share of recomputed steps; printed and kept in the provenance."""
    curves: Sequence[Curve] = ()
    """What to draw."""


@dataclass(frozen=True)
class Curve:
    """One line or cloud of points of a calibration's picture."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    x_label: str = ""
    y_label: str = ""
    is_line: bool = True
    """False: points."""


class Calibration(ABC):
    """How a policy is calibrated: which videos to generate, what to note of each, and what follows from all notes.

    Every rollout is generated for every (prompt, seed). Its record is a small JSON mapping, kept on disk, so a
    calibration that is stopped goes on where it was, and several processes can share the (prompt, seed) pairs.
    """

    @abstractmethod
    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        """Name -> the policy to generate with. A recorder is a policy that recomputes everything and logs numbers into
        the trace. The first is the reference of the others. `run` has the sites of the calibrated policy."""

    @abstractmethod
    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """What to keep of one video: JSON. `latents` are the final ones, `reference` those of the first rollout."""

    @abstractmethod
    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The result, from the records of each rollout over all (prompt, seed) pairs, in one order for all.

        Raises:
            ValueError: the records do not determine it.
        """
