"""The on-disk cache of features: one SQLite file, from a 16-byte content key to float32 numbers."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from platformdirs import user_cache_dir

from ..errors import CoopError

LOOKUP = 500  # keys per query; SQLite allows 999 at least
CHECK = 8  # bytes of checksum before each value
HOUR = 3600  # how exactly a use is noted, so that reading seldom writes
TRIM_TO = 0.9  # of the bound, so that not every put has to trim
WAIT = 60  # seconds for another process to finish its writing
VERSION = 2  # of TABLES; a file of another version is replaced
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
    """`COOP_CACHE`, else the platform's cache folder."""
    return Path(os.environ.get("COOP_CACHE") or user_cache_dir("coop"))


class FeatureCache:
    """Features by content key: a vector for an image, all class features for hand-written prompts.

    Without a folder it lives in memory and ends with the process. Several processes may use one folder at a time.

    A damaged file is replaced by an empty one, once; where none can be written, `path` becomes None and features are
    kept in memory. Neither fails a command: `problem` says what happened last, and once open a warning is logged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "features.sqlite" if folder else None
        self.problem: str | None = None
        self.database: sqlite3.Connection
        self._logged = self._open = False
        self._inode = 0  # of the file
        self._damaged: int | None = None  # the inode of the file that was found damaged
        self._run(lambda: None)
        self._logged = True

    def get(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """What is there and undamaged, float32 and flat, by key."""
        wanted = list(dict.fromkeys(keys))
        return self._run(lambda: self._get(wanted))

    def _get(self, wanted: list[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        now, old = int(time.time()), []
        # Damage may have made any type of what is kept, hence the casts and SQL's comparison.
        query = f"SELECT CAST(key AS BLOB), CAST(value AS BLOB), used < {now - HOUR} FROM features WHERE key IN "
        for start in range(0, len(wanted), LOOKUP):
            part = wanted[start : start + LOOKUP]
            for key, value, is_old in self.database.execute(f"{query} ({','.join('?' * len(part))})", part):
                if not key or not value or value[:CHECK] != _checksum(key, value[CHECK:]):
                    self._tell(f'the feature cache "{self.path}" holds damaged features; they are computed again')
                    continue
                found[key] = np.frombuffer(value, np.float32, offset=CHECK)
                if is_old:
                    old.append((now, key))
        if old:
            with suppress(sqlite3.OperationalError), self.database:  # a full disk must not stop reading
                self.database.executemany("UPDATE features SET used = ? WHERE key = ?", old)
        return found

    def put(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors, all of them or, on a fault, none. Over the bound, the least recently used ones go."""
        now = int(time.time())
        values = {key: np.ascontiguousarray(value, np.float32).tobytes() for key, value in features.items()}
        rows = [(key, _checksum(key, value) + value, now) for key, value in values.items()]

        def put() -> None:
            with self.database:
                self.database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            self._trim()

        self._run(put)

    def size(self) -> tuple[int, int]:
        """How many vectors there are, and the bytes that the cache takes on disk or in memory."""
        return self._run(lambda: (self._number("SELECT COUNT(*) FROM features"), self._bytes()))

    def max_bytes(self) -> int | None:
        """The bound on the bytes that the cache takes, None if there is none."""
        return self._run(lambda: self._number(BOUND)) or None

    def limit(self, max_bytes: int | None) -> None:
        """Bound the bytes that the cache takes, now and for later; None: no bound. Raises CoopError on a fault."""

        def limit() -> None:
            with self.database:
                self.database.execute("DELETE FROM bound")
                self.database.execute("INSERT INTO bound VALUES (?)", (max_bytes or 0,))
            self._trim()

        self._run(limit, must=True)

    def clear(self) -> int:
        """Remove every vector and give the space back; returns how many there were. Raises CoopError on a fault."""

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
            self.database.execute("BEGIN IMMEDIATE")  # so that no other process trims at the same time
            while self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count") > pages:
                if not self.database.execute(f"DELETE FROM features WHERE rowid IN ({some})").rowcount:
                    break
        for _ in range(0, self._number("PRAGMA freelist_count"), 1000):  # in parts, for the journal grows by each
            self.database.executescript("PRAGMA incremental_vacuum(1000)")  # execute() would stop at the first page
        self._number("PRAGMA wal_checkpoint(TRUNCATE)")

    def _number(self, query: str) -> int:
        return int(self.database.execute(query).fetchone()[0] or 0)

    def _files(self) -> list[Path]:
        # The database last: without it, what is left of the others would be taken for the next one's.
        return [Path(f"{self.path}{end}") for end in ("-wal", "-shm", "-journal", "")] if self.path else []

    def _bytes(self) -> int:
        if not self.path:
            return self._number("PRAGMA page_count") * self._number("PRAGMA page_size")
        total = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # of these only the database is always there
                total += file.stat().st_size
        return total

    def _run(self, action: Callable[[], T], must: bool = False) -> T:
        """Do it; after a fault again, on a new file or in memory. Raises CoopError where it `must` not be in memory."""
        while True:
            try:
                if not self._open:
                    self._connect()
                return action()
            except (OSError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
                name = f'the feature cache "{self.path}"'
                if not self.path:
                    raise
                if _is_damage(error) and self._damaged is None:
                    self._damaged = self._inode
                    self._tell(f"{name} is damaged; it starts anew, without any --max-size set before")
                elif must:
                    raise CoopError(f"{name} cannot be changed: {error}") from error
                else:
                    self.path = None
                    self._tell(f"{name} cannot be used ({error}); going on without it")
                self._open = False

    def _tell(self, problem: str) -> None:
        if self._logged and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem

    def _connect(self) -> None:
        if not self.path:
            self._attach()
            self.database.executescript(TABLES)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One process at a time: a file must not go while another process opens it and then the journal beside it.
            with closing(sqlite3.connect(self.path.with_suffix(".lock"), timeout=WAIT)) as lock:
                lock.execute("BEGIN EXCLUSIVE")
                # Another process may have replaced a damaged file already; still open here, its inode is not used again.
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
        self.database = sqlite3.connect(self.path or ":memory:", timeout=WAIT, check_same_thread=False)
        weakref.finalize(self, self.database.close)
        self._inode = self.path.stat().st_ino if self.path else 0
        self.database.execute("PRAGMA synchronous = NORMAL")


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=CHECK).digest()


def _is_damage(error: Exception) -> bool:
    # SQLITE_ERROR: a wrong statement, and these are right, so the tables are not. UnicodeDecodeError: in SQLite's message.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # without what extends it
    codes = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return code in codes or isinstance(error, UnicodeDecodeError)
