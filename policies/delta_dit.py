"""Delta-DiT: the change that a span of blocks makes, reused; rear blocks early in the video, front blocks late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsframework.core import DISCARD, POLICIES, RECOMPUTE, Call, Decision, Part, ReusePolicy, Run, Site
from fsframework.core.schedule import check_every, count_of, plan


@dataclass
class DeltaState:
    """One video and branch."""

    decisions: tuple[list[Decision], list[Decision]]
    """What to do with the front and with the rear span at each step."""


@POLICIES.register("delta_dit")
@dataclass(frozen=True)
class DeltaDiT(ReusePolicy[DeltaState]):
    """Delta-DiT (arXiv:2406.01125): not a span's output is reused but its change, y = x + (y_old - x_old).

    With N = `interval`, every step with s mod N = 0 is full. At the others one span of Nc = `num_blocks` blocks is reused
    and all other blocks run: for s < b the *rear* span (the front blocks, which draw the outline, stay fresh), from
    s = b = `boundary` on the *front* span. The change is that of all token streams together.

    Granularity: span of blocks, counted in execution order (s0 t0 s1 t1 ... where spatial and temporal blocks take turns).
    Caches one residual per span that is ever reused: 2 hidden states, 1 where b leaves only one span. A full step captures
    what a later step before the next full one needs: around b that is both spans. Host reads: none.
    """

    paper = "Delta-DiT, arXiv:2406.01125"
    signal = "the step's number"
    deviations = (
        "No code was released and the paper was read second-hand; (interval, boundary, num_blocks) are to be swept, the "
        "defaults are not the authors'. The two spans may not overlap, so num_blocks is at most half the depth."
    )
    parts = frozenset({Part.SPAN})
    never = {"interval": 1}
    storage = "residual"

    interval: int = 2
    """N, steps per cycle, >= 1: one full step in so many. Higher reuses more. 1 never reuses."""
    boundary: float | int = 0.5
    """b, the first step at which the front span is reused in place of the rear one: a fraction of the steps (float, 0 to
    1) or a step (int). 0 reuses the front only, 1.0 the rear only."""
    num_blocks: float | int = 0.25
    """Nc, blocks in a span: a fraction of all blocks (float, above 0, at most 0.5) or their number (int, >= 1)."""

    def __post_init__(self) -> None:
        check_every(self.interval, "interval", "delta_dit")
        if self.boundary < 0 or (isinstance(self.boundary, float) and self.boundary > 1):
            raise ValueError(
                f"delta_dit: boundary={self.boundary} must be a fraction of the steps, 0.0 to 1.0, or a step >= 0"
            )
        if self.num_blocks <= 0 or (isinstance(self.num_blocks, float) and self.num_blocks > 0.5):
            raise ValueError(
                f"delta_dit: num_blocks={self.num_blocks} must be a fraction of the blocks, above 0.0 and at most 0.5, or "
                f"their number, >= 1"
            )

    def spans(self, num_blocks: int) -> Sequence[tuple[int, int]]:
        """The front and the rear span."""
        asked = self.num_blocks
        length = max(count_of(asked, num_blocks), 1)
        length = min(length, num_blocks // 2) if isinstance(asked, float) else length  # 0.5 of 5 rounds to 3
        if not 1 <= length <= num_blocks // 2:
            raise ValueError(
                f"delta_dit: spans of num_blocks={asked} blocks at the front and at the rear overlap in a model of "
                f"{num_blocks} blocks; at most {num_blocks // 2}"
            )
        return ((0, length), (num_blocks - length, num_blocks))

    def start(self, run: Run) -> DeltaState:
        """Work out all decisions."""
        return DeltaState((self._plan(_FRONT, run), self._plan(_REAR, run)))

    def decide(self, state: DeltaState, call: Call, site: Site) -> Decision:
        """By the plan; the front span is the one that begins the model."""
        return state.decisions[_FRONT if site.start == 0 else _REAR][call.step.index]

    def schedule(self, run: Run) -> list[bool]:
        """The full steps."""
        return [s % self.interval == 0 for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """One residual (of a forecast, several) per span that is reused at some step; of spans that no full step captures
        both, only one at a time."""
        plans = [self._plan(span, run) for span in (_FRONT, _REAR)]
        if run.depth == 1:
            return max(step.count(RECOMPUTE) for step in zip(*plans))
        return sum(min(plan.count(RECOMPUTE), run.depth) for plan in plans)

    def _plan(self, span: int, run: Run) -> list[Decision]:
        """What to do with a span at each step. Only full steps capture it, not those that reuse the other span."""
        reused = self._reused_span(run)
        decisions: list[Decision] = [DISCARD] * run.num_steps
        steps = [s for s, now in enumerate(reused) if now in (None, span)]
        for s, decision in zip(steps, plan([reused[s] is None for s in steps], run.depth)):
            decisions[s] = decision
        return decisions

    def _reused_span(self, run: Run) -> list[int | None]:
        """Per step, which span is reused; None at full steps."""
        asked = self.boundary
        boundary = count_of(asked, run.num_steps)
        return [None if s % self.interval == 0 else _REAR if s < boundary else _FRONT for s in range(run.num_steps)]


_FRONT, _REAR = 0, 1
