"""The entry point of `coop` and `python -m coopcli`: runs the command line and turns errors into one line each."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parallel import World


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 data or machine at fault, 2 the command at fault, 130 Ctrl-C.

    When the reader of stdout goes away (`| head`), it ends quietly with 1. COOP_DEBUG=1 shows the traceback of any error.
    Of the processes of one job the first alone writes to stdout, and the first that fails says why.
    """
    _share_cores()
    try:
        code = _run()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    if _here().size > 1:  # at once: the libraries that talk to the others may hang or crash while they are taken down
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _share_cores() -> None:
    """Have threads that wait for each other give up their core soon; called before PyTorch loads libgomp, which reads this.

    By default they wait in a loop for about a millisecond, again and again. Where another program takes part of a core, the
    thread that all wait for then hardly runs: encoding images becomes many times slower. libgomp itself waits so briefly
    where a program has more threads than there are cores, but of other programs it knows nothing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _run() -> int:
    """Run the command line; returns its exit code."""
    interrupts = _remember_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever a terminal's encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        from .cli.app import app

        if _here().rank and sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        try:
            code = app(standalone_mode=False)
        finally:
            _flush()
        if code == 130:
            _say_stopped()
        return code or 0
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _say_stopped()
        return 130
    except Exception as error:
        if interrupts:  # while libraries are loaded, some of them make an error of their own of it
            _say_stopped()
            return 130
        message, exit_code = _explain(error)
        if message is None:
            raise
        _print(message)
        return exit_code


def _explain(error: Exception) -> tuple[str | None, int]:
    """The one line for an error and its exit code; no line where the traceback is asked for."""
    from .cli.command import usage_line
    from .cli.console import printable
    from .errors import CoopError, UsageError

    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own
        if type(error).__name__ == "NoArgsIsHelpError":
            return error.format_message(), 2
        return f"coop: {printable(usage_line(error))}", 2
    if os.environ.get("COOP_DEBUG"):
        return None, 1
    if isinstance(error, CoopError):
        message = str(error)
    elif isinstance(error, OSError) and error.errno == errno.EPIPE:
        return "", 1
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # written by print
        message = f"stdout cannot be written: {error.strerror}"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        message = f'"{os.fsdecode(error.filename)}" cannot be used: {error.strerror}'
    else:
        message = f"{type(error).__name__}: {error} (COOP_DEBUG=1 shows where)"
    if (here := _here()).rank:
        message += f" (process {here.rank + 1} of {here.size}, on {socket.gethostname()})"
    return f"coop: {printable(message)}", 2 if isinstance(error, UsageError) else 1


def _remember_ctrl_c() -> list[int]:
    """Let Ctrl-C, besides raising KeyboardInterrupt, put its signal into the list returned."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where whoever started coop ignores it
        signal.signal(signal.SIGINT, handler)
    return seen


def _flush() -> None:
    """Write out what stdout still holds, before Python does so at exit and reports a failure in its own way."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at exit
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        from .errors import CoopError

        raise CoopError(f"stdout cannot be written: {error.strerror}") from error


def _say_stopped() -> None:
    _print("coop: stopped; run the same command to resume (features and the last whole epoch are kept)")


def _here() -> World:
    """The job of this process; this one alone where the variables that say so are wrong, which is the error to tell then."""
    from .errors import UsageError
    from .parallel import World, launched

    try:
        return launched()
    except UsageError:
        return World()


def _print(text: str) -> None:
    from .parallel import first_to_fail

    if _here().size > 1 and not first_to_fail():
        return
    if sys.stderr and text:  # None where it is closed, and print would take stdout instead
        from .cli.console import fitted, talk

        print(fitted(text, talk, taken=len("^C")), file=sys.stderr)


if __name__ == "__main__":
    main()
