"""BlockDance: in the middle of the video, every second step starts from the stored output of an early block."""

from __future__ import annotations

from dataclasses import dataclass

from fsframework.core import DISCARD, POLICIES, RECOMPUTE, REUSE, Call, Decision, Reuse, ReusePolicy, Run, Site
from fsframework.core.schedule import check_every, count_of, most_kept, plan


@dataclass
class DanceState:
    """One video and branch."""

    last: Site
    """The last of the leading blocks that are passed over; the only one whose output is kept."""
    decisions: list[Decision]
    """Per step, what to do with them: to keep or to discard the output of the last, or to pass them over."""


@POLICIES.register("blockdance")
@dataclass(frozen=True)
class BlockDance(ReusePolicy[DanceState]):
    """BlockDance (arXiv:2503.15927): the features of shallow blocks are stable once the structure of the video is there.

    Inside the window [a, e) of steps, a = `window_start` and e = `window_stop`, steps come in groups of N = `interval`: the
    first of a group, (s - a) mod N = 0, is full and the output of block i is stored; the others start from it and run the
    blocks after i only. Outside the window everything runs. All token streams are stored and restored together.

    Granularity: prefix of blocks, in execution order (s0 t0 s1 t1 ... where spatial and temporal blocks take turns). Caches
    one hidden state. Host reads: none. `ForesightRelease` is the same jump with i chosen at every step.
    """

    paper = "BlockDance, arXiv:2503.15927 (CVPR 2025)"
    signal = "the step's number"
    deviations = (
        "The authors' code is not public; the window, N = 2 and i = 20 of 28 blocks are from a third-party port. "
        "BlockDance-Ada, whose network picks the steps, is not here."
    )
    never = {"interval": 1}

    interval: int = 2
    """N, steps per group, >= 1. Higher reuses more. 1 never reuses."""
    blocks: float | int = 20 / 28
    """i, how many leading blocks are passed over: a fraction of all blocks (float, above 0, at most 1) or their number (int,
    >= 1). Higher saves more and keeps less of a step's own."""
    window_start: float | int = 0.4
    """The first step of the window: a fraction of the steps (float, 0 to 1) or a step (int)."""
    window_stop: float | int = 0.95
    """The first step after the window: a fraction of the steps (float, 0 to 1) or a step (int)."""

    def __post_init__(self) -> None:
        check_every(self.interval, "interval", "blockdance")
        if self.blocks <= 0 or (isinstance(self.blocks, float) and self.blocks > 1):
            raise ValueError(
                f"blockdance: blocks={self.blocks} must be a fraction of the blocks, above 0.0 and at most 1.0, or their "
                f"number, >= 1"
            )
        for name, value in (("window_start", self.window_start), ("window_stop", self.window_stop)):
            if value < 0 or (isinstance(value, float) and value > 1):
                raise ValueError(
                    f"blockdance: {name}={value} must be a fraction of the steps, 0.0 to 1.0, or a step >= 0"
                )
        if type(self.window_start) is type(self.window_stop) and self.window_start >= self.window_stop:
            raise ValueError(
                f"blockdance: window_start={self.window_start} must be below window_stop={self.window_stop}"
            )

    @property
    def jumps(self) -> bool:
        """A step that is not the first of its group jumps over the leading blocks."""
        return True

    def start(self, run: Run) -> DanceState:
        """Find block i.

        Raises:
            ValueError: the model has fewer blocks, or the window's ends, of which one is a fraction of the steps and the
                other a number, are not in order.
        """
        start, stop = self._window(run)
        if start >= stop and type(self.window_start) is not type(self.window_stop):
            raise ValueError(
                f"blockdance: window_start={self.window_start} is step {start} of {run.num_steps}, which must be below "
                f"window_stop={self.window_stop}, step {stop}"
            )
        total = len(run.sites)
        count = max(count_of(self.blocks, total), 1)
        if count > total:
            raise ValueError(f"blockdance: blocks={self.blocks}, but this model has {total} blocks")
        return DanceState(run.sites[count - 1], plan(self.schedule(run), run.depth))

    def decide(self, state: DanceState, call: Call, site: Site) -> Decision:
        """The first block jumps, if the output of block i is there; that is kept where a later step jumps.

        It is not there after the inputs changed their shapes: then all blocks run, and block i is kept anew.
        """
        decision = state.decisions[call.step.index]
        if decision is REUSE and site.start == 0 and call.history(state.last):
            return Reuse(through=state.last)
        if site != state.last:
            return DISCARD
        return RECOMPUTE if decision is REUSE else decision

    def schedule(self, run: Run) -> list[bool]:
        """Every step outside the window, and the first of each group inside."""
        start, stop = self._window(run)
        return [not start <= s < stop or (s - start) % self.interval == 0 for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """The output of block i (of a forecast, several), if it is ever reused."""
        return most_kept(self.schedule(run), run.depth)

    def _window(self, run: Run) -> tuple[int, int]:
        return count_of(self.window_start, run.num_steps), count_of(self.window_stop, run.num_steps)
