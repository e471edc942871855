"""Files: the names of those that coop writes, each defined once; reading text; writing in one step."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .errors import CoopError

RUNS_FOLDER = "coop-runs"  # default parent of run folders; never taken for a class
PROMPT_FILE = "prompt.safetensors"
HEAD_FILE = "head.safetensors"  # a classifier of another method than CoOp
TUNED_FOLDER = "model"  # beside a head: the image encoder that was trained with it
CHECKPOINT_FILE = "checkpoint.safetensors"  # of an unfinished run: its last whole epoch
SETTINGS_FILE = "settings.toml"
METRICS_FILE = "metrics.json"
LOG_FILE = "log.jsonl"
FEW_SHOT_FILE = "fewshot.json"
CARD_FILE = "README.md"
CELLS_FOLDER = "cells"  # of a sweep: a folder for each experiment
RESULT_FILE = "result.json"  # of one experiment
FEATURES_FILE = "features.json"  # of a folder of features: model, data, shards
RESULTS_FILE = "results.json"  # of a sweep; .csv and .md lie beside it

MOST_TEXT = 1 << 30  # bytes of a text file; beyond this it is refused rather than held in memory
STALE = 24 * 3600  # seconds after which a partial file of another machine counts as left behind


def read_text(path: Path, kind: str, error: type[CoopError] = CoopError) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    `kind` names the file in messages ("table", "class-name file"). Raises `error` for a file that cannot be read, is too
    large, or has another encoding.
    """
    try:
        if path.stat().st_size > MOST_TEXT:
            raise error(f'{kind} "{path}" cannot be read: it is larger than {MOST_TEXT >> 20} MiB')
        content = path.read_bytes()
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        raise error(f'{kind} "{path}" cannot be read: {getattr(cause, "strerror", None) or cause}') from cause
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f'{kind} "{path}" cannot be read: it is not UTF-8 text; save it as UTF-8') from cause
    if "\0" in text:  # UTF-16 without a mark, where the letters are ASCII
        raise error(f'{kind} "{path}" cannot be read: it is not UTF-8 text (it has NUL bytes); save it as UTF-8')
    return text


def text_lines(text: str) -> list[str]:
    """Split text into its lines, without the blank ones. Only \\n and \\r\\n end a line: U+2028 and the like do not."""
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError also for NaN, Infinity and numbers too long for Python, and for lone surrogates."""
    content = json.loads(text, parse_constant=_refuse_constant)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start : error.end]!r} is half of a letter") from error
    return content


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or Ctrl-C never sees half of it.

    A regular file is replaced where it lies (a link keeps pointing at it) and keeps its mode. Anything else that exists,
    such as /dev/null or a pipe, is written to as a stream. Raises CoopError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        try:
            before = path.stat()
        except FileNotFoundError:
            before = None
        if before and (not stat.S_ISREG(before.st_mode) or _is_open_file(path)):
            with path.open("ab", buffering=0) as stream:
                _write_all(stream, content)
        else:
            _replace(target, content, before)
    except OSError as error:
        raise CoopError(f'"{path}" cannot be written: {error.strerror or error}') from error


def _is_open_file(path: Path) -> bool:
    """Whether the path names a file that a process has open, as /dev/stdout does: replacing it would not reach its holder."""
    step = Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow the links that are looked at here
    for _ in range(8):
        if step.parts[1:2] == ("proc",) or step.parts[1:3] in (("dev", "stdout"), ("dev", "stderr"), ("dev", "fd")):
            return True
        if not step.is_symlink():
            return False
        step = Path(os.path.normpath(step.parent / step.readlink()))
    return False


def _write_all(stream: io.RawIOBase | Any, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def _replace(target: Path, content: bytes, before: os.stat_result | None) -> None:
    """Write beside the target under a name that nobody can guess, opened exclusively, and move that into its place."""
    partial = partial_of(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, 0o600 if before else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before:
            if hasattr(os, "chown"):
                with contextlib.suppress(OSError):
                    os.chown(partial, before.st_uid, before.st_gid)
            partial.chmod(stat.S_IMODE(before.st_mode))
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_of(target: Path) -> Path:
    """A name beside the target for what is not whole yet; `remove_partials` finds it when its process has died."""
    return target.with_name(f".coop-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.partial")


def _machine() -> str:
    """A tag of this machine, for partial files on a disk that several machines share."""
    return hashlib.blake2b(socket.gethostname().encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def remove_partials(folder: Path) -> None:
    """Remove the partial files in a folder whose process was killed, and none that a living process still writes."""
    for partial in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if _left_behind(partial):
                partial.unlink()


def _left_behind(partial: Path) -> bool:
    named = re.fullmatch(r"\.coop-(?P<machine>\w+)-(?P<pid>\d+)-\w+\.partial|\..*\.(?P<old_pid>\d+)\.partial", partial.name)
    if not named:
        return False
    if named["machine"] not in (None, _machine()):
        return time.time() - partial.stat().st_mtime > STALE
    process = int(named["pid"] or named["old_pid"])
    if process == os.getpid():  # containers give each run the same number: only an old file is another run's
        return time.time() - partial.stat().st_mtime > time.monotonic() - _STARTED
    return not process_lives(process)


_STARTED = time.monotonic()


def process_lives(process: int) -> bool:
    """Whether a process of this host lives, as far as can be told."""
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, content: Any) -> None:
    """Write a result file in one step. Raises CoopError when it cannot be written."""
    write_atomically(path, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def did_you_mean(path: Path) -> str:
    """For a path that is missing, the end of a message that names what lies there under a similar name, if any does."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no file can have
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
        if near := get_close_matches(path.name, names, n=1, cutoff=0.7):
            return f'; did you mean "{path.with_name(near[0])}"?'
    return ""


def checkpoint_of(folder: Path) -> Path:
    """Return the path of an unfinished run's last whole epoch."""
    return folder / CHECKPOINT_FILE


def csv_of(rows: Iterable[dict[str, Any]]) -> str:
    """Format rows with the same keys as CSV; None is an empty field."""
    text = io.StringIO()
    rows = list(rows)
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
