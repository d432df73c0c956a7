"""`ReuseCache`: what each site gave last, per guidance branch, and how many bytes that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsframework.core.packing import Packed, Packing
from fsframework.core.site import Branch, Site, State

if TYPE_CHECKING:
    from fsframework.core.lifetime import Lifetime


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached value. `step` is the step it was computed at; `value` an output or a residual, as the policy stores."""

    step: int
    value: State
    versions: tuple[int, ...] = ()
    """In-place counters of the tensors at capture, to notice a model that writes into its own block outputs."""
    num_bytes: int = 0
    """Bytes of all streams, as they are kept."""
    packed: Packed | None = None
    """In the cache itself: the value as it is kept, where that is not as it came. `value` is empty then."""


def versions(value: State) -> tuple[int, ...]:
    """The in-place counters of tensors; -1 where there is none."""
    return tuple([-1 if t.is_inference() else t._version for t in value])


class ReuseCache:
    """Entries per (branch, site), oldest to newest, at most `depth` each (or `depths[site]`).

    Holds references, unless `packing` keeps values in another precision or place; that is undone on reading. A value in
    another place is brought back a site ahead: while one is read, the one that was read after it last time is fetched. At
    most two are back at once, which `num_bytes` does not count.

    `halves` maps a branch to (index, count) of its part of a joint batch, so that a branch run alone can read what the
    batch stored.
    """

    def __init__(
        self,
        depth: int = 1,
        packing: Packing | None = None,
        halves: dict[str, tuple[int, int]] | None = None,
        depths: dict[Site, int] | None = None,
    ) -> None:
        self.depth = depth
        self._depths = depths or {}
        self.num_bytes = 0
        self.step_peak_bytes = 0
        """The most bytes held at once in the step so far, from its first `begin_step` on."""
        self._earlier_peak_bytes = 0
        self._step = -1
        self._packing = packing if packing is not None and not packing.is_plain else None
        self._halves = halves or {}
        self._is_direct = self._packing is None and not self._halves
        """Entries are read as they are."""
        self._entries: dict[tuple[str, Site], list[Entry]] = {}
        self._kept: dict[tuple[str, str], Entry] = {}
        """Policies' own tensors."""
        self._peaks: dict[str, tuple[int, int]] = {}
        """By branch, the most values and kept tensors of what was dropped since."""
        self._unread: dict[str, frozenset[Site]] = {}
        """By branch, sites of which nothing computed in this step will be read: it is not stored."""
        self._reading: tuple[str, Site] | None = None
        """What was read last."""
        self._next: dict[tuple[str, Site], tuple[str, Site]] = {}
        """What was read after it."""

    def begin_step(self, branch: str, step: int, lifetime: Lifetime) -> None:
        """A forward begins: drop what can not be read from this step on, and find out what need not be stored in it."""
        dead = lifetime.unread_after(step - 1)
        if dead:
            self._drop_entries([key for key in self._entries if key[0] == branch and key[1] in dead])
        self._unread[branch] = lifetime.unread_after(step)
        if step != self._step:
            self._earlier_peak_bytes = self.peak_bytes
            self.step_peak_bytes = self.num_bytes
            self._step = step

    @property
    def peak_bytes(self) -> int:
        """The most bytes held at once so far."""
        return max(self._earlier_peak_bytes, self.step_peak_bytes)

    def put(self, branch: str, site: Site, step: int, value: State) -> None:
        """Store `value`, dropping the oldest entry beyond `depth`."""
        if site in self._unread.get(branch, ()):
            return
        key = (branch, site)
        entry = self._entry(step, value)
        entries = self._entries.get(key)
        if entries is None:
            entries = self._entries[key] = []
        entries.append(entry)
        self.num_bytes += entry.num_bytes
        if len(entries) > self._depths.get(site, self.depth):
            self.num_bytes -= entries.pop(0).num_bytes
        if self.num_bytes > self.step_peak_bytes:
            self.step_peak_bytes = self.num_bytes

    def keep(self, branch: str, name: str, step: int, value: State) -> None:
        """Store a policy's own tensors under a name, in place of what was there."""
        key = (branch, name)
        old = self._kept.pop(key, None)
        if old is not None:
            self.num_bytes -= old.num_bytes
        entry = self._kept[key] = self._entry(step, value)
        self.num_bytes += entry.num_bytes
        self.step_peak_bytes = max(self.step_peak_bytes, self.num_bytes)

    def kept(self, branch: str, name: str) -> State | None:
        """What was kept under a name; a branch that is half of a joint batch gets its half of what the batch kept."""
        found = self._kept.get((branch, name))
        if found is not None:
            entry = self._read(found)
        elif branch in self._halves and (found := self._kept.get((Branch.JOINT, name))):
            entry = self._half(branch, self._read(found))
        else:
            return None
        if entry.versions and versions(entry.value) != entry.versions:
            raise RuntimeError(
                f"what was kept as {name!r} at step {entry.step} was modified in place afterwards, so it tells nothing any "
                f"more. The model or the sampling loop writes into it; the policy must keep a clone."
            )
        if found.packed is not None and self._packing is not None:
            self._packing.release(found.packed)
        return entry.value

    def step_of(self, branch: str, site: Site) -> int | None:
        """The step at which the newest entry of a site was computed, or None. The value is not read."""
        entries = self._entries.get((branch, site), [])
        joint = self._entries.get((Branch.JOINT, site), []) if branch in self._halves else []
        return max((e.step for e in (*entries, *joint)), default=None)

    def history(self, branch: str, site: Site) -> Sequence[Entry]:
        """Entries of a site, oldest to newest.

        A branch that is half of a joint batch also sees the joint entries, cut to its half.
        """
        entries: Sequence[Entry] = self._entries.get((branch, site), ())
        if self._packing is not None and entries:
            self._fetch_ahead((branch, site))
            entries = [self._read(e) for e in entries]
        if branch in self._halves and (joint := self._entries.get((Branch.JOINT, site))):
            if self._packing is not None:
                self._fetch_ahead((Branch.JOINT, site))
            cut = [self._half(branch, self._read(e)) for e in joint]
            entries = sorted([*entries, *cut], key=lambda e: e.step)[-self._depths.get(site, self.depth) :]
        return entries

    def last(self, branch: str, site: Site) -> Entry | None:
        """The newest entry, or None. Raises if it was written to."""
        entries: Sequence[Entry] | None = (
            self._entries.get((branch, site)) if self._is_direct else self.history(branch, site)
        )
        if not entries:
            return None
        entry = entries[-1]
        for tensor, version in zip(entry.value, entry.versions):  # as `check`
            if version != -1 and tensor._version != version:
                self.check(entry, site)
        return entry

    def _entry(self, step: int, value: State) -> Entry:
        if self._packing is None:
            return Entry(step, value, versions(value), sum([t.nbytes for t in value]))
        packed = self._packing.pack(value)
        return Entry(step, (), versions(packed.tensors), packed.num_bytes, packed)

    def _read(self, entry: Entry) -> Entry:
        """An entry as it was put in."""
        if entry.packed is None:
            return entry
        assert self._packing is not None
        value = self._packing.unpack(entry.packed)
        same = all(given is kept for given, kept in zip(value, entry.packed.tensors))
        return Entry(entry.step, value, entry.versions if same else (), entry.num_bytes)

    def _half(self, branch: str, entry: Entry) -> Entry:
        index, count = self._halves[branch]
        return Entry(entry.step, tuple([t.chunk(count)[index] for t in entry.value]))

    def _fetch_ahead(self, key: tuple[str, Site]) -> None:
        """`key` is being read. Give up what was fetched for the one before it, and fetch what comes next."""
        before = self._reading
        if before == key:
            return
        assert self._packing is not None
        if before is not None:
            self._next[before] = key
            for entry in self._entries.get(before, ()):
                assert entry.packed is not None
                self._packing.release(entry.packed)
        self._reading = key
        for wanted in (key, self._next.get(key, key)):
            for entry in self._entries.get(wanted, ()):
                assert entry.packed is not None
                self._packing.prefetch(entry.packed)

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

        What leaves is counted when it does, so that storing costs nothing.
        """
        values, tensors = Counter(branch for (branch, _), e in self._entries.items() for _ in e), Counter[str]()
        for (branch, _), entry in self._kept.items():
            tensors[branch] += len(entry.value if entry.packed is None else entry.packed.tensors)
        peaks = dict(self._peaks)
        for branch in {*values, *tensors}:
            before = peaks.get(branch, (0, 0))
            peaks[branch] = max(before[0], values[branch]), max(before[1], tensors[branch])
        return peaks

    def drop(self, branch: str) -> None:
        """Forget what a branch has stored."""
        self._drop_entries([key for key in self._entries if key[0] == branch])
        for name in [key for key in self._kept if key[0] == branch]:
            self.num_bytes -= self._kept.pop(name).num_bytes

    def _drop_entries(self, gone: Sequence[tuple[str, Site]]) -> None:
        if gone or self._kept:
            self._peaks = self.peak_counts()
        for key in gone:
            self.num_bytes -= sum([entry.num_bytes for entry in self._entries.pop(key)])

    def clear(self) -> None:
        """Drop everything; `peak_bytes` and `peak_counts` stay."""
        self._peaks = self.peak_counts()
        self._entries.clear()
        self._kept.clear()
        self._unread.clear()
        self._reading = None
        self.num_bytes = 0
