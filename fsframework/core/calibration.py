"""Calibration: how the numbers a policy needs are measured for a model, and the artifact they are kept in."""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fsframework.core.review import ReuseWarning
from fsframework.core.site import Run

if TYPE_CHECKING:
    from torch import Tensor

    from fsframework.core.policy import ReusePolicy
    from fsframework.core.trace import Trace

VERSION = 1
"""Of the artifact's format."""
CHECKED = ("family", "checkpoint", "scheduler", "num_steps", "latent_shape", "timesteps")
"""Facts of a run that an artifact is compared with. One that either side does not know is not compared. Of
`latent_shape` the first axis, the batch with its guidance halves, is free. The `timesteps` are compared, to a part in
ten thousand, where all else is equal: they then tell a sampler that was set otherwise."""


@dataclass(frozen=True)
class Artifact:
    """What calibration or training produced for one policy and model: one JSON file."""

    policy: str
    """Registered name of the policy it is for."""
    values: Mapping[str, Any]
    """What the policy reads; its class says what that is."""
    facts: Mapping[str, Any]
    """The run it was measured on: `CHECKED`, and what else was known of it."""
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
        if not isinstance(path, (str, Path)):
            raise ValueError(f"{policy}: artifact={path!r} must be the path of a file of {_made_with(policy)}")
        file = Path(path).expanduser()
        if not file.is_file():
            what = f"{path} is a folder, no artifact" if file.is_dir() else f"no artifact {path}"
            raise ValueError(f"{policy}: {what}. Make it with {_made_with(policy)}.")
        artifact = _read(str(file.absolute()), file.stat().st_mtime_ns)
        if artifact.policy != policy:
            raise ValueError(f"{path} was made for the policy {artifact.policy!r}, not for {policy!r}")
        return artifact

    @property
    def digest(self) -> str:
        """A hash of all that a policy can see of it, so not of the provenance: equal where results will be."""
        seen = [self.policy, self.version, self.values, self.facts]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    def check(self, run: Run, interpolates: Collection[str] = ()) -> None:
        """Compare with the run it is to be used in.

        Args:
            run: the run.
            interpolates: those of `CHECKED` that the policy can carry over to another value; a difference there is a
                warning, any other an error. Who can carry over another number of steps can also carry over other
                timesteps.

        Raises:
            ValueError: the run differs in a fact that can not be interpolated.
        """
        differences = self._differences(run)
        allowed = {*interpolates, *(("timesteps",) if "num_steps" in interpolates else ())}
        fatal = [name for name in differences if name not in allowed]
        said = "; ".join(differences[name] for name in fatal or differences)
        if fatal:
            again = (
                f"Train again for it: `fsf train CONFIG.yaml sampling.num_steps={run.num_steps}`"
                if _is_trained(self.policy)
                else f"Calibrate again for it: `{calibrate_command(self.policy, run)}`"
            )
            raise ValueError(f"the {self.policy} artifact does not fit this run: {said}. {again}.")
        if differences:
            warnings.warn(
                f"the {self.policy} artifact was measured on another run and is carried over: {said}.",
                ReuseWarning,
                stacklevel=3,
            )

    def _differences(self, run: Run) -> dict[str, str]:
        """Fact -> how it differs, in words."""
        now = {**run.facts, "num_steps": run.num_steps}
        out: dict[str, str] = {}
        for name in CHECKED:
            measured, found = _comparable(name, self.facts.get(name)), _comparable(name, now.get(name))
            if measured is not None and found is not None and measured != found:
                out[name] = f"{name} was {measured}, is {found}"
        known = self.facts.get("timesteps")
        if known and not out and len(known) == len(run.timesteps):
            scale = max(1.0, *(abs(t) for t in known))
            step = next((i for i, (a, b) in enumerate(zip(known, run.timesteps)) if abs(a - b) > 1e-4 * scale), None)
            if step is not None:
                out["timesteps"] = f"the timestep of step {step} was {known[step]:g}, is {run.timesteps[step]:g}"
        return out


def _is_trained(policy: str) -> bool:
    """Whether a registered policy states no calibration, so that its artifacts come from training."""
    from fsframework.core.policy import ReusePolicy
    from fsframework.core.registry import POLICIES

    return policy in POLICIES and POLICIES[policy].calibration is ReusePolicy.calibration


def _made_with(policy: str) -> str:
    """The command that makes a policy's artifacts, in words."""
    if _is_trained(policy):
        return f"`fsf train CONFIG.yaml` with `train: {policy}`"
    return f"`fsf calibrate {policy} MODEL`"


def calibrate_command(policy: str, run: Run) -> str:
    """The command that calibrates a policy for the model and the number of steps of a run."""
    model = run.facts.get("checkpoint")
    return f"fsf calibrate {policy} {model if isinstance(model, str) else 'MODEL'} sampling.num_steps={run.num_steps}"


