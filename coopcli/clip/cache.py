"""On-disk cache of features: one SQLite file that maps 16-byte content keys to float32 numbers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from platformdirs import user_cache_dir

from ..errors import CoopError

LOOKUP = 500  # keys per query; SQLite allows 999 at least
CHECK = 8  # bytes of checksum before each value
HOUR = 3600  # resolution of the time of last use, so that reading seldom writes
TRIM_TO = 0.9  # share of the bound, so that not every put has to trim
WAIT = 60  # seconds to wait for another process to finish writing
SILENT_WAIT = 2  # seconds of these without a word
VERSION = 2  # version of TABLES; a file of another version is replaced
# Pages of 8 kB hold three vectors of 2 kB; those of the default 4 kB would hold one.
TABLES = f"""
PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;
CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL);
CREATE INDEX by_use ON features (used);
CREATE TABLE bound (bytes INTEGER NOT NULL);
PRAGMA user_version = {VERSION};
"""
BOUND = "SELECT CAST(MAX(bytes) AS INTEGER) FROM bound"

T = TypeVar("T")
logger = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Folder of the cache: `COOP_CACHE`, else the platform's cache folder."""
    try:
        folder = Path(os.environ.get("COOP_CACHE") or user_cache_dir("coop"))
    except RuntimeError:  # no home folder; an older platformdirs leaves the "~" as it is, or takes "" for "/"
        folder = Path("~/.cache/coop")  # refused when it is opened
    return Path("~/.cache/coop") if os.environ.get("HOME") == "" and folder == Path("/.cache/coop") else folder


