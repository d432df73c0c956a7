"""The caches of diffusers and cache-dit, each with the settings of ours that make the same decisions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fsframework.core import LoadedModel

BLOCK = 5
"""Index of the block whose attention is watched for which steps are computed."""


@dataclass(frozen=True)
class Pair:
    """A peer's setting and ours."""

    name: str
    enable: Callable[[Any], Any]
    """Switches the peer on for a pipeline."""
    disable: Callable[[Any], Any]
    ours: Mapping[str, Any]
    """Our policy: `name` and options."""
    note: str = ""

    @contextmanager
    def session(self, pipe: Any) -> Iterator[None]:
        """The peer, switched on inside."""
        self.enable(pipe)
        try:
            yield
        finally:
            self.disable(pipe)


def pairs(ratios: Sequence[float], num_steps: int) -> list[Pair]:
    """What is compared on a CogVideoX pipeline of `num_steps` steps; `ratios` are MagCache's, one per step."""
    return [*_of_diffusers(list(ratios), num_steps), *_of_cache_dit()]


LATTE = (
    "On Latte diffusers' PAB is paired with ours. It takes temporal attention for spatial ('transformer_blocks' is found in "
    "'temporal_transformer_blocks', and first), so it has one range for both. FirstBlockCache and TaylorSeer want a cache "
    "context, which LattePipeline does not open. FirstBlockCache and MagCache also take all spatial blocks to come before "
    "all temporal ones, which run in turns. FasterCache and cache-dit are not paired there."
)
"""Which peers come beside ours on Latte, and why not more."""


def pairs_on_latte() -> list[Pair]:
    """What is compared on a Latte pipeline. Those that can not run there are rows that say so."""
    import diffusers
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

    def ours(cross: int) -> dict[str, Any]:
        ranges = {"cross_attention": cross, "spatial": 2, "temporal": 2}
        return {"name": "pab", **ranges, "window_low": 100, "window_high": 800, "mlp_windows": (), "gate": "pre"}

    def attention(cross: int | None, pipe: Any) -> Any:
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            temporal_attention_block_skip_range=2,
            cross_attention_block_skip_range=cross,
            current_timestep_callback=_timestep(pipe),
        )

    names = [r"(temporal_)?transformer_blocks\.\d+\.attn[12]", r"(temporal_)?transformer_blocks\.\d+\.ff"]
    return [
        Pair(
            "diffusers PAB, self-attention",
            *_hook(partial(attention, None)),
            ours=ours(1),
        ),
        Pair(
            "diffusers PAB, self- and cross-attention",
            *_hook(partial(attention, 3)),
            ours=ours(3),
        ),
        Pair(
            "diffusers FirstBlockCache 0.1",
            *_hook(partial(_first_block, 0.1)),
            ours={"name": "first_block_cache", "threshold": 0.1},
        ),
        Pair(
            "diffusers TaylorSeer, with names that match",
            *_hook(
                lambda pipe: TaylorSeerCacheConfig(
                    cache_interval=2, disable_cache_before_step=4, max_order=1, cache_identifiers=names
                )
            ),
            ours={"name": "taylorseer", "interval": 2, "first_steps": 4, "order": 1},
        ),
    ]


