"""The on-disk cache of features: one SQLite file, from a 16-byte content key to float32 numbers."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from platformdirs import user_cache_dir

from .errors import CoopError

LOOKUP = 500  # keys per query; SQLite allows 999 at least
CHECK = 8  # bytes of checksum before each value
HOUR = 3600  # a use is noted this exactly, so that reading seldom writes
TRIM_TO = 0.9  # of the bound, so that not every put has to trim
WAIT = 60  # seconds for another process to finish its writing
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
VERSION = 2  # of TABLES; a file of another version is replaced
# Two vectors of 2 kB do not fit a page of the default 4 kB: each would take a page of its own.
TABLES = f"""
PRAGMA page_size = 16384; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;
CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL);
CREATE INDEX by_use ON features (used);
CREATE TABLE bound (bytes INTEGER NOT NULL);
PRAGMA user_version = {VERSION};
"""

T = TypeVar("T")
logger = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """`COOP_CACHE`, else the platform's cache folder."""
    return Path(os.environ.get("COOP_CACHE") or user_cache_dir("coop"))


class FeatureCache:
    """Features by content key: a vector for an image, all class features for hand-written prompts.

    Without a folder it lives in memory and ends with the process. Several processes may use one folder.

    A damaged file is replaced, once, by an empty one; where none can be written, `path` becomes None and features are
    kept in memory. No command fails by it: `problem` says what happened last, and from opening on a warning is logged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "features.sqlite" if folder else None
        self.problem: str | None = None
        self.opened = self.replaced = False
        self.inode = 0
        try:
            self._open()
        except (OSError, sqlite3.DatabaseError) as error:
            self._mend(error)
        self.opened = True

    def get(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """What is there and undamaged, float32 and flat, by key."""
        wanted = list(dict.fromkeys(keys))
        return self._run(lambda: self._get(wanted))

    def put(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors, all of them or, on a fault, none; then hold the bound: the least recently used go first."""
        now = int(time.time())
        values = {key: np.ascontiguousarray(value, np.float32).tobytes() for key, value in features.items()}
        rows = [(key, _checksum(key, value) + value, now) for key, value in values.items()]
        self._run(lambda: self._put(rows))

    def size(self) -> tuple[int, int]:
        """How many vectors there are, and the bytes that the cache takes on disk."""
        return self._run(lambda: (self._number("SELECT COUNT(*) FROM features"), self._bytes()))

    def max_bytes(self) -> int | None:
        """The bound on the bytes on disk, if there is one."""
        return self._run(self._bound)

    def limit(self, max_bytes: int | None) -> int:
        """Bound the bytes on disk, now and for later; returns how many vectors had to go. Raises CoopError on a fault."""
        return self._run(lambda: self._limit(max_bytes), must=True)

    def clear(self) -> int:
        """Remove every vector and give the space back; returns how many there were. Raises CoopError on a fault."""
        return self._run(self._clear, must=True)

    def _get(self, wanted: list[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        now, old = int(time.time()), []
        for start in range(0, len(wanted), LOOKUP):
            part = wanted[start : start + LOOKUP]
            # Damage may have made any type of a value, or of its age, hence the cast and SQL's comparison.
            what = f"key, CAST(value AS BLOB), used < {now - HOUR}"
            for key, value, is_old in self.database.execute(
                f"SELECT {what} FROM features WHERE key IN ({','.join('?' * len(part))})", part
            ):
                if not value or value[:CHECK] != _checksum(key, value[CHECK:]):
                    self._tell(f'the feature cache "{self.path}" holds damaged features; they are computed again')
                    continue
                found[key] = np.frombuffer(value, np.float32, offset=CHECK)
                if is_old:
                    old.append((now, key))
        if old:
            with suppress(sqlite3.OperationalError), self.database:  # a full disk must not stop reading
                self.database.executemany("UPDATE features SET used = ? WHERE key = ?", old)
        return found

    def _put(self, rows: list[tuple[bytes, bytes, int]]) -> None:
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        self._trim()

    def _limit(self, max_bytes: int | None) -> int:
        with self.database:
            self.database.execute("DELETE FROM bound")
            if max_bytes is not None:
                self.database.execute("INSERT INTO bound VALUES (?)", (max_bytes,))
        return self._trim()

    def _clear(self) -> int:
        with self.database:
            count = self.database.execute("DELETE FROM features").rowcount
        self.database.execute("VACUUM")
        self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def _trim(self) -> int:
        bound, removed = self._bound(), 0
        if bound is None or self._bytes() <= bound:
            return 0
        some = "SELECT rowid FROM features ORDER BY used, rowid LIMIT 1 + (SELECT COUNT(*) FROM features) / 100"
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")  # so that no other process trims at the same time
            while self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count") > (
                TRIM_TO * bound / self._number("PRAGMA page_size")
            ):
                gone = self.database.execute(f"DELETE FROM features WHERE rowid IN ({some})").rowcount
                removed += gone
                if not gone:
                    break
        for _ in range(0, self._number("PRAGMA freelist_count"), 1000):  # in parts: the journal holds one at a time
            self.database.execute("PRAGMA incremental_vacuum(1000)").fetchall()
        self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return removed

    def _bound(self) -> int | None:
        row = self.database.execute("SELECT bytes FROM bound").fetchone()
        return row and int(row[0])

    def _number(self, query: str) -> int:
        return int(self.database.execute(query).fetchone()[0])

    def _files(self) -> list[Path]:
        # The database last: without it, what is left of the others would be taken for the next one's.
        return [Path(f"{self.path}{end}") for end in ("-wal", "-shm", "-journal", "")] if self.path else []

    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files() if file.exists())

    def _run(self, action: Callable[[], T], must: bool = False) -> T:
        """Do it, after a fault again on the replaced file or in memory. Raises CoopError on one that `must` not be passed over."""
        while True:
            try:
                return action()
            except sqlite3.DatabaseError as error:
                if must and not _is_damage(error):
                    raise CoopError(f'the feature cache "{self.path}" cannot be changed: {error}') from error
                if not self.path:
                    raise
                self._mend(error)

    def _mend(self, error: Exception) -> None:
        name = f'the feature cache "{self.path}"'
        if _is_damage(error) and not self.replaced:
            self.replaced = True
            try:
                self._open(replace=True)
            except (OSError, sqlite3.DatabaseError) as another:
                error = another
            else:
                return self._tell(f"{name} was damaged ({error}); it starts empty, and without the --max-size it may have had")
        self.path = None
        self._open()
        return self._tell(f"{name} cannot be used ({error}); going on without it")

    def _tell(self, problem: str) -> None:
        if self.opened and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem

    def _open(self, replace: bool = False) -> None:
        with self._alone():
            if replace and self.path and self.path.exists() and self.path.stat().st_ino == self.inode:
                self._remove()  # unless another process has replaced it already
            self._connect()
            if self._number("PRAGMA user_version") != VERSION:
                self._remove()
                self._connect()
                self.database.executescript(TABLES)

    def _connect(self) -> None:
        self.database = sqlite3.connect(self.path or ":memory:", timeout=WAIT)
        self.inode = self.path.stat().st_ino if self.path else 0
        self.database.execute("PRAGMA synchronous = NORMAL")

    def _remove(self) -> None:
        self.database.close()
        for file in self._files():
            file.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: a file must not be removed while another process opens it and its journal, one by one."""
        if not self.path:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path.with_suffix(".lock"), timeout=WAIT)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            yield


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=CHECK).digest()


def _is_damage(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE
