"""Names of sites in a report."""

from fsframework.run.report_trace import _part, short_names


def test_names_are_short_where_kinds_differ_in_their_first_letter():
    assert short_names(["spatial.3", "temporal.3.mlp", "span.0-4", "trunk"]) == ["s3", "t3.mlp", "span.0-4", "trunk"]
    assert short_names(["spatial.0", "single.0"]) == ["spatial.0", "single.0"]


def test_a_second_denoisers_sites_are_told_apart_and_keep_their_part():
    names = ["joint.3", "transformer_2.joint.3", "transformer_2.joint.3.mlp", "transformer_2.trunk"]
    assert short_names(names) == ["j3", "2:j3", "2:j3.mlp", "2:trunk"]
    assert [_part(name) for name in names] == ["block", "block", "mlp", "trunk"]
    assert [_part(name) for name in ("model", "span.0-4", "transformer_2.span.0-4", "spatial.1.attention")] == [
        "model", "span", "span", "attention",
    ]  # fmt: skip