def _hook(config: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return (lambda pipe: pipe.transformer.enable_cache(config(pipe))), (lambda pipe: pipe.transformer.disable_cache())


def _timestep(pipe: Any) -> Callable[[], Any]:
    return lambda: pipe.current_timestep


def _first_block(threshold: float, pipe: Any) -> Any:
    import diffusers

    return diffusers.FirstBlockCacheConfig(threshold=threshold)


def _of_diffusers(ratios: list[float], num_steps: int) -> list[Pair]:
    import diffusers
    from diffusers.hooks.mag_cache import MagCacheConfig
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

    def step(of_30: int) -> int:
        return round(of_30 * num_steps / 30)

    return [
        Pair(
            "diffusers PAB",
            *_hook(
                lambda pipe: diffusers.PyramidAttentionBroadcastConfig(
                    spatial_attention_block_skip_range=2,
                    spatial_attention_timestep_skip_range=(100, 800),
                    current_timestep_callback=_timestep(pipe),
                )
            ),
            ours={"name": "pab", "joint": 2, "window_low": 100, "window_high": 800, "gate": "pre"},
        ),
        *(
            Pair(
                f"diffusers FirstBlockCache {threshold}",
                *_hook(partial(_first_block, threshold)),
                ours={"name": "first_block_cache", "threshold": threshold},
            )
            for threshold in (0.05, 0.1)
        ),
        Pair(
            "diffusers TaylorSeer, with names that match",
            *_hook(
                lambda pipe: TaylorSeerCacheConfig(
                    cache_interval=2,
                    disable_cache_before_step=4,
                    max_order=1,
                    taylor_factors_dtype=torch.float32,
                    cache_identifiers=[r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"],
                )
            ),
            ours={"name": "taylorseer", "interval": 2, "first_steps": 4, "order": 1},
        ),
        Pair(
            "diffusers TaylorSeer, as it comes",
            *_hook(lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=4, max_order=1)),
            ours={"name": "taylorseer", "interval": 2, "first_steps": 4, "order": 1},
            note="its default names match no module of CogVideoX, so it silently computes everything",
        ),
        Pair(
            "diffusers MagCache",
            *_hook(
                lambda pipe: MagCacheConfig(
                    threshold=0.12,
                    max_skip_steps=3,
                    retention_ratio=0.2,
                    num_inference_steps=num_steps,
                    mag_ratios=torch.tensor(ratios),
                )
            ),
            ours={"name": "magcache", "threshold": 0.12, "max_consecutive": 3, "retention": 0.2, "ratios": ratios},
            note="theirs puts the text stream's input in place of its residual",
        ),
        Pair(
            "diffusers FasterCache",
            *_hook(
                lambda pipe: diffusers.FasterCacheConfig(
                    spatial_attention_block_skip_range=2,
                    spatial_attention_timestep_skip_range=(-1, 681),
                    unconditional_batch_skip_range=5,
                    unconditional_batch_timestep_skip_range=(-1, 641),
                    attention_weight_callback=lambda _: 0.5,
                    tensor_format="BFCHW",
                    current_timestep_callback=_timestep(pipe),
                )
            ),
            ours={
                "name": "fastercache",
                "attention_start": step(10),
                "attention_interval": 2,
                "attention_phase": 0,
                "weight": 0.5,
                "rise": 0,
                "guidance_start": step(11),
                "guidance_interval": 5,
                "alpha": 1.1,
                "low_stop": step(27),
                "high_start": step(21),
            },
            note="theirs multiplies its cached difference by alpha again at every step",
        ),
    ]


def _of_cache_dit() -> list[Pair]:
    try:
        import cache_dit
    except ImportError:
        return []
    logging.getLogger("cache_dit").setLevel(logging.ERROR)
    out = []
    for first, threshold in ((1, 0.08), (1, 0.12), (8, 0.08)):

        def enable(pipe: Any, first: int = first, threshold: float = threshold) -> None:
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=first, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=5
            )
            cache_dit.enable_cache(pipe, cache_config=config)

        out.append(
            Pair(
                f"cache-dit DBCache F{first}B0 {threshold}",
                enable,
                cache_dit.disable_cache,
                ours={"name": "dbcache", "first_blocks": first, "last_blocks": 0, "threshold": threshold, "warmup": 5},
            )
        )
    return out


def has_cache_dit() -> bool:
    """Whether cache-dit can be compared with."""
    import importlib.util

    return importlib.util.find_spec("cache_dit") is not None


@contextmanager
def computed_steps(pipe: Any, block: int = BLOCK) -> Iterator[list[int]]:
    """A list that gets the step of every real run of the watched query projection (guidance is batched: one call a step)."""
    steps: list[int] = []
    now = [-1]

    def tick(*_: Any) -> None:
        now[0] += 1

    def count(*_: Any) -> None:
        steps.append(now[0])

    module = pipe.transformer.transformer_blocks[block].attn1.to_q
    handles = [pipe.transformer.register_forward_pre_hook(tick), module.register_forward_pre_hook(count)]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def measured_ratios(model: LoadedModel, num_steps: int, **sampling: Any) -> list[float]:
    """MagCache's magnitude ratios of one clip, from our recorder."""
    from fsframework.core import Run
    from fsframework.policies.magcache import MagCache
    from fsframework.run.attach import reuse

    calibration = MagCache().calibration()
    assert calibration is not None
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(num_steps)
    timesteps = [float(t) for t in scheduler.timesteps]
    run = Run(len(timesteps), timesteps, model.bind().sites(MagCache()), facts={"family": "cogvideox"})
    name, recorder = next(iter(calibration.rollouts(run).items()))
    with reuse(model.pipe, recorder) as session:
        model.generate_latents("digit 3 is moving left and right", 1, num_steps=num_steps, **sampling)
    latent = torch.zeros(1)
    record = calibration.record("full", session.trace, latent, latent)
    ratios: Any = calibration.fit({name: [record]}, run).values["ratios"]
    return list(next(iter(ratios.values())) if isinstance(ratios, Mapping) else ratios)
