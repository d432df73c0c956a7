import json
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fsframework.metrics import PSNR
from fsframework.run import costs
from fsframework.run.costs import COST_UNITS, Costs, measure
from fsframework.run.report_table import COSTS
from fsframework.run.results import summarize

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(
    not costs._PROC.joinpath("clear_refs").exists(), reason="the peak is read from Linux's /proc"
)


def busy(seconds: float) -> str:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def test_the_result_comes_back_with_seconds_by_both_clocks():
    result, taken = measure(lambda: busy(0.05), CPU)
    assert result == "done"
    assert 0.05 <= taken.cpu_seconds < 1
    assert taken.wall_seconds >= 0.05


def test_sleeping_takes_wall_time_but_no_cpu_time():
    _, taken = measure(lambda: time.sleep(0.1), CPU)
    assert taken.wall_seconds >= 0.1
    assert taken.cpu_seconds < 0.05


def test_on_a_cpu_there_is_no_device_clock_and_no_energy():
    _, taken = measure(lambda: None, CPU)
    assert (taken.device_seconds, taken.energy_joules) == (None, None)


@LINUX
def test_memory_growth_is_what_the_call_held_at_once_even_if_it_let_go_again():
    def eighty_megabytes() -> float:
        return float(torch.ones(20_000_000).sum())  # 20 million float32

    for _ in range(2):  # the second call needs as much as the first, though the first freed its own
        _, taken = measure(eighty_megabytes, CPU)
        assert taken.memory_bytes_growth == pytest.approx(80e6, abs=8e6)
        assert taken.memory_bytes_peak > taken.memory_bytes_growth
    _, taken = measure(lambda: None, CPU)
    assert taken.memory_bytes_growth < 8e6


def test_where_the_kernel_keeps_no_peak_memory_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "_PROC", tmp_path)
    _, taken = measure(lambda: None, CPU)
    assert (taken.memory_bytes_peak, taken.memory_bytes_growth) == (None, None)


class FakeCuda:
    """Stands in for torch.cuda: 1000 bytes held, 1600 at most, 250 ms between the events."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        return SimpleNamespace(record=lambda stream: self.calls.append("record"), elapsed_time=lambda end: 250.0)

    def synchronize(self, device: torch.device) -> None:
        self.calls.append("synchronize")

    def current_stream(self, device: torch.device) -> str:
        return "stream"

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(uuid="0000-1111")

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.calls.append("reset")

    def memory_allocated(self, device: torch.device) -> int:
        return 1000

    def max_memory_allocated(self, device: torch.device) -> int:
        return 1600


def fake_nvml(readings: list[float] | None) -> ModuleType:
    """A pynvml whose card reads `readings` millijoules one after another; None: one that counts no energy."""
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid

    def total(handle: str) -> float:
        assert handle == "GPU-0000-1111"
        if readings is None:
            raise module.NVMLError("not supported")
        return readings.pop(0)

    module.nvmlDeviceGetTotalEnergyConsumption = total
    return module


@pytest.fixture
def cuda(monkeypatch):
    costs._nvml_handle.cache_clear()
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    yield fake
    costs._nvml_handle.cache_clear()


def test_on_a_gpu_events_the_allocator_and_the_cards_counter_are_read(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([5_000_000, 5_012_500]))
    result, taken = measure(lambda: cuda.calls.append("call") or "video", torch.device("cuda", 0))
    assert result == "video"
    assert cuda.calls == ["reset", "synchronize", "record", "call", "record", "synchronize"]
    assert taken.device_seconds == 0.25
    assert (taken.memory_bytes_peak, taken.memory_bytes_growth) == (1600, 600)
    assert taken.energy_joules == 12.5


@pytest.mark.parametrize("module", [None, fake_nvml(None)])
def test_without_nvml_or_a_card_that_counts_there_is_no_energy_and_no_error(cuda, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)  # None: importing it fails
    _, taken = measure(lambda: None, torch.device("cuda"))
    assert taken.energy_joules is None
    assert taken.device_seconds == 0.25


def record(taken: Costs, reference: Costs | None) -> dict:
    return {
        "reuse_fraction": 0.5, "flops_executed": 60.0, "flops_full": 100.0, "flops_saved": 0.4, "cache_bytes_peak": 10,
        "host_reads_per_step": 1, "metrics": {},
        **{name: getattr(taken, name) for name in COST_UNITS},
        **{f"reference_{name}": None if reference is None else getattr(reference, name) for name in COST_UNITS},
    }  # fmt: skip


def test_costs_that_were_measured_stand_in_metrics_json_with_unit_and_n_and_others_do_not():
    rows = [record(Costs(1, 2, memory_bytes_peak=m), Costs(1, 2, memory_bytes_peak=30)) for m in (10, 20)]
    rows.append(record(Costs(1, 2), None))
    summary = summarize(rows, [PSNR()], "cpu")
    assert summary["memory_bytes_peak"] | {"low": 0, "high": 0} == {
        "mean": 15.0, "low": 0, "high": 0, "n": 2, "unit": "bytes", "better": "lower"
    }  # fmt: skip
    assert summary["reference_memory_bytes_peak"]["mean"] == 30
    assert summary["wall_seconds"]["n"] == 3
    assert not {"energy_joules", "device_seconds", "reference_energy_joules"} & set(summary)


def test_a_record_without_a_cost_counts_as_not_measured():
    old = {k: v for k, v in record(Costs(1, 2), Costs(2, 4)).items() if "memory" not in k and "energy" not in k}
    summary = summarize([json.loads(json.dumps(old))], [PSNR()], "cpu")
    assert summary["speedup"]["mean"] == 2
    assert "memory_bytes_peak" not in summary


def test_the_report_takes_no_cost_for_a_quality():
    assert {*COST_UNITS, *(f"reference_{name}" for name in COST_UNITS)} <= set(COSTS)