def needs_calibration(policy: str, run: Run, what: str, instead: str) -> ValueError:
    """The error of a policy that was given neither an artifact nor what stands in its place.

    Args:
        policy: its registered name.
        run: the run it was started for.
        what: what is measured, as in "a table of magnitude ratios".
        instead: what can be given in its place, as in "ratios=[1.0, 0.98, ...]".
    """
    return ValueError(
        f"{policy} needs {what} of this model. Measure it with `{calibrate_command(policy, run)}` and set the policy's "
        f"option artifact to the file that writes; or give {instead}."
    )


def _comparable(name: str, value: Any) -> Any:
    """A fact as it is compared: sequences as lists, a latent's shape without its batch; None is not compared."""
    if isinstance(value, (tuple, list)):
        return list(value[1:]) if name == "latent_shape" else list(value)
    return value


@lru_cache(maxsize=64)
def _read(path: str, _modified: int) -> Artifact:
    damaged = f"{path} is not an artifact of `fsf calibrate`"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{damaged}: {error}") from None
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError(f"{damaged}: it has no format version")
    if content["version"] != VERSION:
        raise ValueError(f"{path} has format version {content['version']}; this fsframework reads version {VERSION}")
    missing = [name for name in ("policy", "values", "facts") if name not in content]
    if missing:
        raise ValueError(f"{damaged}: it has no {' and no '.join(map(repr, missing))}")
    known = {f.name for f in fields(Artifact)}
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(f"{damaged}: it has an unknown {unknown[0]!r}")
    artifact = Artifact(**content)
    for name in ("values", "facts", "provenance"):
        if not isinstance(getattr(artifact, name), dict):
            raise ValueError(f"{damaged}: {name!r} is no mapping")
    return artifact


@dataclass(frozen=True)
class Fit:
    """What a calibration came to."""

    values: Mapping[str, Any]
    """For `Artifact.values`."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """How good it is: R^2, residuals, expected share of recomputed steps; printed and kept in the provenance."""
    curves: Sequence[Curve] = ()
    """What to draw: those with the same labels in one panel, those without labels in that of the curve before."""
    proposed: Mapping[str, Any] = field(default_factory=dict)
    """Options to start from where the policy needs more than the artifact: a threshold that none was published for."""
    maps: Sequence[HeatMap] = ()
    """What to draw below the curves, a panel each."""


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


@dataclass(frozen=True)
class HeatMap:
    """A number for every site and step, drawn as a colour: gates, or what a plan computes."""

    name: str
    rows: Mapping[str, Sequence[float]]
    """Name of the row (a site) -> a number per column (a step); NaN is left blank."""
    low: float
    """The number of the lightest colour."""
    high: float
    """The number of the darkest."""


class Calibration(ABC):
    """How a policy is calibrated: which videos to generate, what to note of each, and what follows from all notes.

    Every rollout is generated for every (prompt, seed). Its record is a small JSON mapping, kept on disk, so a
    calibration that is stopped goes on where it was, and several processes can share the work. What `fit` gets has been
    through JSON: tuples have become lists, and keys strings.
    """

    fit_options: ClassVar[tuple[str, ...]] = ()
    """Options of the policy that only `fit` reads. Records do not depend on them, so calibrating again with another value
    generates nothing."""

    @abstractmethod
    def rollouts(self, run: Run) -> Mapping[str, ReusePolicy[Any]]:
        """Name -> the policy to generate with. A recorder is a policy that recomputes everything and logs numbers into
        the trace. The first is the reference of the others. `run` has the sites of the calibrated policy, and the facts
        and timesteps of a real video."""

    def more_rollouts(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run
    ) -> Mapping[str, ReusePolicy[Any]]:
        """Further rollouts that follow from the records of all before, for a calibration that searches. Asked again with
        theirs, until there are none. Must depend on its arguments alone: a calibration that is stopped asks anew, and each
        of several processes asks for itself."""
        del records, run
        return {}

    def most_rollouts(self, run: Run) -> int:
        """How many rollouts there will be at most, for the time left."""
        return len(self.rollouts(run))

    def check(self, run: Run, num_clips: int) -> None:
        """Refuse, before anything is generated, a run or a number of clips from which nothing can follow.

        Raises:
            ValueError: too few steps or clips.
        """
        del run, num_clips

    @abstractmethod
    def record(self, rollout: str, trace: Trace, latents: Tensor, reference: Tensor) -> Mapping[str, Any]:
        """What to keep of one video: JSON. `latents` are the final ones, `reference` those of the first rollout."""

    @abstractmethod
    def fit(self, records: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> Fit:
        """The result, from the records of each rollout over all (prompt, seed) pairs, in one order for all.

        Raises:
            ValueError: the records do not determine it.
        """
