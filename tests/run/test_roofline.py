"""The roofline at published size: figures a reader can work out from the data sheet and the shapes."""

from pathlib import Path

import pytest

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS
from fsframework.run.roofline import CARDS, Card, Visit, table_rows, visits
from fsframework.run.sizes import size_of, sizes

ROOFLINE = ("cogvideox-2b", "latte-1", "opensora-1.2", "opensora-1.2-720p", "wan2.1-t2v-1.3b", "hunyuan-video")


@pytest.fixture(scope="module")
def cogvideox():
    return size_of(ADAPTERS["cogvideox"](), "cogvideox-2b")


def test_a_visit_is_flops_over_the_peak_and_bytes_over_the_bandwidth(cogvideox):
    (visit,) = visits(cogvideox, Card("round", flops=1e15, bandwidth=1e12))
    assert visit.num_sites == 30
    assert visit.block == pytest.approx(cogvideox.flops_per_site["joint"] / 0.55e15)
    value = 2 * (13 * 30 * 45 + 226) * 1920 * 2  # bytes: two halves, video and text tokens, 1920 wide, bfloat16
    assert visit.distance == pytest.approx(2 * value / 0.8e12)
    assert visit.eager_distance == pytest.approx(9 * visit.distance)
    assert visit.restore_residual == pytest.approx(3 * value / 0.8e12)


def test_efficiency_is_what_a_block_takes_beside_what_it_saves():
    visit = Visit("toy", "joint", 1, block=100.0, distance=4.0, eager_distance=36.0, restore_residual=6.0)
    assert visit.efficiency(0.5, measured=False) == 1.0  # a stored output is handed on as it is
    assert visit.efficiency(0.5) == pytest.approx(50 / 52)
    assert visit.efficiency(0.5, stride=4) == pytest.approx(50 / 50.5)
    assert visit.efficiency(0.75, residual=True) == pytest.approx(25 / (0.25 * 110 + 0.75 * 6))
    assert visit.efficiency(0.0) == pytest.approx(100 / 104)  # measuring without reusing is a loss


@pytest.mark.parametrize("reuse", [-0.1, 1.0, 1.5])
def test_a_share_that_leaves_nothing_to_divide_by_is_refused(reuse):
    visit = Visit("toy", "joint", 1, block=1.0, distance=0.0, eager_distance=0.0, restore_residual=0.0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        visit.efficiency(reuse)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        visit.efficiency(0.5, stride=0)


def test_a_faster_card_makes_memory_matter_more(cogvideox):
    # Peak over bandwidth: 153 operations per byte on the A100, 295 on the H100.
    old, new = (visits(cogvideox, CARDS[name])[0] for name in ("a100", "h100"))
    assert (new.distance / new.block) / (old.distance / old.block) == pytest.approx((989.4 / 3.35) / (312 / 2.039))


@pytest.mark.slow
def test_the_documented_table_is_what_is_computed():
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "roofline.md").read_text()
    known = list(sizes(ROOFLINE))
    for card in CARDS.values():
        for row in table_rows(known, card)[1:]:
            assert f"| {' | '.join(row)} |" in page
