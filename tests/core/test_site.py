import pytest

from fsframework.core import Kind, Part, Site


def test_a_site_is_called_by_its_index_in_its_own_list_not_by_execution_order():
    temporal_1 = Site(Part.BLOCK, Kind.TEMPORAL, 3, 4, ordinal=1)
    assert temporal_1.name == "temporal.1"
    assert Site(Part.MLP, Kind.TEMPORAL, 3, 4, ordinal=1).name == "temporal.1.mlp"
    assert Site(Part.SPAN, Kind.MIXED, 0, 12).name == "span.0-12"
    assert Site(Part.TRUNK, Kind.MIXED, 0, 16).name == "trunk"


def test_equal_sites_are_one_dictionary_key():
    assert {Site(Part.BLOCK, Kind.JOINT, 2, 3, 2): 1}[Site(Part.BLOCK, Kind.JOINT, 2, 3, 2)] == 1
    assert Site(Part.BLOCK, Kind.JOINT, 2, 3, 2) != Site(Part.MLP, Kind.JOINT, 2, 3, 2)


def test_an_empty_site_is_an_error():
    with pytest.raises(ValueError, match=r"4\.\.4"):
        Site(Part.BLOCK, Kind.JOINT, 4, 4)
