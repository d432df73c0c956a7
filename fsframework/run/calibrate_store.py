"""What is on disk while and after a calibration: a file per record, and the reference's latents until all is done.

A record is looked up by what decides it, so a calibration goes on after any stop, and one with more prompts, or with
another value of an option that only the fit reads, takes over what is there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsframework.data.prompts import Clip
from fsframework.data.video import load_frames, save_frames
from fsframework.run.artifacts import Busy, digest, make_folder, only_one, to_json, write_text

if TYPE_CHECKING:
    from torch import Tensor


class Records:
    """The records below `folder`, whose name must stand for everything that decides them but rollout and clip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._latents = folder / "reference_latents"

    @contextlib.contextmanager
    def opened(self, key: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder, with `key.json`, drop half-written files of an earlier process, and keep others out meanwhile.

        Raises:
            ValueError: it can not be written to, or another calibration is writing there.
        """
        try:
            make_folder(self.folder.parents[1])  # the artifact's
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(
                f"can not write beside the artifact, to {self.folder}: {error.strerror or error}. Choose another place "
                f"with output.artifact=FILE.json."
            ) from None
        with _alone_in(self.folder):
            for leftover in self.folder.rglob(".*.tmp*"):
                leftover.unlink(missing_ok=True)
            write_text(self.folder / "key.json", to_json(key, indent=2) + "\n")
            yield

    def path(self, rollout: str, clip: Clip) -> Path:
        """The file of one record."""
        return self.folder / f"{_slug(rollout)}-{_clip_name(clip)}-{digest([rollout, clip.prompt, clip.seed], 8)}.json"

    def load(self, rollout: str, clip: Clip) -> dict[str, Any] | None:
        """A record; None if it is not there or its file is damaged (it is then made again)."""
        try:
            record: Any = json.loads(self.path(rollout, clip).read_text(encoding="utf-8"))["record"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if isinstance(record, dict) else None

    def save(self, rollout: str, clip: Clip, record: Mapping[str, Any]) -> None:
        """Keep a record.

        Raises:
            ValueError: JSON can not hold it.
        """
        content = {"rollout": rollout, "prompt": clip.prompt, "seed": clip.seed, "record": dict(record)}
        try:
            text = json.dumps(content)  # NaN and Infinity stay what they are: the fit is to see them
        except (TypeError, ValueError) as error:
            raise ValueError(f"the record of the rollout {rollout!r} is not JSON: {error}") from None
        write_text(self.path(rollout, clip), text + "\n")

    def load_latents(self, clip: Clip) -> Tensor | None:
        """The reference's final latents; None if they are not there or damaged."""
        path = self._latents_path(clip)
        if not path.is_file():
            return None
        try:
            return load_frames(path)[0]
        except ValueError:
            return None

    def save_latents(self, clip: Clip, latents: Tensor) -> None:
        """Keep the reference's final latents for the rollouts to come."""
        save_frames(self._latents_path(clip), latents)

    def drop_latents(self) -> None:
        """They are needed no more."""
        shutil.rmtree(self._latents, ignore_errors=True)

    def _latents_path(self, clip: Clip) -> Path:
        return self._latents / f"{_clip_name(clip)}-{digest([clip.prompt, clip.seed], 8)}.safetensors"


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same folder.

    Raises:
        ValueError: one is.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(folder))
        except Busy:
            raise ValueError(
                f"another calibration is writing its records to {folder}; wait for it, then the same command takes them over"
            ) from None
        yield


def _slug(text: str, length: int = 40) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "x"


def _clip_name(clip: Clip) -> str:
    return f"{_slug(clip.prompt, 24)}-seed{clip.seed}"
