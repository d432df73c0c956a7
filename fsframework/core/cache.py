"""`ReuseCache`: what each site gave last, per guidance branch, and how many bytes that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsframework.core.site import Branch, Site, State


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached value. `step` is the step it was computed at; `value` an output or a residual, as the policy stores."""

    step: int
    value: State
    versions: tuple[int, ...] = ()
    """In-place counters of the tensors at capture, to notice a model that writes into its own block outputs."""
    num_bytes: int = 0
    """Bytes of all streams."""


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def versions(value: State) -> tuple[int, ...]:
    """The in-place counters of tensors; -1 where there is none."""
    return tuple([_version(t) for t in value])


class ReuseCache:
    """Entries per (branch, site), oldest to newest, at most `depth` each (or `depths[site]`). Holds references.

    `dtype` stores in another precision, `device` elsewhere (say the CPU); both are undone on reading. `halves` maps a
    branch to (index, count) of its part of a joint batch, so that a branch run alone can read what the batch stored.
    """

    def __init__(
        self,
        depth: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        halves: dict[str, tuple[int, int]] | None = None,
        depths: dict[Site, int] | None = None,
    ) -> None:
        self.depth = depth
        self._depths = depths or {}
        self.num_bytes = 0
        self.peak_bytes = 0
        self._dtype = dtype
        self._device = device
        self._halves = halves or {}
        self._entries: dict[tuple[str, Site], list[Entry]] = {}
        self._plain = dtype is None and device is None
        self._like: dict[tuple[str, Site], tuple[tuple[torch.dtype, torch.device], ...]] = {}
        self._kept: dict[tuple[str, str], tuple[Entry, tuple[tuple[torch.dtype, torch.device], ...]]] = {}
        """Policies' own tensors, each with the dtypes and devices they came with."""
        self._peaks: dict[str, tuple[int, int]] = {}
        """By branch, the most values and kept tensors of what was dropped since."""

    def put(self, branch: str, site: Site, step: int, value: State) -> None:
        """Store `value`, dropping the oldest entry beyond `depth`."""
        key = (branch, site)
        if not self._plain:
            self._like[key] = tuple((t.dtype, t.device) for t in value)
            value = tuple(t.to(dtype=self._dtype, device=self._device, non_blocking=True) for t in value)
        entry = Entry(step, value, versions(value), sum([t.nbytes for t in value]))
        entries = self._entries.get(key)
        if entries is None:
            entries = self._entries[key] = []
        entries.append(entry)
        self.num_bytes += entry.num_bytes
        if len(entries) > self._depths.get(site, self.depth):
            self.num_bytes -= entries.pop(0).num_bytes
        if self.num_bytes > self.peak_bytes:
            self.peak_bytes = self.num_bytes

    def keep(self, branch: str, name: str, step: int, value: State) -> None:
        """Store a policy's own tensors under a name, in place of what was there."""
        key = (branch, name)
        old = self._kept.pop(key, None)
        if old is not None:
            self.num_bytes -= old[0].num_bytes
        like = tuple((t.dtype, t.device) for t in value)
        if not self._plain:
            value = tuple(
                t.to(dtype=self._dtype if t.is_floating_point() else None, device=self._device, non_blocking=True)
                for t in value
            )
        self._kept[key] = (Entry(step, value, versions(value), sum([t.nbytes for t in value])), like)
        self.num_bytes += self._kept[key][0].num_bytes
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    def kept(self, branch: str, name: str) -> State | None:
        """What was kept under a name; a branch that is half of a joint batch gets its half of what the batch kept."""
        found = self._kept.get((branch, name))
        if found is None and branch in self._halves and (found := self._kept.get((Branch.JOINT, name))):
            index, count = self._halves[branch]
            found = (Entry(found[0].step, tuple(t.chunk(count)[index] for t in found[0].value)), found[1])
        if found is None:
            return None
        entry, like = found
        if entry.versions and versions(entry.value) != entry.versions:
            raise RuntimeError(
                f"what was kept as {name!r} at step {entry.step} was modified in place afterwards, so it tells nothing any "
                f"more. The model or the sampling loop writes into it; the policy must keep a clone."
            )
        return tuple(t.to(dtype=d, device=v, non_blocking=True) for t, (d, v) in zip(entry.value, like))

    def history(self, branch: str, site: Site) -> Sequence[Entry]:
        """Entries of a site, oldest to newest.

        A branch that is half of a joint batch also sees the joint entries, cut to its half.
        """
        entries: Sequence[Entry] = self._entries.get((branch, site), ())
        if branch in self._halves and (joint := self._entries.get((Branch.JOINT, site))):
            index, count = self._halves[branch]
            cut = [Entry(e.step, tuple(t.chunk(count)[index] for t in e.value)) for e in joint]
            entries = sorted([*entries, *cut], key=lambda e: e.step)[-self._depths.get(site, self.depth) :]
        if self._plain or not entries:
            return entries
        like = self._like.get((branch, site)) or self._like[(Branch.JOINT, site)]
        return [
            Entry(e.step, tuple(t.to(dtype=d, device=v, non_blocking=True) for t, (d, v) in zip(e.value, like)))
            for e in entries
        ]

    def last(self, branch: str, site: Site) -> Entry | None:
        """The newest entry, or None."""
        if self._plain and branch not in self._halves:
            entries = self._entries.get((branch, site))
            return entries[-1] if entries else None
        history = self.history(branch, site)
        return history[-1] if history else None

    def check(self, entry: Entry, site: Site) -> None:
        """Raise if a cached tensor was written to after it was captured: reusing it would give wrong results."""
        for tensor, version in zip(entry.value, entry.versions):
            if version != -1 and tensor._version != version:
                raise RuntimeError(
                    f"the output of site {site} cached at step {entry.step} was modified in place afterwards, so it can "
                    f"not be reused. The model or a callback writes into a block's output; clone it there."
                )

    def peak_counts(self) -> dict[str, tuple[int, int]]:
        """By branch, the most site values held at once, and the most tensors that its policy kept.

        Nothing leaves before `drop` or `clear`, so what is held then is the most there was: counting costs nothing.
        """
        values, tensors = Counter(branch for (branch, _), e in self._entries.items() for _ in e), Counter[str]()
        for (branch, _), (entry, _) in self._kept.items():
            tensors[branch] += len(entry.value)
        peaks = dict(self._peaks)
        for branch in {*values, *tensors}:
            before = peaks.get(branch, (0, 0))
            peaks[branch] = max(before[0], values[branch]), max(before[1], tensors[branch])
        return peaks

    def drop(self, branch: str) -> None:
        """Forget what a branch has stored."""
        self._peaks = self.peak_counts()
        for key in [key for key in self._entries if key[0] == branch]:
            self.num_bytes -= sum(entry.num_bytes for entry in self._entries.pop(key))
            self._like.pop(key, None)
        for name in [key for key in self._kept if key[0] == branch]:
            self.num_bytes -= self._kept.pop(name)[0].num_bytes

    def clear(self) -> None:
        """Drop everything; `peak_bytes` and `peak_counts` stay."""
        self._peaks = self.peak_counts()
        self._entries.clear()
        self._like.clear()
        self._kept.clear()
        self.num_bytes = 0