class FeatureCache:
    """Features by content key: one vector for an image, all class features for a list of prompts; and facts, as JSON.

    Without a folder it is in memory and ends with the process. Several processes may share one folder.

    A damaged file is replaced by an empty one, once; where the file cannot be written, `path` becomes None and features
    are kept in memory. Neither fails a command: `problem` holds the last one, and once open a warning is logged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "features.sqlite" if folder else None
        self.problem: str | None = None
        self.database: sqlite3.Connection
        self._logged = self._open = self._waited = False
        self._inode = 0  # of the file
        self._damaged: int | None = None  # the inode of the file that turned out damaged
        self._run(lambda: None)
        self._logged = True

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: where the features are and their bound. Those in memory are not copied."""
        return {"folder": self.path and self.path.parent, "bound": None if self.path else self.max_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the cache again; one in memory is empty."""
        self.__init__(state["folder"])  # type: ignore[misc]
        if state["bound"]:
            self.limit(state["bound"])

    def get(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Get the undamaged features among these keys, flat float32, by key."""
        wanted = list(dict.fromkeys(keys))
        return self._run(lambda: self._get(wanted))

    def _get(self, wanted: list[bytes]) -> dict[bytes, np.ndarray]:
        known: dict[bytes, np.ndarray] = {}
        now, old = int(time.time()), []
        # After damage a value may have any type, hence the casts and SQL's comparison.
        query = f"SELECT CAST(key AS BLOB), CAST(value AS BLOB), used < {now - HOUR} FROM features WHERE key IN "
        for start in range(0, len(wanted), LOOKUP):
            part = wanted[start : start + LOOKUP]
            for key, value, is_old in self.database.execute(f"{query} ({','.join('?' * len(part))})", part):
                if not key or not value or value[:CHECK] != _checksum(key, value[CHECK:]):
                    self._warn(f'the feature cache "{self.path}" has damaged features; they are computed again')
                    continue
                known[key] = np.frombuffer(value, np.float32, offset=CHECK)
                if is_old:
                    old.append((now, key))
        if old:
            with suppress(sqlite3.OperationalError), self.database:  # a full disk must not stop reading
                self.database.executemany("UPDATE features SET used = ? WHERE key = ?", old)
        return known

    def put(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Store vectors, all of them or, on an error, none. Beyond the bound the least recently used ones are removed."""
        now = int(time.time())
        values = {key: np.ascontiguousarray(value, np.float32).tobytes() for key, value in features.items()}
        rows = [(key, _checksum(key, value) + value, now) for key, value in values.items()]

        def put() -> None:
            with self.database:
                self.database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            self._trim()

        self._run(put)

    def recall(self, about: Sequence[object]) -> Any:
        """Get what was remembered under `about`, a list that JSON can hold; None where nothing was."""
        key = _key_of(about)
        known = self.get([key]).get(key)
        return None if known is None else json.loads(known.tobytes())

    def remember(self, about: Sequence[object], content: object) -> None:
        """Keep content that JSON can hold under `about`, among the features and bounded with them."""
        text = json.dumps(content)
        self.put({_key_of(about): np.frombuffer(text.ljust(-(-len(text) // 4) * 4).encode(), np.float32)})

    def size(self) -> tuple[int, int]:
        """Number of vectors, and bytes that the cache takes on disk or in memory."""
        return self._run(lambda: (self._number("SELECT COUNT(*) FROM features"), self._bytes()))

    def max_bytes(self) -> int | None:
        """The bound on the cache's bytes; None without one."""
        return self._run(lambda: self._number(BOUND)) or None

    def limit(self, max_bytes: int | None) -> None:
        """Bound the cache's bytes, from now on; None: no bound. Raises CoopError when that fails."""

        def limit() -> None:
            with self.database:
                self.database.execute("DELETE FROM bound")
                self.database.execute("INSERT INTO bound VALUES (?)", (max_bytes or 0,))
            self._trim()

        self._run(limit, must=True)

    def clear(self) -> int:
        """Remove every vector and free the space; returns how many there were. Raises CoopError when that fails."""

        def clear() -> int:
            with self.database:
                count = self.database.execute("DELETE FROM features").rowcount
            self.database.execute("VACUUM")
            self._number("PRAGMA wal_checkpoint(TRUNCATE)")
            return count

        return self._run(clear, must=True)

    def _trim(self) -> None:
        bound = self._number(BOUND)
        if not bound or self._bytes() <= bound:
            return
        some = "SELECT rowid FROM features ORDER BY used, rowid LIMIT 1 + (SELECT COUNT(*) FROM features) / 100"
        pages = TRIM_TO * bound / self._number("PRAGMA page_size")
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")  # no other process trims at the same time
            while self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count") > pages:
                if not self.database.execute(f"DELETE FROM features WHERE rowid IN ({some})").rowcount:
                    break
        for _ in range(0, self._number("PRAGMA freelist_count"), 1000):  # in parts, because the journal grows with each
            self.database.executescript("PRAGMA incremental_vacuum(1000)")  # execute() would stop at the first page
        self._number("PRAGMA wal_checkpoint(TRUNCATE)")

    def _number(self, query: str) -> int:
        return int(self.database.execute(query).fetchone()[0] or 0)

    def _files(self) -> list[Path]:
        # The database last: otherwise what is left of the others would be read as belonging to the next one.
        return [Path(f"{self.path}{end}") for end in ("-wal", "-shm", "-journal", "")] if self.path else []

    def _bytes(self) -> int:
        if not self.path:
            return self._number("PRAGMA page_count") * self._number("PRAGMA page_size")
        total = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # only the database always exists
                total += file.stat().st_size
        return total

    def _run(self, action: Callable[[], T], must: bool = False) -> T:
        """Run an action; after an error again, on a new file or in memory. Raises CoopError where it `must` be on disk."""
        started = time.monotonic()
        while True:
            try:
                if not self._open:
                    self._connect()
                return action()
            except (OSError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
                name = f'the feature cache "{self.path}"'
                if not self.path:
                    raise
                if _is_busy(error) and time.monotonic() - started < WAIT:
                    if not self._waited:
                        logger.warning("waiting for another process that holds %s (at most %d seconds)", name, WAIT)
                    self._waited = True
                    continue
                if _is_damage(error) and self._damaged is None:
                    self._damaged = self._inode
                    self._warn(f"{name} is damaged; a new one is started, without any --max-size set before")
                elif must:
                    raise CoopError(f"{name} cannot be changed: {error}") from error
                else:
                    self.path = None
                    self._warn(f"{name} cannot be used ({error}); continuing without it")
                self._open = False

    def _warn(self, problem: str) -> None:
        if self._logged and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem

    def _connect(self) -> None:
        if not self.path:
            self._attach()
            self.database.executescript(TABLES)
        else:
            if self.path.parts[0] == "~":  # not expanded
                raise OSError("this user has no home folder; set COOP_CACHE to a folder")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One process at a time: a file must not be removed while another process opens it and then its journal.
            with closing(sqlite3.connect(self.path.with_suffix(".lock"), timeout=SILENT_WAIT)) as lock:
                lock.execute("BEGIN EXCLUSIVE")
                # Another process may have replaced a damaged file already; while it is open here, its inode is not reused.
                self._attach(replace=self.path.exists() and self.path.stat().st_ino == self._damaged)
                if self._number("PRAGMA user_version") != VERSION:
                    self._attach(replace=True)
                    self.database.executescript(TABLES)
        self._open = True

    def _attach(self, replace: bool = False) -> None:
        if replace:
            self.database.close()
            for file in self._files():
                file.unlink(missing_ok=True)
        # Closed with the cache, or Python warns from 3.13 on; the thread that collects it may be another.
        self.database = sqlite3.connect(self.path or ":memory:", timeout=SILENT_WAIT, check_same_thread=False)
        weakref.finalize(self, self.database.close)
        self._inode = self.path.stat().st_ino if self.path else 0
        self.database.execute("PRAGMA synchronous = NORMAL")


def _key_of(about: Sequence[object]) -> bytes:
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).digest()


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=CHECK).digest()


def _is_damage(error: Exception) -> bool:
    # SQLITE_ERROR: a wrong statement; ours are right, so the tables are wrong. UnicodeDecodeError: in SQLite's message.
    codes = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return _primary_code(error) in codes or isinstance(error, UnicodeDecodeError)


def _is_busy(error: Exception) -> bool:
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _primary_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
