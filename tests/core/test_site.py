import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from counting import counted

from fsframework.core import Kind, Part, Site


def test_a_site_is_called_by_its_index_in_its_own_list_not_by_execution_order():
    temporal_1 = Site(Part.BLOCK, Kind.TEMPORAL, 3, 4, ordinal=1)
    assert temporal_1.name == "temporal.1"
    assert Site(Part.MLP, Kind.TEMPORAL, 3, 4, ordinal=1).name == "temporal.1.mlp"
    assert Site(Part.SPAN, Kind.MIXED, 0, 12).name == "span.0-12"
    assert Site(Part.TRUNK, Kind.MIXED, 0, 16).name == "trunk"


def test_equal_sites_are_one_object_and_one_dictionary_key():
    site, again = (Site(Part.BLOCK, Kind.JOINT, 2, 3, 2) for _ in range(2))
    assert site is again
    assert {site: 1}[again] == 1
    assert Site("block", "joint", start=2, stop=3, ordinal=2) is site
    assert Site("block", "joint", 7, 8).part is Part.BLOCK


@pytest.mark.parametrize(
    "change",
    [{"part": Part.MLP}, {"kind": Kind.SPATIAL}, {"start": 1}, {"stop": 4}, {"ordinal": 1}, {"denoiser": "second"}],
    ids=lambda change: next(iter(change)),
)
def test_sites_that_differ_in_anything_are_different_keys(change):
    site = Site(Part.BLOCK, Kind.JOINT, 2, 3, 2)
    other = dataclasses.replace(site, **change)
    assert other != site
    assert len({site, other}) == 2
    assert getattr(other, next(iter(change))) == next(iter(change.values()))


def test_a_copied_or_pickled_site_is_the_same_one():
    site = Site(Part.MLP, Kind.TEMPORAL, 3, 4, 1, "second")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(site, protocol)) is site
    assert copy.copy(site) is copy.deepcopy(site) is site
    assert copy.deepcopy({site: [1]}) == {site: [1]}
    assert dataclasses.replace(site) is site


def test_a_site_pickled_in_one_process_is_equal_to_one_made_in_another():
    program = (
        "import pickle, sys\nfrom fsframework.core import Kind, Part, Site\n"
        "found = pickle.load(sys.stdin.buffer)\nassert found == {Site(Part.BLOCK, Kind.JOINT, 2, 3, 2): 'here'}, found"
    )
    content = pickle.dumps({Site(Part.BLOCK, Kind.JOINT, 2, 3, 2): "here"})
    subprocess.run([sys.executable, "-c", program], input=content, check=True)


def test_sites_made_in_many_threads_at_once_are_the_same():
    for start in range(20):
        barrier = threading.Barrier(8)

        def made(_, start=start, barrier=barrier):
            barrier.wait()
            return Site(Part.BLOCK, Kind.SINGLE, start, start + 1, denoiser="threads")

        with ThreadPoolExecutor(8) as pool:
            assert len({id(site) for site in list(pool.map(made, range(8)))}) == 1


def test_a_site_is_frozen_and_forgotten_with_its_last_user():
    site = Site(Part.BLOCK, Kind.CONTROL, 90, 91)
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.start = 3
    forgotten = weakref.ref(site)
    del site
    assert forgotten() is None


def test_hashing_and_comparing_a_site_calls_no_python():
    site, other = Site(Part.BLOCK, Kind.JOINT, 2, 3, 2), Site(Part.BLOCK, Kind.JOINT, 3, 4, 3)
    with counted() as counts:
        assert {site: 1, ("joint", site): 2}[site] == 1
        assert other not in {site}
    assert counts.calls == {}


def test_a_part_or_kind_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="'blok' is not a valid Part"):
        Site("blok", Kind.JOINT, 2, 3)


def test_an_empty_site_is_an_error():
    with pytest.raises(ValueError, match=r"4\.\.4"):
        Site(Part.BLOCK, Kind.JOINT, 4, 4)
