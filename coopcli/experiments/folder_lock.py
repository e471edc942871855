"""One process at a time in a run or sweep folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CoopError

LOCK_FILE = ".lock"  # in the folder, while it is in use
PATIENCE = 0.5  # seconds: the holder may be just about to end


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keep the folder, which is made where it is missing, for this process; the lock ends with it, however it dies.

    A folder that was made for the lock and stayed empty is removed again. Raises CoopError, naming process and host, when
    another process works in the folder for longer than `patience` seconds, or when it cannot be written.
    """
    path = folder / LOCK_FILE
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = FileLock(path, timeout=patience, poll_interval=0.05)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise CoopError(f'"{folder}" is in use by {_holder(path)}; wait until it ends, or use another --output') from None
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    by_kernel = type(lock) is FileLock  # else a disk without locks, where filelock's own marker stands in for one
    try:
        if by_kernel:
            with suppress(OSError):  # who holds it is a courtesy
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        if by_kernel:
            with suppress(OSError):
                path.unlink()  # while it is held: whoever waits for this very file looks again
        lock.release()
        with suppress(OSError):  # not empty
            for place in made:
                place.rmdir()


def _holder(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        text = ""
    return text if text.isprintable() and text.startswith("process ") else "another process"
