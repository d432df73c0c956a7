import math
import re
import shutil
import warnings

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

import fsframework.core.distance
from fsframework.core.distance import DISTANCES, PIECE_ON_CPU, cosine, mse, relative_l1
from fsframework.core.fused import Fused
from fsframework.run.bench_counts import host_reads

ONES, THREES = torch.ones(2, 3, 4), torch.full((2, 3, 4), 3.0)


def test_hand_values():
    assert mse(THREES, ONES).item() == 4.0
    assert relative_l1(THREES, ONES).item() == 2.0
    assert relative_l1(ONES, THREES).item() == pytest.approx(2 / 3)
    assert cosine(THREES, ONES).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine(-THREES, ONES).item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_equal_tensors_are_at_distance_zero_and_per_sample_gives_one_each(name):
    x = torch.randn(2, 3, 4)
    assert DISTANCES[name](x, x).item() == pytest.approx(0.0, abs=1e-6)
    assert DISTANCES[name](x, x, per_sample=True).shape == (2,)


def test_zero_over_zero_is_zero():
    zeros = torch.zeros(1, 2, 2)
    assert relative_l1(zeros, zeros).item() == 0.0


def test_half_precision_activations_do_not_overflow():
    big = torch.full((1, 4, 4), 1000.0, dtype=torch.float16)
    assert mse(big, torch.zeros_like(big)).item() == 1e6  # float16 ends at 65504
    assert mse(big, torch.zeros_like(big)).dtype == torch.float32


def test_inputs_are_not_written_to():
    a, b = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    before = a.clone(), b.clone()
    for distance in DISTANCES.values():
        distance(a, b)
        distance(a, b, per_sample=True)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_a_stride_compares_every_so_manyth_token():
    a, b = torch.zeros(1, 8, 2), torch.zeros(1, 8, 2)
    a[:, 1::2] = 100.0
    assert mse(a, b, stride=2).item() == 0.0
    assert mse(a, b).item() == 5000.0


def test_a_stride_of_four_is_within_three_percent_on_a_smooth_field():
    t = torch.linspace(0, 2 * math.pi, 256)[None, :, None]
    a, b = torch.sin(t), torch.sin(t + 0.1)
    assert mse(a, b, stride=4).item() == pytest.approx(mse(a, b).item(), rel=0.03)


def test_two_shapes_are_an_error_that_gives_both():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), cached \(1, 3, 4\)"):
        mse(ONES, ONES[:1])


# Cost and accuracy.


