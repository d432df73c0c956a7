import pytest
import torch

from fsframework.core import Kind, Part, ReuseCache, Site
from fsframework.core.packing import Packing

SITE = Site(Part.BLOCK, Kind.JOINT, 0, 1)
OTHER = Site(Part.BLOCK, Kind.JOINT, 1, 2, 1)


def value(number: float, rows: int = 1) -> tuple[torch.Tensor]:
    return (torch.full((rows, 2, 2), number),)


def test_depth_one_keeps_the_newest_and_says_when_it_was_computed():
    cache = ReuseCache()
    cache.put("cond", SITE, 3, value(1.0))
    cache.put("cond", SITE, 5, value(2.0))
    entry = cache.last("cond", SITE)
    assert entry.step == 5
    assert entry.value[0].mean() == 2.0
    assert len(cache.history("cond", SITE)) == 1


def test_branches_and_sites_are_apart():
    cache = ReuseCache()
    cache.put("cond", SITE, 0, value(1.0))
    assert cache.last("uncond", SITE) is None
    assert cache.last("cond", OTHER) is None


def test_bytes_now_and_at_the_peak():
    cache = ReuseCache(depth=2)
    for step in range(3):
        cache.put("joint", SITE, step, value(float(step)))
    assert [e.step for e in cache.history("joint", SITE)] == [1, 2]
    assert cache.num_bytes == 2 * 16  # two entries of four float32
    cache.clear()
    assert cache.num_bytes == 0
    assert cache.peak_bytes == 2 * 16  # what was held at the fullest, remembered after clearing


def test_a_captured_tensor_that_was_written_to_is_an_error_not_a_wrong_video():
    cache = ReuseCache()
    stored = value(1.0)
    cache.put("joint", SITE, 4, stored)
    stored[0].add_(1)
    with pytest.raises(RuntimeError, match=r"site joint.0 cached at step 4 was modified in place"):
        cache.check(cache.last("joint", SITE), SITE)


def test_half_precision_storage_halves_the_bytes_and_comes_back_in_the_old_dtype():
    cache = ReuseCache(packing=Packing(torch.bfloat16))
    cache.put("joint", SITE, 0, value(1.5))
    assert cache.num_bytes == 8
    back = cache.last("joint", SITE).value[0]
    assert back.dtype == torch.float32
    assert back.mean() == 1.5


def test_a_half_run_alone_reads_its_part_of_the_joint_batch():
    cache = ReuseCache(halves={"uncond": (0, 2), "cond": (1, 2)})
    cache.put("joint", SITE, 1, (torch.cat([value(1.0)[0], value(2.0)[0]]),))
    assert cache.last("uncond", SITE).value[0].mean() == 1.0
    assert cache.last("cond", SITE).value[0].mean() == 2.0
    cache.put("cond", SITE, 2, value(7.0))
    assert cache.last("cond", SITE).value[0].mean() == 7.0
    assert cache.last("uncond", SITE).step == 1


def test_values_and_kept_tensors_are_counted_at_the_fullest_per_branch():
    cache = ReuseCache(depth=2)
    for step in range(3):
        cache.put("cond", SITE, step, value(1.0))
    cache.put("cond", OTHER, 0, value(1.0))
    cache.keep("cond", "signal", 0, (*value(1.0), *value(2.0)))
    cache.keep("cond", "signal", 1, (*value(1.0), *value(2.0)))
    cache.put("uncond", SITE, 0, value(1.0))
    assert cache.peak_counts() == {"cond": (3, 2), "uncond": (1, 0)}
    cache.drop("cond")
    cache.put("cond", SITE, 4, value(1.0))
    cache.clear()
    assert cache.peak_counts() == {"cond": (3, 2), "uncond": (1, 0)}
