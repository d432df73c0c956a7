"""The `fsf` command. Heavy imports happen inside the command that needs them, so that help and lists answer at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fsframework.cli.parser import USER_ERROR, build_parser

INTERRUPTED = 130
"""Exit code after Ctrl-C or a polite kill."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 if cells of an ablation failed, 2 for a user's mistake, 130 when
    interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    if arguments.command is None:
        parser.print_help()
        return 0
    # Waiting OpenMP threads spin by default: that counts as CPU time, and on a machine with other work a small model takes
    # ten times as long (measured: 0.05 s of CPU against 0.2 to 2.8 s for the same video). Must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A polite kill is treated as Ctrl-C: the run says how to go on.
    previous = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None
    try:
        code: int | None = arguments.function(arguments)
        return code or 0
    except KeyboardInterrupt:
        print("fsf: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `fsf list policies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        if os.environ.get("FSF_DEBUG") or not is_user_error(error):
            raise
        print(f"fsf: error: {error}", file=sys.stderr)
        return USER_ERROR
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def is_user_error(error: BaseException) -> bool:
    """Whether the error was raised by this project's code or a plugin, whose `ValueError`s are written for the user.

    A ValueError from inside a library is a defect of ours: it keeps its traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] == "fsframework" or name.startswith("fsf_plugin_")


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
