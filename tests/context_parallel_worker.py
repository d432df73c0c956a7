"""One of two processes that share each video of a tiny Wan by diffusers' context parallelism (Ulysses or ring)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from toys import Loop, tiny_transformer

import fsframework as fsf
from fsframework.models.wan import Wan
from fsframework.policies import Foresight

STEPS = 10


def policy(gamma: float) -> Foresight:
    return Foresight(gamma=gamma, warmup=3, recompute_every=3)


def video(model: torch.nn.Module, gamma: float) -> dict[str, Any]:
    """The latent of a video, and for each visit its branch, site, decision and this rank's own distance."""
    loop = Loop(Wan(), model)
    with fsf.reuse(model, policy(gamma), scheduler=loop.scheduler) as session:
        latent = loop(STEPS, session=session, sequential=True)
    trace = session.trace
    rows = zip(trace.column("branch"), trace.column("site"), trace.column("decision"), trace.column("distance"))
    return {"latent": latent.tolist(), "rows": [(b, str(s), d, float(x)) for b, s, d, x in rows]}


def attention_with_lse(
    ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [B, S, H, D] and the log-sum-exp of its scores [B, S, H], which diffusers joins the parts of a ring by.

    Of diffusers' attention backends only those of GPUs return the latter, so on a CPU this stands in for `native`.
    """
    scores = torch.einsum("bqhd,bkhd->bqhk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bqhk,bkhd->bqhd", scores.softmax(dim=-1), value), scores.logsumexp(dim=-1)


def work(rank: int, port: int, kind: str, gammas: list[float], queue: Any) -> None:
    """A video for each gamma, with the other rank; `kind` is ulysses or ring."""
    from diffusers import ContextParallelConfig
    from diffusers.models import attention_dispatch

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    # diffusers takes the rank modulo the number of accelerators; with none it divides by zero.
    torch.accelerator.device_count = lambda: 1
    model = tiny_transformer(Wan())
    model.enable_parallelism(config=ContextParallelConfig(**{f"{kind}_degree": 2}))
    if kind == "ring":
        attention_dispatch._native_attention_forward_op = attention_with_lse
    queue.put((rank, [video(model, gamma) for gamma in gammas]))
    dist.barrier()
    dist.destroy_process_group()
