"""Other precisions and other places: what is kept, what comes back, and the order of copies between devices."""

import pytest
import torch

from fsframework.core import Kind, Part, ReuseCache, Site
from fsframework.core.packing import Packing
from fsframework.core.transfer import Transfers

SITES = [Site(Part.BLOCK, Kind.JOINT, i, i + 1, i) for i in range(3)]


def decibels(signal, found):
    """Signal over error, in dB."""
    return float(10 * torch.log10(signal.double().square().mean() / (signal.double() - found.double()).square().mean()))


def round_trip(dtype, value):
    packing = Packing(dtype)
    return packing.unpack(packing.pack((value,)))[0]


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(torch.bfloat16, 50, 58), (torch.float16, 68, 76), (torch.float8_e4m3fn, 30, 33), (torch.float8_e5m2, 24, 27)],
)
def test_the_error_of_a_precision_is_that_of_its_mantissa(dtype, source, least, most):
    """A mantissa of m bits rounds by up to 2^-(m+1) of a number: 7, 10, 3 and 2 bits."""
    torch.manual_seed(0)
    value = (torch.randn(200, 300) * 50).to(source)
    back = round_trip(dtype, value)
    assert back.dtype == source
    if source is torch.bfloat16 and dtype is torch.bfloat16:
        assert back is value
    elif source is torch.bfloat16 and dtype is torch.float16:
        assert torch.equal(back, value)  # 10 bits hold the 7 it came with, and a power of two rounds nothing
    else:
        assert least <= decibels(value, back) <= most


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e6, 1e30])
def test_values_of_any_size_fit_into_a_small_precision(dtype, size):
    """float8_e4m3fn ends at 448, float16 at 65504; the factor that is stored beside brings the largest there."""
    torch.manual_seed(0)
    value = torch.randn(50, 60) * size
    back = round_trip(dtype, value)
    assert back.isfinite().all()
    assert back.abs().max().item() == pytest.approx(value.abs().max().item(), rel=0.13)  # 2 bits: 1/8 at most
    assert decibels(value / size, back / size) > 24


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_zeros_stay_zeros_and_what_is_not_finite_stays_so(dtype):
    assert torch.equal(round_trip(dtype, torch.zeros(2, 3)), torch.zeros(2, 3))
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert not round_trip(dtype, torch.tensor([1.0, bad]))[1].isfinite()


def test_whole_numbers_are_kept_as_they_are():
    index = torch.tensor([3, 70000])
    assert round_trip(torch.float8_e4m3fn, index) is index


@pytest.mark.parametrize(("dtype", "each"), [(torch.bfloat16, 2 * 600), (torch.float8_e4m3fn, 600 + 4)])
def test_bytes_are_those_of_the_kept_precision_with_its_factor(dtype, each):
    cache = ReuseCache(packing=Packing(dtype))
    cache.put("joint", SITES[0], 0, (torch.randn(1, 20, 30), torch.randn(1, 20, 30)))
    cache.keep("joint", "signal", 0, (torch.randn(1, 20, 30),))
    assert cache.num_bytes == cache.peak_bytes == 3 * each
    assert cache.peak_counts() == {"joint": (1, 1)}
    assert cache.kept("joint", "signal")[0].dtype == torch.float32


def test_an_integer_precision_is_refused():
    with pytest.raises(ValueError, match=r"cache_dtype=torch.int8 must be a floating-point type"):
        Packing(torch.int8)


def test_copies_are_the_caches_own():
    """A CUDA graph writes its next result where the last one was."""
    cache = ReuseCache(packing=Packing(copy=True))
    output = torch.ones(1, 2, 2)
    cache.put("joint", SITES[0], 0, (output,))
    output.fill_(9.0)
    entry = cache.last("joint", SITES[0])
    cache.check(entry, SITES[0])
    assert entry.value[0].mean() == 1.0
    entry.value[0].add_(1)  # but writing into what the cache gave is still found out
    with pytest.raises(RuntimeError, match="modified in place"):
        cache.check(cache.last("joint", SITES[0]), SITES[0])


