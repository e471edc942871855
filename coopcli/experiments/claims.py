"""Which process does what in a folder that several share: shells, tasks of a job array, ranks of torchrun or srun.

A claim is a file that is created exclusively: process and host stand in it, and while the work goes on its time of change
moves. A claim whose process died is taken over. If two processes ever did one piece of work, its result would be the same.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ..errors import CoopError
from ..files import process_lives

CLAIM_FILE = "claim.json"
BEAT = 5.0  # seconds between two signs of life
DEAD = 120.0  # seconds without one, after which a process counts as dead, on whatever host it ran

_seen: dict[Path, tuple[int, float]] = {}  # a claim's last time of change, and when this process saw it first


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claim a folder, which is made where it is missing; gives whether it is this process's, for as long as the block lasts.

    Raises CoopError when it cannot be written.
    """
    path = folder / CLAIM_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine = _create(path) or (_left_behind(path) and _take_over(path))
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    if not mine:
        yield False
        return
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beats.start()
    try:
        yield True
    finally:
        done.set()
        beats.join()
        path.unlink(missing_ok=True)


def holder(folder: Path) -> str | None:
    """The living process that has claimed a folder, in words; None without one."""
    path = folder / CLAIM_FILE
    if not path.exists() or _left_behind(path):
        return None
    about = _read(path)
    return f"process {about.get('process', '?')} on {about.get('host', 'another host')}"


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"process": os.getpid(), "host": socket.gethostname()}, file)
    return True


def _read(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text("utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _left_behind(path: Path) -> bool:
    """Whether the process of a claim is dead. On another host, whose clock may differ, a standstill tells."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:  # given up in this moment
        return False
    if _seen.get(path, (0, 0.0))[0] != changed:
        _seen[path] = changed, time.monotonic()
    if time.monotonic() - _seen[path][1] > DEAD:
        return True
    about = _read(path)
    process = about.get("process")
    here = about.get("host") == socket.gethostname() and type(process) is int and process > 0
    return here and not process_lives(int(str(process))) and time.time() - changed / 1e9 > 2 * BEAT


def _take_over(path: Path) -> bool:
    """Replace the claim of a dead process; of several that want to, one does."""
    with FileLock(path.with_suffix(".lock")):
        if not _left_behind(path):
            return False
        path.unlink(missing_ok=True)
        return _create(path)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
