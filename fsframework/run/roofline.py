"""What deciding and doing reuse costs at published size: an analytical roofline, nothing is run.

Per visit of a block, with V the bytes of its value for all guidance branches (`ModelSize.site_bytes`)::

    block      FLOPs / (COMPUTE_SHARE peak)                       the work that a reuse saves
    distance   2 V / (BANDWIDTH_SHARE bandwidth)                  fused: reads the old and the new value once
    eager      18 V in bfloat16                                   cast, cast, subtract, square, mean as five kernels
    restore    0 for a stored output, 3 V for a residual          read input and residual, write the sum
    decision   host seconds of the engine and the policy          hidden while the device is behind the host

A block's own traffic is left out: at these sizes every block is bound by compute. Peaks and bandwidths are those of the
vendors' data sheets (dense bfloat16); the shares that kernels reach of them are assumptions, written out below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsframework.run.sizes import ModelSize

COMPUTE_SHARE = 0.55
"""Share of the peak that a transformer block reaches: an assumption."""
BANDWIDTH_SHARE = 0.8
"""Share of the memory's bandwidth that a reduction or an addition reaches: an assumption."""
DECISION_SECONDS = 10e-6
"""Host seconds of one visit on a slow core, engine and policy together, trace on: what `fsf bench` measures is less."""
EAGER_PASSES = 18
"""Traffic of an eager distance of 2-byte values in units of V: two casts (1 + 2 each), a difference (4 + 2), a square
(2 + 2), a mean (2)."""


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet."""

    name: str
    flops: float
    """Dense bfloat16 operations per second."""
    bandwidth: float
    """Bytes per second of its memory."""


CARDS = {
    "a100": Card("A100 80 GB SXM", 312e12, 2.039e12),
    "h100": Card("H100 SXM", 989.4e12, 3.35e12),
}
"""Data sheets of NVIDIA: A100 (2021), H100 (2023)."""


@dataclass(frozen=True)
class Visit:
    """Seconds of one visit of a block of one kind, all guidance branches together."""

    model: str
    kind: str
    num_sites: int
    """Blocks of this kind."""
    block: float
    distance: float
    eager_distance: float
    restore_residual: float

    def efficiency(self, reuse: float, *, measured: bool = True, residual: bool = False, stride: int = 1) -> float:
        """Speedup of the blocks / their FLOPs speedup: 1 means that all of the saved compute becomes saved time.

        With r the share of visits reused, a block's time as unit, d, s and c those of distance, residual store and restore::

            (1 - r) / ((1 - r) (1 + d + s) + r c)

        `measured`: each recompute is compared with the cache, of `stride` tokens one. `residual`: outputs minus inputs are
        kept, a pass of 3 V to store and one to restore.

        Raises:
            ValueError: `reuse` outside of [0, 1), or a stride below 1.
        """
        if not 0 <= reuse < 1:
            raise ValueError(f"the share of visits that are reused must lie in [0, 1); got {reuse}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1; got {stride}")
        store = restore = self.restore_residual if residual else 0.0
        recompute = self.block + store + (self.distance / stride if measured else 0.0)
        return (1 - reuse) * self.block / ((1 - reuse) * recompute + reuse * restore)


def visits(size: ModelSize, card: Card) -> list[Visit]:
    """The visits of a model on a card, one per kind of block."""
    bytes_per_second = BANDWIDTH_SHARE * card.bandwidth
    value = size.site_bytes
    return [
        Visit(
            model=size.name,
            kind=kind,
            num_sites=size.num_sites[kind],
            block=flops / (COMPUTE_SHARE * card.flops),
            distance=2 * value / bytes_per_second,
            eager_distance=EAGER_PASSES * value / bytes_per_second,
            restore_residual=3 * value / bytes_per_second,
        )
        for kind, flops in size.flops_per_site.items()
    ]


HEADER = (
    "model",
    "blocks",
    "block ms",
    "distance",
    "eager distance",
    "residual restore",
    "decision",
    "efficiency at half reuse",
    "one token in 4",
    "residuals",
)
NOTE = (
    f"Analytical, not measured: {COMPUTE_SHARE:.0%} of the card's dense bfloat16 peak, {BANDWIDTH_SHARE:.0%} of its bandwidth.\n"
    f"Distance, restore and decision are shares of the block's time; a decision takes {1e6 * DECISION_SECONDS:.0f} us of\n"
    "the host, which the device does not see while it is behind. Efficiency is speedup over FLOPs speedup of the blocks\n"
    "when half of the visits are reused and each recompute is measured by a fused distance."
)


def table_rows(sizes: Sequence[ModelSize], card: Card) -> tuple[tuple[str, ...], ...]:
    """One table with its header, a row per model and kind of block."""
    rows = [HEADER]
    for visit in (v for size in sizes for v in visits(size, card)):
        share = lambda seconds, of=visit.block: f"{100 * seconds / of:.2f} %"
        rows.append(
            (
                visit.model,
                f"{visit.num_sites} {visit.kind}",
                f"{1e3 * visit.block:.3g}",
                share(visit.distance),
                share(visit.eager_distance),
                share(visit.restore_residual),
                share(DECISION_SECONDS),
                f"{visit.efficiency(0.5):.3f}",
                f"{visit.efficiency(0.5, stride=4):.3f}",
                f"{visit.efficiency(0.5, residual=True):.3f}",
            )
        )
    return tuple(rows)
