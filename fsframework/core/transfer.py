"""`Transfers`: copies between an accelerator and host memory that run beside the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Transfers:
    """Moves tensors away and back on two streams of their own, so that neither waits for the other or for the model.

    `module` is the device's (`torch.cuda`, or what `torch.get_device_module` gives). The rules kept here:

    - A copy away waits for the stream that computes the value, and the allocator keeps the value's memory until it is done.
      Host memory is pinned; otherwise the copy would be synchronous.
    - A copy back waits for that value's copy away, and for nothing else.
    - Whoever uses what came back waits for its copy on the stream it computes on (`wait`), on the device: the host never does.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._outward = module.Stream()
        self._inward = module.Stream()

    def away(self, tensor: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        """`tensor` on `device`, and the event of its copy."""
        kept = torch.empty_like(tensor, device=device, pin_memory=device.type == "cpu" and tensor.device.type == "cuda")
        self._outward.wait_stream(self._module.current_stream())
        with self._module.stream(self._outward):
            kept.copy_(tensor, non_blocking=True)
            _hold(tensor, self._outward)
            event = self._module.Event()
            event.record(self._outward)
        return kept, event

    def back(self, tensor: Tensor, device: torch.device, arrived: list[Any]) -> tuple[Tensor, Any]:
        """`tensor` on `device` once the returned event has happened; `arrived` are the events of its copy away."""
        for event in arrived:
            self._inward.wait_event(event)
        with self._module.stream(self._inward):
            moved = torch.empty_like(tensor, device=device)
            moved.copy_(tensor, non_blocking=True)
            event = self._module.Event()
            event.record(self._inward)
        return moved, event

    def wait(self, tensor: Tensor, event: Any) -> None:
        """Let the current stream wait until `tensor` came back, and own its memory from now on."""
        stream = self._module.current_stream()
        stream.wait_event(event)
        _hold(tensor, stream)


def _hold(tensor: Tensor, stream: Any) -> None:
    """Keep the memory of `tensor` from being given away before `stream` has come this far. Host memory is never."""
    if tensor.device.type != "cpu":
        tensor.record_stream(stream)
