"""Models at their published size: counts a reader can check by hand."""

from pathlib import Path

import pytest

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS
from fsframework.run.sizes import size_of, sizes, table_rows


@pytest.fixture(scope="module")
def cogvideox():
    return size_of(ADAPTERS["cogvideox"](), "cogvideox-2b")


def test_flops_of_a_cogvideox_block_are_those_of_its_matrices_and_attention(cogvideox):
    # 13 latent frames of 30 x 45 patches and 226 text tokens, two guidance halves, 1920 wide.
    assert cogvideox.num_tokens == 13 * 30 * 45
    tokens, width = 13 * 30 * 45 + 226, 1920
    matrices = 2 * tokens * width**2 * (4 + 8)  # q, k, v, out; up and down by four
    attention = 2 * 2 * tokens**2 * width
    modulation = 2 * 2 * 6 * width * 512  # two norms, from the time embedding
    assert cogvideox.flops_per_site == {"joint": 2 * (matrices + attention + modulation)}
    assert cogvideox.num_sites == {"joint": 30}


def test_cache_bytes_are_hidden_states_in_half_precision(cogvideox):
    one = 2 * (13 * 30 * 45 + 226) * 1920 * 2
    assert cogvideox.site_bytes == one
    assert cogvideox.cache_bytes["full"] == 0
    assert cogvideox.cache_bytes["static"] == one
    assert cogvideox.cache_bytes["foresight"] == 30 * one


def test_the_tables_have_a_row_per_model_and_a_row_per_policy_that_caches(cogvideox):
    structure, memory = table_rows([cogvideox])
    assert structure[1][:4] == ("cogvideox-2b", "49 x 480 x 720", "1.69 B", "30 joint")
    assert memory[0] == ("cached by", "cogvideox-2b")
    rows = dict(memory[1:])
    assert "full" not in rows
    assert rows["one site"] == rows["static"] == "130.2 MiB"
    assert rows["easycache"] == "4.3 MiB"  # predictions: 2 x 13 x 16 x 60 x 90 numbers
    assert rows["lemica"] == "130.2 MiB"  # needs a calibration; the number of values does not depend on it
    assert rows["fora"] == "7.63 GiB"  # attention and MLP of 30 blocks, of both streams


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="no full-size structure is known for 'late-1'.*latte-1"):
        list(sizes(["late-1"]))


@pytest.mark.slow
def test_the_documented_table_is_what_is_counted():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text()
    for table in table_rows(list(sizes())):
        for row in table[1:]:
            assert f"| {' | '.join(row)} |" in page
