"""The on-disk cache of features: one SQLite file, from a 16-byte content key to float32 numbers."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir

from .errors import CoopError

LOOKUP = 500  # keys per query; SQLite allows 999 at least


def default_cache_folder() -> Path:
    """`COOP_CACHE`, else the platform's cache folder."""
    return Path(os.environ.get("COOP_CACHE") or user_cache_dir("coop"))


class FeatureCache:
    """Features by content key: a vector for an image, all class features for hand-written prompts.

    Without a folder it lives in memory and ends with the process.

    A cache that cannot be written or is damaged never fails a command: `problem` then says what happened, once.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "features.sqlite" if folder else None
        self.problem: str | None = None
        try:
            self._open()
        except (OSError, sqlite3.DatabaseError) as error:
            self._fall_back(error)

    def _open(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(self.path or ":memory:", timeout=60)
        if self.path:
            self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS features"
            " (key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID"
        )

    def _fall_back(self, error: Exception) -> None:
        self.problem = f'the feature cache "{self.path}" cannot be used ({error}); going on without it'
        self.path = None
        self._open()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """What is there, float32 and flat, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, np.ndarray] = {}
        try:
            for start in range(0, len(wanted), LOOKUP):
                part = wanted[start : start + LOOKUP]
                marks = ",".join("?" * len(part))
                rows = self.database.execute(f"SELECT key, value FROM features WHERE key IN ({marks})", part)
                found |= {key: np.frombuffer(value, np.float32) for key, value in rows}
        except sqlite3.DatabaseError as error:
            self._fall_back(error)
            return {}
        return found

    def put(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors; all of them or, on a fault, none."""
        now = int(time.time())
        rows = [(key, np.ascontiguousarray(value, np.float32).tobytes(), now) for key, value in features.items()]
        try:
            with self.database:
                self.database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            self._fall_back(error)

    def size(self) -> tuple[int, int]:
        """How many vectors there are, and the bytes they take on disk."""
        (count,) = self.database.execute("SELECT COUNT(*) FROM features").fetchone()
        return int(count), self.path.stat().st_size if self.path else 0

    def clear(self) -> int:
        """Remove every vector and give the space back; returns how many there were. Raises CoopError on a fault."""
        try:
            count, _ = self.size()
            with self.database:
                self.database.execute("DELETE FROM features")
            self.database.execute("VACUUM")
            self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise CoopError(f'the feature cache "{self.path}" cannot be cleared: {error}') from error
        return count
