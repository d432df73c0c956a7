"""One of several processes that share a video: each has its own tokens, and they disagree about the change."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from toys import run_scripted

from fsframework.policies import Foresight


def script(rank: int):
    """Rank 0's tokens stop changing after step 3, rank 1's go on growing."""
    return lambda block, t: min(t, 3) if rank == 0 else (t if t <= 4 else 4 + 0.5 * (t - 4))


def work(rank: int, port: int, shared: bool, queue) -> None:
    """Run Foresight on this rank's tokens; put its decisions into the queue."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    group = dist.group.WORLD if shared else None
    session, _, _ = run_scripted(Foresight(gamma=0.8, warmup=4), script(rank), num_steps=12, group=group)
    queue.put((rank, session.trace.decisions("joint.0")))
    dist.barrier()
    dist.destroy_process_group()
