"""The sampler of a run: the one of its checkpoint, or the one that `sampling.scheduler` names; and what is recorded of it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.config.load import nearest_key

if TYPE_CHECKING:
    from fsframework.core import LoadedModel

KEY = "sampling.scheduler"


def scheduler_class(wanted: Mapping[str, Any]) -> Any:
    """The class that `sampling.scheduler` names, from diffusers or from a family whose pipeline is ours.

    Raises:
        ValueError: no such class, one that needs a package which is not installed, or an option it does not take.
    """
    from diffusers import schedulers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    import fsframework.models  # noqa: F401  registers the adapters
    from fsframework.core import ADAPTERS

    name = wanted["name"]
    own = [importlib.import_module(a.pipeline_module) for _, a in ADAPTERS.items() if a.pipeline_module != "diffusers"]
    places = {
        found: module for module in [*own, schedulers] for found in dir(module)
        if found.endswith("Scheduler") and not found.startswith("Flax")
    }  # fmt: skip
    if name not in places:
        raise ValueError(f"{KEY}.name: there is no scheduler {name!r}. {nearest_key(str(name), sorted(places))}")
    cls = getattr(places[name], name)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        needed = ", ".join(getattr(cls, "_backends", [])) or "a package that is not installed"
        raise ValueError(f"{KEY}.name: {name} can not be used here: it needs {needed}")
    known = _settings(cls)
    for option in wanted:
        if option != "name" and option not in known:
            raise ValueError(f"{KEY}: {name} has no option {option!r}. {nearest_key(option, known)}")
    return cls


def with_scheduler(model: LoadedModel, wanted: Mapping[str, Any] | None, num_steps: int) -> LoadedModel:
    """`model` with the scheduler that `sampling.scheduler` asks for, sharing all weights; `model` itself without a wish.

    The scheduler has the settings of the checkpoint's as far as its class knows them, and the options given.

    Raises:
        ValueError: the scheduler samples something else than the model predicts, or can not be built or run so.
    """
    if wanted is None:
        return model
    cls, usual = scheduler_class(wanted), model.pipe.scheduler
    options = {key: value for key, value in wanted.items() if key != "name"}
    _check_kin(model, cls, options)
    try:
        scheduler = cls.from_config(usual.config, **options)
        if not scheduler.config.get("use_dynamic_shifting"):  # those need the latent's size
            copy.deepcopy(scheduler).set_timesteps(num_steps)
    except Exception as error:  # each class has its own ways to refuse
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given = ", ".join(f"{key}={value}" for key, value in options.items()) or "no options"
        raise ValueError(f"{KEY}: {cls.__name__} can not sample {model.name} with {given}: {reason}") from None
    pipe = copy.copy(model.pipe)
    pipe.scheduler = scheduler
    return dataclasses.replace(model, pipe=pipe)


def _check_kin(model: LoadedModel, cls: Any, options: Mapping[str, Any]) -> None:
    """Refuse a scheduler that takes the model's prediction for something else than it is."""
    usual = model.pipe.scheduler
    own = type(usual).__name__
    is_ours = not type(usual).__module__.startswith("diffusers.")
    if cls is not type(usual) and (is_ours or not cls.__module__.startswith("diffusers.")):
        raise ValueError(f"{KEY}: {model.name} is sampled by {own} alone; give that name, with other options")
    before = dict(usual.config)
    after = {**{key: before[key] for key in _settings(cls) if key in before}, **options}
    if _is_flow(cls.__name__, after) != _is_flow(own, before):
        kind, hint = ("a flow", ", or one with use_flow_sigmas: true") if _is_flow(own, before) else ("noise", "")
        raise ValueError(
            f"{KEY}: {model.name} predicts {kind} and is sampled by {own}; {cls.__name__} samples models of the other kind. "
            f"Choose one of {own}'s kind{hint}"
        )
    predicts = before.get("prediction_type")
    if predicts is not None and after.get("prediction_type", "epsilon") != predicts:
        raise ValueError(
            f"{KEY}: {model.name} was trained with prediction_type {predicts}, which {cls.__name__} would take for "
            f"{after.get('prediction_type', 'epsilon')}; leave prediction_type out, or choose another scheduler"
        )


def _is_flow(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a scheduler integrates a velocity field (rectified flow, flow matching) instead of removing noise."""
    flow = settings.get("use_flow_sigmas") or settings.get("prediction_type") == "flow_prediction"
    return bool(flow) or name.startswith(("FlowMatch", "RFlow"))


def describe(scheduler: Any) -> dict[str, Any]:
    """What metrics.json says of a scheduler: the name of its class, the settings that the class knows, and under `ignored`
    those of the checkpoint's own scheduler that it does not know."""
    known, config = _settings(type(scheduler)), dict(scheduler.config)
    given = {key: value for key, value in config.items() if value is not None and not key.startswith("_")}
    content = {
        "name": type(scheduler).__name__,
        "options": {key: value for key, value in given.items() if key in known},
        "ignored": {key: value for key, value in given.items() if key not in known},
    }
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def timesteps_of(trace: Path) -> dict[str, Any]:
    """The steps that a run's first video really took, from its trace: how many, and the first and last timestep."""
    import pandas

    rows = pandas.read_parquet(trace, columns=["video", "step", "timestep"])
    steps = rows[rows["video"] == rows["video"].iloc[0]].groupby("step")["timestep"].first().sort_index()
    return {"num_steps": len(steps), "first_timestep": float(steps.iloc[0]), "last_timestep": float(steps.iloc[-1])}


def _settings(cls: Any) -> list[str]:
    return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "args", "kwargs")]
