"""From names in a config to objects: plugins, the policy, the device, the metrics. Everything that can be wrong with a
run is found here, before anything is written."""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.config.load import nearest_key
from fsframework.config.schema import ARTIFACT, RunConfig
from fsframework.data.prompts import Clip, load_prompts, plan_clips
from fsframework.run.sampler import scheduler_class

if TYPE_CHECKING:
    import torch

    from fsframework.core import Artifact, Checkpoint, LoadedModel, ReusePolicy
    from fsframework.metrics import Metric

_PARSING = threading.Lock()
"""CPython 3.11's parser fails when two threads are in it at once (a SystemError about recursion depth)."""
PLUGIN_PREFIX = "fsf_plugin_"
"""Plugin modules are called so in `sys.modules`."""


@dataclass(frozen=True)
class Plan:
    """A run that was checked: nothing about it is a name any more except the model, which is loaded next."""

    config: RunConfig
    policy: ReusePolicy[Any]
    policy_name: str
    policy_options: dict[str, Any]
    """Every option of the policy, defaults included."""
    clips: list[Clip]
    metrics: list[Metric]
    device: torch.device


def make_plan(config: RunConfig) -> Plan:
    """Look every name of `config` up, without loading the model or touching the disk.

    Raises:
        ValueError: anything the user can mend, in one sentence.
    """
    for path in config.plugins:
        load_plugin(Path(path))
    policy = build_policy(config.policy)
    if config.sampling.scheduler is not None:
        scheduler_class(config.sampling.scheduler)
    prompts = load_prompts(config.prompts.set, config.prompts.texts, config.prompts.limit)
    clips = plan_clips(prompts, config.seeds.base, config.seeds.per_prompt)
    options = policy_options(policy)
    metrics = build_metrics(config.metrics)
    return Plan(config, policy, config.policy["name"], options, clips, metrics, resolve_device(config.model.device))


