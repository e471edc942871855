"""The entry point of `coop` and `python -m coopcli`: runs the command line and turns errors into one line each."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 data or machine at fault, 2 the command at fault, 130 Ctrl-C.

    When the reader of stdout goes away (`| head`), it ends quietly with 1. COOP_DEBUG=1 shows the traceback of any error.
    """
    stopped = _remember_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever a terminal's encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        from .cli.app import app

        try:
            app()
        finally:
            _flush()
    except SystemExit as exit_:
        if exit_.code == 130:
            _stopped()
        raise
    except KeyboardInterrupt:
        _stopped()
        sys.exit(130)
    except Exception as error:
        if stopped:  # while libraries are loaded, some of them make an error of their own of it
            _stopped()
            sys.exit(130)
        if os.environ.get("COOP_DEBUG"):
            raise
        from .cli.console import printable
        from .errors import CoopError, UsageError

        if isinstance(error, CoopError):
            told = str(error)
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # written by print
            told = f"stdout cannot be written: {error.strerror}"
        else:
            told = f"{type(error).__name__}: {error} (COOP_DEBUG=1 shows where)"
        _tell(printable(told))
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _remember_ctrl_c() -> list[int]:
    """A list that Ctrl-C puts its signal into, besides raising KeyboardInterrupt."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where whoever started coop ignores it
        signal.signal(signal.SIGINT, handler)
    return seen


def _flush() -> None:
    """Write out what stdout still holds. Python's own attempt at its end would tell of a failure in its own way."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        from .errors import CoopError

        raise CoopError(f"stdout cannot be written: {error.strerror}") from error


def _stopped() -> None:
    _tell("stopped; the same command goes on from here: features and the last whole epoch are kept")


def _tell(text: str) -> None:
    if sys.stderr:  # None where it is closed, and print would take stdout instead
        print(f"coop: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
