"""`Meter`: the only door from device to host. It counts who passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Meter:
    """Brings device scalars to the host and counts the reads.

    `fetch` waits for the device. `post` starts a copy and returns at once; `take` gives the values at a later step, when
    the copy has normally long arrived. Values are kept in float32.

    When several ranks share one video, `group` is their process group and `mean_over_ranks` makes a vector equal on all
    of them; a policy must pass every distance through it before deciding, or ranks disagree and hang.
    """

    def __init__(self, group: Any = None) -> None:
        self.num_reads = 0
        self.group = group
        self._posted: dict[str, tuple[Tensor, Any]] = {}

    def fetch(self, x: Tensor) -> list[float]:
        """The values of a 0-d or 1-d tensor, now. Blocks until the device has computed them: one host read."""
        self.num_reads += 1
        return x.detach().reshape(-1).to(dtype=torch.float32, device="cpu").tolist()

    def post(self, key: str, x: Tensor) -> None:
        """Start copying a 1-d tensor to the host under `key`, replacing what was posted under it. Never waits."""
        x = x.detach().to(torch.float32)
        if x.device.type == "cpu":
            self._posted[key] = (x.clone(), None)
            return
        host = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.device.type == "cuda")
        host.copy_(x, non_blocking=True)
        event = torch.get_device_module(x.device).Event()
        event.record()
        self._posted[key] = (host, event)

    def take(self, key: str) -> list[float] | None:
        """The values posted under `key`, removing them; None if there are none. One (lagged) host read."""
        posted = self._posted.pop(key, None)
        if posted is None:
            return None
        host, event = posted
        if event is not None:
            event.synchronize()
        self.num_reads += 1
        return host.tolist()

    def mean_over_ranks(self, x: Tensor) -> Tensor:
        """`x` averaged over the ranks that share this video; `x` itself when there is one rank."""
        if self.group is None:
            return x
        x = x.detach().to(torch.float32).clone()
        torch.distributed.all_reduce(x, group=self.group)
        return x / torch.distributed.get_world_size(self.group)