def load_plugin(path: Path) -> None:
    """Run a Python file under a name that depends on its path only, so that pickles and other processes find it."""
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{PLUGIN_PREFIX}{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"plugin {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        if previous is not None:
            sys.modules[name] = previous
        if isinstance(error, ValueError) and "is already" in str(error):
            raise
        raise ValueError(f"plugin {path}{_line_in(path, error)}: {type(error).__name__}: {error}") from error


def _line_in(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""


def build_policy(block: Mapping[str, Any], path: str = "policy") -> ReusePolicy[Any]:
    """The policy that a config's `policy` block describes; the policy class is the schema of its options.

    `path` is where in the config the block stands, such as `policy.base` for a policy inside another.

    Raises:
        ValueError: unknown policy or option (with the nearest name), wrong type, or a value the policy refuses.
    """
    if path == "policy":
        return _build_policy(block, path)
    try:
        return _build_policy(block, path)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(path) else f"{path}: {message}") from None


def _build_policy(block: Mapping[str, Any], path: str) -> ReusePolicy[Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    import fsframework.policies  # noqa: F401  registers the built-in policies
    from fsframework.core import POLICIES

    name = block["name"]
    policy_class = POLICIES[name]
    if not dataclasses.is_dataclass(policy_class):
        raise ValueError(f"policy {name!r}: {policy_class.__name__} must be a dataclass: @dataclass(frozen=True)")
    options = {key: value for key, value in block.items() if key != "name"}
    known = [f.name for f in dataclasses.fields(policy_class)]
    for key in options:
        if key not in known:
            hint = nearest_key(key, known) if known else "It has none."
            raise ValueError(f"policy {name!r} has no option {key!r}. {hint}")
    inner = {
        key: _build_inner(name, f"{path}.{key}", options[key])
        for key in policy_class.policy_fields
        if options.get(key) is not None
    }
    options = {key: value for key, value in options.items() if key not in policy_class.policy_fields}
    schema = OmegaConf.structured(policy_class)
    OmegaConf.set_readonly(schema, False)
    for key, value in options.items():
        try:
            schema.merge_with({key: value})
        except OmegaConfBaseException as error:
            hint = str(error).splitlines()[0]
            raise ValueError(f"{path}.{key}={value!r} does not fit {name}'s option {key!r}: {hint}") from None
    try:
        # Only what was given: a default computed by the class (a factory) stays the class's business.
        converted = OmegaConf.to_container(schema)
        assert isinstance(converted, dict)
        return policy_class(**{key: converted[key] for key in options}, **inner)
    except TypeError as error:  # an option without a default
        raise ValueError(f"policy {name!r}: {error}. Its options: {', '.join(known)}.") from None


def _build_inner(owner: str, path: str, value: Any) -> Any:
    """The policy, or the policies, that the option at `path` holds."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return build_policy(value, path)
    if isinstance(value, Sequence):
        return tuple(_build_inner(owner, f"{path}[{i}]", one) for i, one in enumerate(value))
    raise ValueError(f"{path} of {owner} must be a policy, such as {{name: foresight, gamma: 0.5}}; found {value!r}")


def policy_options(policy: ReusePolicy[Any]) -> dict[str, Any]:
    """Every option of a policy as plain values, defaults included; policies inside it as mappings with a `name`."""
    from fsframework.core import POLICIES

    def plain(value: Any, key: str) -> Any:
        if key not in policy.policy_fields:
            return value
        if isinstance(value, (tuple, list)):
            return [plain(one, key) for one in value]
        return {"name": POLICIES.name_of(type(value)), **policy_options(value)}

    fields = dataclasses.fields(policy)  # type: ignore[arg-type]
    return {f.name: plain(getattr(policy, f.name), f.name) for f in fields}


def build_metrics(names: Sequence[str] | None) -> list[Metric]:
    """The metrics by name; all that can run here if `names` is None. A named one that can not run is an error."""
    from fsframework.metrics import METRICS

    metrics = []
    for name in METRICS if names is None else dict.fromkeys(names):
        metric = METRICS[name]()
        missing = metric.available()
        if missing is None:
            metrics.append(metric)
        elif names is not None:
            raise ValueError(f"metric {name!r} can not run here: {missing}")
    return metrics


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; ValueError if the device does not exist here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.device={name!r} can not be used here: {reason}. Use auto, cpu or cuda.") from None
    return device


def sampling_of(config: RunConfig, model: LoadedModel) -> dict[str, Any]:
    """The sampling arguments of `LoadedModel.generate`, with the checkpoint's defaults filled in."""
    return filled_sampling(config, model.checkpoint)


def filled_sampling(config: RunConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """The config's sampling section with the checkpoint's settings where it says null."""
    given = dataclasses.asdict(config.sampling)
    given.pop("scheduler", None)  # no argument of a pipeline
    return {key: getattr(checkpoint, key) if value is None else value for key, value in given.items()}


def chosen_sampling(config: RunConfig, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """`sampling` with the scheduler, if the config chooses one: what decides a video, and what a run is named by."""
    scheduler = config.sampling.scheduler
    return {**sampling, **({} if scheduler is None else {"scheduler": scheduler})}


def check_policy_fits(plan: Plan, model: LoadedModel, sampling: Mapping[str, Any]) -> None:
    """Let the policy refuse the run now instead of in the middle of it, as with a warmup longer than the run."""
    from fsframework.core import Run
    from fsframework.run.attach import model_facts
    from fsframework.run.observe import observe_run, without_reuse_warnings

    if artifacts_of(plan.policy):  # compared with the latent's shape and the sampler's true timesteps
        run = observe_run(model, plan.policy, plan.clips[0], sampling)
    else:
        sites = model.bind().sites(plan.policy)
        scheduler = copy.deepcopy(model.pipe.scheduler)
        scheduler.set_timesteps(sampling["num_steps"])
        timesteps = [float(t) for t in scheduler.timesteps.tolist()]
        facts = {**model_facts(model.adapter, model.transformer, model.pipe), "device": plan.device}
        run = Run(len(timesteps), timesteps, sites, facts=facts)
    with without_reuse_warnings():
        plan.policy.start(run)


def artifacts_of(policy: ReusePolicy[Any]) -> dict[str, Artifact]:
    """What `fsf calibrate` wrote for a policy and for those inside it, by path: their options `artifact`.

    Raises:
        ValueError: a file is missing, damaged or for another policy.
    """
    from fsframework.core import POLICIES, Artifact, ReusePolicy

    out: dict[str, Artifact] = {}
    path = getattr(policy, ARTIFACT, None)
    if isinstance(path, str):
        out[path] = Artifact.load(path, str(POLICIES.name_of(type(policy))))
    for key in policy.policy_fields:
        value = getattr(policy, key)
        for inner in value if isinstance(value, (tuple, list)) else [value]:
            out.update(artifacts_of(inner) if isinstance(inner, ReusePolicy) else {})
    return out


def with_artifacts(options: Any, instead: Mapping[str, str]) -> Any:
    """A policy's options, and those of the policies inside it, with other words in place of the paths of artifacts."""
    if isinstance(options, (tuple, list)):
        return [with_artifacts(item, instead) for item in options]
    if not isinstance(options, Mapping):
        return options
    out = {key: with_artifacts(item, instead) for key, item in options.items()}
    if isinstance(out.get(ARTIFACT), str):
        out[ARTIFACT] = instead.get(out[ARTIFACT], out[ARTIFACT])
    return out


def policy_source_digest(policy: ReusePolicy[Any]) -> str:
    """Changes when the code of the policy's file changes, or that of a policy inside it; not when only comments or
    docstrings do."""
    digest = source_digest(policy)
    held = [getattr(policy, name) for name in policy.policy_fields]
    inner = [one for value in held for one in (value if isinstance(value, (tuple, list)) else [value])]
    if not inner:
        return digest
    return hashlib.sha256("".join([digest, *map(policy_source_digest, inner)]).encode()).hexdigest()[:16]


def source_digest(thing: object) -> str:
    """Changes when the code of the file of an object's class changes, not when only its comments or docstrings do."""
    source = inspect.getsourcefile(type(thing))
    if source is None or not Path(source).is_file():
        return "unknown"
    return code_digest(Path(source).read_text(encoding="utf-8"))


def code_digest(source: str) -> str:
    """A digest of Python code without comments, docstrings and layout."""
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                s
                for s in body
                if not (
                    isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
                )
            ]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
