"""What one call of the pipeline costs: seconds by three clocks, memory, energy. What can not be measured is None.

FLOPs, cache bytes and host reads come from the engine (`session.summary()`); they need no clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

COST_UNITS = {
    "cpu_seconds": "s",
    "wall_seconds": "s",
    "device_seconds": "s",
    "memory_bytes_peak": "bytes",
    "memory_bytes_growth": "bytes",
    "energy_joules": "J",
}
"""Every cost of `Costs` with its unit, in the order in which they stand in records and reports; lower is better."""
_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Costs:
    """What one call took. None: not measured here."""

    cpu_seconds: float
    """Process CPU time, all threads: what counts on a CPU that others use too."""
    wall_seconds: float
    device_seconds: float | None = None
    """On a GPU: between two events on its stream, one before the first kernel and one after the last, idle gaps
    included. Wall seconds less what the host does alone at either end."""
    memory_bytes_peak: int | None = None
    """Most memory held during the call, with the weights: the process's resident set on a CPU (Linux), what torch's
    allocator has handed out on a GPU."""
    memory_bytes_growth: int | None = None
    """The same beyond what was held when the call began: activations, cache, frames; the weights are no part of it."""
    energy_joules: float | None = None
    """On a GPU whose driver counts it (NVML, from Volta on; `pip install nvidia-ml-py`): of the whole card, also for
    other processes on it."""


def measure(call: Callable[[], T], device: torch.device) -> tuple[T, Costs]:
    """Run `call` and measure it; `device` is where its tensors are.

    The clocks run from the call to its return, on a GPU with the device idle at both ends. Getting ready (returning
    free memory, resetting the peak) happens before the clocks start.
    """
    import torch

    on_gpu = device.type == "cuda"
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if on_gpu else (None, None)
    memory = _GpuMemory(device) if on_gpu else _ProcessMemory()
    if on_gpu:
        torch.cuda.synchronize(device)
    joules = energy_counter(device)
    wall, cpu = time.perf_counter(), time.process_time()
    if begin is not None:
        begin.record(torch.cuda.current_stream(device))
    result = call()
    if end is not None:
        end.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = energy_counter(device)
    peak, growth = memory.read()
    return result, Costs(
        cpu_seconds=cpu,
        wall_seconds=wall,
        device_seconds=None if begin is None or end is None else begin.elapsed_time(end) / 1000,  # from milliseconds
        memory_bytes_peak=peak,
        memory_bytes_growth=growth,
        energy_joules=None if joules is None or after is None else after - joules,
    )


class _GpuMemory:
    """Peak of what torch's allocator handed out since the object was made."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device
        self._cuda.reset_peak_memory_stats(device)
        self._before = self._cuda.memory_allocated(device)

    def read(self) -> tuple[int | None, int | None]:
        """(peak, growth) in bytes."""
        peak = self._cuda.max_memory_allocated(self._device)
        return peak, peak - self._before


class _ProcessMemory:
    """Peak of the process's resident set since the object was made: Linux only, elsewhere (None, None).

    The kernel keeps the peak (VmHWM) and lets a process reset its own, so nothing is sampled. The C library keeps freed
    memory for later; it is asked to return it first, or a second call would seem to need less than the first.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        if not (_PROC / "clear_refs").exists():
            return
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: not the GNU C library
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            (_PROC / "clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")

    def read(self) -> tuple[int | None, int | None]:
        """(peak, growth) in bytes."""
        if self._before is None:
            return None, None
        peak = _status_bytes("VmHWM")
        return peak, max(0, peak - self._before)


def _status_bytes(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024  # "VmHWM:  1632 kB"
    raise OSError(f"/proc/self/status has no {field}")


def energy_counter(device: torch.device) -> float | None:
    """Joules the card has used since its driver was loaded; None without a GPU, NVML, or a card that counts them."""
    handle = _nvml_handle(device.type, device.index)
    if handle is None:
        return None
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # from millijoules
    except pynvml.NVMLError:
        return None


@lru_cache(maxsize=16)
def _nvml_handle(device_type: str, index: int | None) -> Any:
    """NVML's name of a CUDA device. By UUID: NVML counts every card, torch only those in CUDA_VISIBLE_DEVICES."""
    if device_type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (pynvml.NVMLError, AttributeError):  # AttributeError: a torch without uuid, such as a ROCm build
        return None