# Moving between devices. The order of events, with an accelerator that only writes down what it is told.


class Recorder:
    """As much of `torch.cuda` as `Transfers` uses."""

    def __init__(self):
        self.log = []
        self.current = self.Stream("compute")
        self.count = 0

    def Stream(self, name=None):
        recorder = self

        class Stream:
            def __init__(self):
                self.name = name or ("out", "in")[recorder.num_streams()]

            def wait_stream(self, other):
                recorder.log.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event):
                recorder.log.append(f"{self.name} waits for {event}")

        return Stream()

    def num_streams(self):
        self.made = getattr(self, "made", -1) + 1
        return self.made

    def current_stream(self):
        return self.current

    def stream(self, stream):
        recorder = self

        class Inside:
            def __enter__(self):
                recorder.before, recorder.current = recorder.current, stream

            def __exit__(self, *exc):
                recorder.current = recorder.before

        return Inside()

    def Event(self):
        recorder = self

        class Event:
            def record(self, stream):
                recorder.count += 1
                self.number = recorder.count
                recorder.log.append(f"{stream.name} records e{self.number}")

            def __repr__(self):
                return f"e{self.number}"

        return Event()


def offloaded():
    recorder = Recorder()
    return recorder, ReuseCache(packing=Packing(device=torch.device("cpu"), transfers=Transfers(recorder)))


def test_a_copy_away_waits_for_the_model_and_the_copy_back_only_for_that():
    recorder, cache = offloaded()
    cache.put("joint", SITES[0], 0, (torch.full((2, 2), 5.0),))
    assert recorder.log == ["out waits for compute", "out records e1"]
    recorder.log.clear()
    assert cache.last("joint", SITES[0]).value[0].mean() == 5.0
    assert recorder.log == ["in waits for e1", "in records e2", "compute waits for e2"]


def test_the_next_site_is_fetched_while_one_is_read():
    recorder, cache = offloaded()
    orders = []
    for step in range(2):
        for i, site in enumerate(SITES):
            cache.put("joint", site, step, (torch.full((2, 2), float(10 * step + i)),))
        order = ""
        for i, site in enumerate(SITES):
            recorder.log.clear()
            assert cache.last("joint", site).value[0].mean() == 10 * step + i
            fetched = sum(line.startswith("in records") for line in recorder.log)
            order += f"{fetched} "
            waits = [line for line in recorder.log if line.startswith("compute waits")]
            assert recorder.log[-1:] == waits  # the model waits for one copy only, after all have been begun
            if i and step:  # and that copy was begun a site ago
                assert waits[0].removeprefix("compute waits for ") not in " ".join(recorder.log[:-1])
            cache.last("joint", site)  # a second look moves nothing
            assert sum(line.startswith("in records") for line in recorder.log) == fetched
        orders.append(order)
    # First nobody knows what comes next. Then site 0 itself and site 1, then 2, then 0 for the next step.
    assert orders == ["1 1 1 ", "2 1 1 "]


def test_at_most_two_sites_are_back_at_once():
    _, cache = offloaded()
    for step in range(2):
        for site in SITES:
            cache.put("joint", site, step, (torch.ones(2, 2),))
        for site in SITES:
            cache.last("joint", site)
            back = [s for s in SITES if cache._entries["joint", s][0].packed.fetched is not None]
            assert site in back
            assert len(back) <= 2


def test_a_new_value_is_not_mistaken_for_what_was_fetched():
    _, cache = offloaded()
    for step in range(3):
        for i, site in enumerate(SITES[:2]):
            cached = cache.last("joint", site)
            assert cached is None or cached.value[0].mean() == 10 * (step - 1) + i
            cache.put("joint", site, step, (torch.full((2, 2), 10.0 * step + i),))
