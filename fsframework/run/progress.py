"""What a person sees while a run goes on: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Counts generations of one process. `quiet` shows nothing but notes (processes other than the first)."""

    def __init__(self, title: str, total: int, done: int, quiet: bool = False) -> None:
        from tqdm import tqdm

        self.notes: list[str] = []
        self._quiet = quiet
        self._title, self._total, self._done = title, total, done
        self._bar: Any = None
        if sys.stderr.isatty() and shutil.get_terminal_size((0, 0)).columns > 0 and not quiet:
            shape = "{desc} {bar:24} {n_fmt}/{total_fmt} videos  {elapsed} gone, {remaining} left{postfix}"
            self._bar = tqdm(total=total, initial=done, desc=title, bar_format=shape, file=sys.stderr, leave=True)

    def stage(self, text: str) -> None:
        """Say what is being worked on."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def advance(self, text: str) -> None:
        """One video is finished."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif not self._quiet:
            print(f"{self._title} {self._done}/{self._total}: {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Something to know about the run; shown once, and kept for metrics.json."""
        if text in self.notes:
            return
        self.notes.append(text)
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(f"note: {text}", file=sys.stderr)
        else:
            print(f"note: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.set_postfix_str("")
            self._bar.close()


@contextmanager
def reuse_warnings_as_notes(progress: Progress) -> Iterator[None]:
    """Inside, every `ReuseWarning` becomes a note, and the libraries' chatter is not shown."""
    from fsframework.core.engine import ReuseWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("always", ReuseWarning)
        show = warnings.showwarning

        def keep(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, ReuseWarning):
                progress.note(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = keep
        yield


def quiet_libraries() -> None:
    """No log lines and no progress bars of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for module in (diffusers_logging, transformers_logging):
        module.set_verbosity_error()
        module.disable_progress_bar()
