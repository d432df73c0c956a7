"""`reuse`: open a reuse session on any supported pipeline or transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fsframework.core import ModelAdapter, ReuseEngine, ReusePolicy, StagedSession


def reuse(
    target: Any,
    policy: ReusePolicy[Any],
    *,
    timesteps: Sequence[float] | torch.Tensor | None = None,
    scheduler: Any = None,
    **options: Any,
) -> ReuseEngine | StagedSession:
    """A session in which `target` runs under `policy`; use it as a context manager.

    ::

        with fsf.reuse(pipe, Foresight(gamma=0.5)) as session:
            video = pipe("digit 6 is moving up and down", height=32, width=32).frames
        session.summary()

    Args:
        target: a diffusers pipeline, or its transformer used in a loop of your own.
        policy: a policy object.
        timesteps: for a bare transformer: the timesteps your loop will use, in order.
        scheduler: for a bare transformer: the diffusers scheduler your loop calls `set_timesteps` and `step` on, instead
            of `timesteps`. A pipeline's own scheduler is used by itself.
        **options: passed to `ReuseEngine`: timing, record, cache_dtype, cache_device, group, guided, facts (what is known
            of the model is filled in). The group of a model under diffusers' context parallelism is found by itself.

    A pipeline with two denoisers that share the steps (Wan 2.2) gets one session over both, a `StagedSession`.

    Raises:
        ValueError: no adapter for the model's class, no site the policy asks about, or a bare transformer without
            timesteps or scheduler.
    """
    import fsframework.models  # noqa: F401  registers the adapters
    from fsframework.core import ReuseEngine, StagedSession
    from fsframework.core.staged import two_stages
    from fsframework.models.loading import find_adapter

    adapter, transformer, pipe = find_adapter(target)
    options["facts"] = {**model_facts(adapter, transformer, pipe), **options.get("facts", {})}
    options.setdefault("group", sharing_group(transformer))
    if pipe is not None:
        if timesteps is not None or scheduler is not None:
            raise ValueError("a pipeline brings its own scheduler; timesteps and scheduler are for a bare transformer")
        options.setdefault("guided", lambda: is_guided(pipe))
        options["scheduler"] = lambda: pipe.scheduler
        later = [(name, m) for name in adapter.later_transformers if (m := getattr(pipe, name, None)) is not None]
        fraction = None if adapter.boundary is None else pipe.config.get(adapter.boundary)
        if not later or fraction is None:
            return ReuseEngine(adapter.bind(transformer), policy, **options)
        ((name, second),) = later
        early, late = two_stages(fraction * pipe.scheduler.config.num_train_timesteps)
        bound = (adapter.bind(transformer), adapter.bind(second, denoiser=name))
        return StagedSession([ReuseEngine(b, policy, in_stage=own, **options) for b, own in zip(bound, (early, late))])
    if timesteps is None and scheduler is None:
        raise ValueError(
            "a bare transformer needs timesteps=[...] (those of your loop) or scheduler=... so that the session knows the step"
        )
    return ReuseEngine(adapter.bind(transformer), policy, scheduler=scheduler, timesteps=timesteps, **options)


def sharing_group(transformer: Any) -> Any:
    """The process group of the ranks that hold one video's tokens (diffusers' Ulysses or ring attention), else None.

    Tensor parallelism needs none: each rank has all tokens, so all measure the same.
    """
    parallel = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    mesh = getattr(parallel, "_flattened_mesh", None)
    return None if mesh is None else mesh.get_group()


def is_guided(pipe: Any) -> bool | None:
    """Whether the call of a pipeline in progress uses guidance, as far as it says; None if it does not say."""
    known = getattr(pipe, "do_classifier_free_guidance", None)
    if known is None and (scale := getattr(pipe, "guidance_scale", None)) is not None:
        return bool(scale > 1)
    return known


def model_facts(adapter: ModelAdapter, transformer: Any, pipe: Any) -> dict[str, object]:
    """What a run is known by: family, checkpoint (its name in `fsf list models`, where it is one of those), the classes
    of transformer, pipeline and scheduler."""
    from fsframework.core import ADAPTERS

    facts: dict[str, object] = {
        "family": ADAPTERS.name_of(type(adapter)),
        "transformer": type(transformer).__name__,
    }
    if pipe is not None:
        facts["pipeline"] = type(pipe).__name__
        if getattr(pipe, "scheduler", None) is not None:
            facts["scheduler"] = type(pipe.scheduler).__name__
        source = str(getattr(pipe, "name_or_path", "") or "")
        names = [name for name, c in adapter.checkpoints.items() if source and _is_source(source, c.source)]
        if names:
            facts["checkpoint"] = names[0]
    return facts


def _is_source(path: str, source: str) -> bool:
    return path == source or ("/" not in source and path.rstrip("/").endswith("/models/" + source))
