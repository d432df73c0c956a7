"""Ranks that share a video through diffusers' context parallelism: decisions are everyone's, and so is the video."""

import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
from context_parallel_worker import video, work
from toys import tiny_transformer

from fsframework.models.wan import Wan

GAMMAS = [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_two_ranks_decide_and_compute_as_one_process(kind):
    """Their shards disagree: for some block and step one rank's own distance is above its threshold, the other's below."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    running = mp.spawn(work, args=(port, kind, GAMMAS, queue), nprocs=2, join=False)
    ranks = dict(queue.get() for _ in range(2))
    while not running.join():
        pass
    model = tiny_transformer(Wan())
    num_reused, num_apart = 0, 0
    for i, gamma in enumerate(GAMMAS):
        one = video(model, gamma)
        first, second = ranks[0][i], ranks[1][i]
        decisions = [row[:3] for row in one["rows"]]
        assert [row[:3] for row in first["rows"]] == [row[:3] for row in second["rows"]] == decisions
        for found in (first, second):
            torch.testing.assert_close(torch.tensor(found["latent"]), torch.tensor(one["latent"]), rtol=1e-4, atol=1e-5)
        num_reused += sum(row[2] == "reuse" for row in one["rows"])
        for (*_, mine), (*_, theirs), (*_, whole) in zip(first["rows"], second["rows"], one["rows"]):
            if math.isfinite(whole):
                assert (mine + theirs) / 2 == pytest.approx(whole, rel=1e-3)
                num_apart += max(mine, theirs) > 1.1 * min(mine, theirs)
    assert num_reused > 0
    assert num_apart > 20