def exact(name, a, b, per_sample=False):
    """The distance in float64, written as one would write it."""
    a, b = a.double(), b.double()
    axes = tuple(range(1, a.ndim)) if per_sample else tuple(range(a.ndim))
    if name == "mse":
        return (a - b).square().mean(axes)
    if name == "relative_l1":
        return (a - b).abs().mean(axes) / b.abs().mean(axes)
    return 1 - (a * b).sum(axes) / ((a * a).sum(axes) * (b * b).sum(axes)).sqrt()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_distances_are_those_of_float64_also_for_large_activations_in_half_precision(name, dtype, per_sample):
    torch.manual_seed(0)
    # 3 samples of 150000 elements: more than a piece, and no whole number of pieces. Up to about 40000 in size, opposite
    # in sign often enough that differences (80000) and squares do not fit in float16.
    cached = (torch.randn(3, 300, 500) * 9000).clamp(-4e4, 4e4).to(dtype)
    fresh = (cached.float() * 0.3 + torch.randn(3, 300, 500) * 8000).clamp(-4e4, 4e4).to(dtype)
    found, right = DISTANCES[name](fresh, cached, per_sample=per_sample), exact(name, fresh, cached, per_sample)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_distances_of_tensors_that_are_not_contiguous(name):
    torch.manual_seed(0)
    a, b = torch.randn(500, 40, 90).permute(1, 0, 2), torch.randn(40, 500, 90)
    for per_sample in (False, True):
        torch.testing.assert_close(
            DISTANCES[name](a, b, per_sample=per_sample).double(), exact(name, a, b, per_sample), rtol=1e-5, atol=1e-6
        )
    few = DISTANCES[name](a, b, stride=7)
    torch.testing.assert_close(few.double(), exact(name, a[:, ::7], b[:, ::7]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(DISTANCES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_inputs_is_made(name, dtype):
    """The largest tensor made on the way is a piece, a thirtieth of the inputs."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in inputs:
                made.append(out.untyped_storage().nbytes() // 4)
            return out

    a, b = torch.randn(2, 1024, 2048).to(dtype), torch.randn(2, 1024, 2048).to(dtype)
    inputs = {x.untyped_storage().data_ptr() for x in (a, b)}
    for stride, per_sample in ((1, False), (4, False), (1, True)):
        with Watch():
            DISTANCES[name](a, b, stride, per_sample)
    assert made
    assert max(made) <= PIECE_ON_CPU < a.numel() / 30


def test_distances_read_nothing_back():
    a, b = torch.randn(2, 300, 500), torch.randn(2, 300, 500)
    with host_reads() as reads:
        for distance in DISTANCES.values():
            distance(a, b)
            distance(a, b, per_sample=True)
    assert reads == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(bad):
    a, b = torch.randn(1, 600, 500), torch.randn(1, 600, 500)
    a[0, 599, 499] = bad
    for distance in DISTANCES.values():
        assert not distance(a, b).isfinite()


def test_a_stride_is_along_tokens_also_where_frames_are_an_axis_of_their_own():
    a, b = torch.zeros(1, 2, 8, 3), torch.zeros(1, 2, 8, 3)
    a[:, :, 1::2] = 100.0
    assert mse(a, b, stride=2).item() == 0.0
    a[:, 1] = 1.0  # one of two frames, which a stride over frames would have missed
    assert mse(a, b, stride=2).item() == 0.5


def test_gradients_do_not_come_through():
    a = torch.randn(1, 4, 4, requires_grad=True)
    assert not mse(a, torch.zeros(1, 4, 4)).requires_grad


def test_what_is_compiled_for_an_accelerator_gives_the_same_distances(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(3, 40, 50).bfloat16(), torch.randn(3, 40, 50).bfloat16()
    fused = Fused(backend="eager")
    monkeypatch.setattr(fsframework.core.distance, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(fsframework.core.distance, "FUSED", fused)
    for name, per_sample in (("mse", False), ("mse", True), ("relative_l1", False), ("cosine", True)):
        found = DISTANCES[name](a, b, per_sample=per_sample)
        torch.testing.assert_close(found.double(), exact(name, a, b, per_sample), rtol=1e-5, atol=1e-6)
    assert fused.works


def test_where_nothing_can_be_compiled_large_pieces_are_taken(monkeypatch):
    monkeypatch.setattr(fsframework.core.distance, "_is_on_cpu", lambda x: False)
    fused = Fused()
    fused.works = False
    monkeypatch.setattr(fsframework.core.distance, "FUSED", fused)
    assert mse(THREES, ONES).item() == 4.0


def test_another_resolution_is_not_compiled_for_again():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    fused = Fused(backend=backend)
    for tokens, channels in ((40, 16), (60, 16), (80, 32), (7, 9)):
        fused.sums("squares", torch.randn(2, tokens, channels), torch.randn(2, tokens, channels), False)
    assert len(graphs) == 1


def test_where_nothing_can_be_compiled_it_is_said_once_and_done_without():
    torch._dynamo.reset()

    def broken(graph, example_inputs):
        raise RuntimeError("no Triton here")

    fused = Fused(backend=broken)
    with pytest.warns(RuntimeWarning, match=r"can not be compiled and are taken in pieces.*no Triton here"):
        assert fused.sums("squares", ONES, THREES, False) is None
    with warnings.catch_warnings(action="error"):
        assert fused.sums("squares", ONES, THREES, False) is None
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_writes_one_pass_without_copies():
    """Seen in its code: no buffer of the inputs' size is allocated; and its numbers are right."""
    torch._dynamo.reset()
    a, b = torch.randn(2, 300, 500).bfloat16(), torch.randn(2, 300, 500).bfloat16()
    fused = Fused()
    (found,), codes = run_and_get_code(lambda: fused.sums("squares", a, b, False))
    torch.testing.assert_close(found.double(), (a.double() - b.double()).square().sum(), rtol=1e-5, atol=0)
    assert fused.works
    assert "empty_strided_cpu((s" in "".join(codes)  # the sums over channels, [B, N]
    assert ", torch.float32)" in "".join(codes)
    assert not re.search(r"empty_strided_cpu\(\((\w+, ){3,}\)", "".join(codes))  # nothing with three axes
