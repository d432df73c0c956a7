"""The run directory: its name, its files, and how they come to be complete or absent.

`videos.jsonl` is the truth: one line per finished video, appended when everything else of that video is on disk. A run
that was stopped in any way goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.data.video import atomic_path

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunDirectory:
    """Where one run's files are. Making the object writes nothing; `create` does."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config; `fsf run` on it repeats the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Git revision, versions, device, command, times."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """The run in numbers; present only when all videos are."""
        return self.path / "metrics.json"

    @property
    def is_finished(self) -> bool:
        """Whether metrics.json is there and whole; a damaged one is made again from the records."""
        try:
            json.loads(self.metrics.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True

    @property
    def trace(self) -> Path:
        """One row per visit of every video."""
        return self.path / "trace.parquet"

    @property
    def videos(self) -> Path:
        """The mp4 files."""
        return self.path / "videos"

    @property
    def records(self) -> Path:
        """videos.jsonl."""
        return self.path / "videos.jsonl"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    def trace_part(self, index: int) -> Path:
        """Rows of one video, until all are joined."""
        return self.path / "trace.parts" / f"{index:04d}.parquet"

    def video_file(self, index: int, prompt: str, reference: bool = False) -> str:
        """`videos/0003-digit-6-is-moving.mp4`, relative to the run directory."""
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
        return f"videos/{index:04d}-{slug}{'-reference' if reference else ''}.mp4"

    def create(self) -> None:
        """Make the directory and drop half-written files of an earlier process.

        Raises:
            ValueError: it can not be written to.
        """
        try:
            self.videos.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(
                f"can not write to the run directory {self.path}: {error.strerror or error}. "
                f"Choose another with output.runs_dir=FOLDER."
            ) from None
        for leftover in self.path.rglob(".*.tmp*"):
            leftover.unlink(missing_ok=True)

    def append_record(self, record: Mapping[str, Any], part: int | None = None) -> None:
        """Add one finished video; a single write, so lines of several processes never mix.

        That holds on one machine. Processes on several, to which a network's file system promises no such thing, write
        to files of their own, numbered `part`; `tidy_records` joins them.
        """
        line = (to_json(record) + "\n").encode()
        path = self.records if part is None else self.path / f"videos.{part}.jsonl"
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def read_records(self) -> list[dict[str, Any]]:
        """The finished videos by index. A line cut off by a kill, or whose files are gone, does not count."""
        found: dict[int, dict[str, Any]] = {}
        for line in [line for file in self._record_files() for line in file.read_text().splitlines()]:
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                files = [record["file"], record["reference_file"]]
                whole = self.trace.is_file() or self.trace_part(record["index"]).is_file()
                if whole and all((self.path / file).is_file() for file in files if file):
                    found[record["index"]] = record
        return [found[index] for index in sorted(found)]

    def tidy_records(self) -> list[dict[str, Any]]:
        """`read_records`, after rewriting the file without the lines that do not count."""
        records = self.read_records()
        files = self._record_files()
        if files:
            write_text(self.records, "".join(to_json(record) + "\n" for record in records))
        for part in files:
            if part != self.records:
                part.unlink()
        return records

    def _record_files(self) -> list[Path]:
        """videos.jsonl and those of single processes, as far as they are there."""
        return [*filter(Path.is_file, [self.records]), *sorted(self.path.glob("videos.*.jsonl"))]

    def write_trace_part(self, index: int, rows: pandas.DataFrame) -> None:
        """Store the rows of one video."""
        with atomic_path(self.trace_part(index)) as temporary:
            rows.to_parquet(temporary, index=False)

    def join_traces(self, indices: Iterable[int]) -> None:
        """Make `trace.parquet` of all parts; nothing to do if it is there already.

        A part that an earlier release wrote may lack columns: they are null there.
        """
        if self.trace.is_file():
            return
        import pyarrow
        import pyarrow.parquet as parquet

        parts = [self.trace_part(index) for index in indices]
        schema = pyarrow.unify_schemas([parquet.read_schema(part).remove_metadata() for part in parts])
        with atomic_path(self.trace) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            for part in parts:
                rows = parquet.read_table(part).replace_schema_metadata()
                writer.write_table(pyarrow.concat_tables([schema.empty_table(), rows], promote_options="default"))
        shutil.rmtree(self.path / "trace.parts", ignore_errors=True)


def check_writable(runs_dir: Path) -> None:
    """ValueError if a directory could not be made below `runs_dir`; makes nothing."""
    place = runs_dir.absolute()
    while not place.exists() and place.parent != place:
        place = place.parent
    if not place.is_dir():
        raise ValueError(
            f"can not write runs to {runs_dir}: {place} is a file, not a folder. Choose another with output.runs_dir=FOLDER."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(
            f"can not write runs to {runs_dir}: no permission to write in {place}. Choose another with output.runs_dir=FOLDER."
        )


def digest(value: Any, length: int = 10) -> str:
    """A short hash of anything JSON can hold; equal content gives equal hashes whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or absent."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any, indent: int | None = None) -> str:
    """Valid JSON for any float: NaN becomes null, infinity 1e999, which every reader takes for infinity."""
    text = json.dumps(_encodable(value), indent=indent, default=str)
    return text.replace(f'"{_INFINITY}"', "1e999").replace(f'"-{_INFINITY}"', "-1e999")


_INFINITY = "__infinity__"
"""Stands in for infinity until the text is made."""


def _encodable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return _INFINITY if value > 0 else f"-{_INFINITY}"
    return value


def make_folder(folder: Path) -> None:
    """Make a folder that the user named, with those above it, and say so in one line: a misspelt one is made as well."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"made the folder {folder}", file=sys.stderr)


class Busy(RuntimeError):
    """Another process holds the lock."""


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Inside, no other process on this file system is inside with the same path: a folder, or a file that is made.

    The system lets go when a process dies.

    Raises:
        Busy: one is.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two commands apart
        yield
        return
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(str(path)) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
