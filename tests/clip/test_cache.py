import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coopcli.cli.app import app
from coopcli.clip import cache as module
from coopcli.clip.cache import FeatureCache, default_cache_folder
from coopcli.errors import CoopError


def vectors(n, start=0, width=4):
    return {bytes([i // 256, i % 256]) * 8: np.full(width, i, np.float32) for i in range(start, start + n)}


def holds(cache, there):
    got = cache.get(there)
    return got.keys() == there.keys() and all(np.array_equal(got[key], there[key]) for key in there)


def sql(cache, statement, *values):
    with cache.database:
        return cache.database.execute(statement, values).fetchall()


def on_disk(folder):
    """The bytes that the cache's files take, counted from outside."""
    return sum(file.stat().st_size for file in folder.iterdir())


@settings(max_examples=20)
@given(st.integers(0, 1200))
def test_what_is_put_is_got(n):
    cache, there = FeatureCache(None), vectors(n)
    cache.put(there)
    got = cache.get([*there, b"absent" * 3])
    assert got.keys() == there.keys()
    assert all(np.array_equal(got[key], there[key]) for key in there)


def test_it_lasts_and_clears(tmp_path):
    FeatureCache(tmp_path).put(vectors(1000, width=512))
    cache = FeatureCache(tmp_path)
    assert cache.size() == (1000, on_disk(tmp_path)) and on_disk(tmp_path) > 1000 * 512 * 4
    assert cache.clear() == 1000
    assert on_disk(tmp_path) < 300_000
    assert FeatureCache(tmp_path).size()[0] == 0


@pytest.mark.parametrize(
    "change", ["zeroblob(24)", "substr(value, 1, 23) || x'01'", "substr(value, 1, 20)", "''", "'text'", "7"]
)
def test_a_damaged_value_counts_as_absent_and_is_replaced(tmp_path, caplog, change):
    cache, there = FeatureCache(tmp_path), vectors(10)
    cache.put(there)
    hit = list(there)[3]
    sql(cache, f"UPDATE features SET value = {change} WHERE key = ?", hit)
    cache = FeatureCache(tmp_path)
    for _ in range(2):
        assert cache.get(there).keys() == there.keys() - {hit}
    assert [record.getMessage() for record in caplog.records] == [cache.problem]  # told once
    assert "damaged" in cache.problem and str(tmp_path) in cache.problem
    cache.put({hit: there[hit]})
    assert holds(FeatureCache(tmp_path), there)


def test_a_value_under_another_key_counts_as_absent(tmp_path):
    cache, there = FeatureCache(tmp_path), vectors(2)
    cache.put(there)
    one, other = there
    sql(cache, "UPDATE features SET value = (SELECT value FROM features WHERE key = ?) WHERE key = ?", one, other)
    assert cache.get(there).keys() == {one}


def test_a_file_of_another_version_is_replaced(tmp_path):
    with closing(sqlite3.connect(tmp_path / "features.sqlite")) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute("CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB, used INTEGER) WITHOUT ROWID")
        old.executemany("INSERT INTO features VALUES (?, ?, 0)", [(k, v.tobytes()) for k, v in vectors(5).items()])
        old.commit()
    cache = FeatureCache(tmp_path)
    assert cache.size()[0] == 0 and cache.get(vectors(5)) == {} and cache.problem is None
    cache.put(vectors(3))
    assert holds(FeatureCache(tmp_path), vectors(3))


def damage(folder, how):
    """A cache of 1000 vectors, damaged afterwards."""
    cache = FeatureCache(folder)
    cache.put(vectors(1000))
    cache.database.close()
    file = folder / "features.sqlite"
    good = file.read_bytes()
    bad = {
        "no database": b"this is no database at all" * 50,
        "header only": b"SQLite format 3\0" + b"\xff" * 4096,
        "truncated": good[: len(good) // 2],
        "first page only": good[:8192],
        "no schema": good[:100] + b"\xff" * 8092 + good[8192:],
        # SQLite's message will hold a name that is no text.
        "no text": good.replace(b"indexby_use", b"index\xe4y_use").replace(b"CREATE INDEX", b"CREATE INDEY"),
        "other names": good.replace(b"value BLOB", b"valve BLOB"),
        "pages": good[:8192] + b"\xff" * (len(good) - 8192),
    }
    file.write_bytes(bad[how])


@pytest.mark.parametrize("how", ["no database", "header only", "truncated", "first page only", "no schema", "no text"])
def test_a_damaged_file_starts_anew(tmp_path, caplog, how):
    damage(tmp_path, how)
    cache = FeatureCache(tmp_path)
    assert cache.problem and str(tmp_path) in cache.problem and not caplog.records
    cache.put(vectors(3))
    again = FeatureCache(tmp_path)
    assert holds(again, vectors(3)) and again.size()[0] == 3 and again.problem is None


@pytest.mark.parametrize("action", ["get", "put", "size", "clear", "limit"])
def test_damage_found_later_starts_anew(tmp_path, caplog, action):
    damage(tmp_path, "pages")
    cache = FeatureCache(tmp_path)
    assert cache.problem is None  # nothing of it is read on opening
    if action in ("get", "put"):
        getattr(cache, action)(vectors(5))
    elif action == "limit":
        cache.limit(1_000_000)
    else:
        getattr(cache, action)()
    assert [record.getMessage() for record in caplog.records] == [cache.problem] and "damaged" in cache.problem
    cache.put(vectors(5))
    assert holds(FeatureCache(tmp_path), vectors(5)) and FeatureCache(tmp_path).size()[0] == 5


def test_tables_that_are_not_ours_start_anew(tmp_path, caplog):
    damage(tmp_path, "other names")
    cache = FeatureCache(tmp_path)
    assert cache.problem is None
    assert cache.get([b"\x01\xff" * 8]) == {} and "damaged" in caplog.text
    cache.put(vectors(1000))
    assert holds(FeatureCache(tmp_path), vectors(1000))


def test_any_damage_never_stops_work_nor_gives_wrong_values(tmp_path):
    logging.getLogger("coopcli").addHandler(logging.NullHandler())
    there, file, rng = vectors(300, width=64), tmp_path / "features.sqlite", np.random.default_rng(0)
    cache = FeatureCache(tmp_path)
    cache.put(there)
    cache.database.close()
    good, seen = np.frombuffer(file.read_bytes(), np.uint8), set()
    for _ in range(150):
        bad = good.copy()
        bad[rng.integers(0, 200, 3) + 8192 * rng.integers(0, len(bad) // 8192, 3)] = rng.integers(0, 256, 3)
        bad[rng.integers(0, len(bad), 5)] = rng.integers(0, 256, 5)
        file.write_bytes(bad)
        cache = FeatureCache(tmp_path)
        got = cache.get(there)
        assert got.keys() <= there.keys() and all(np.array_equal(got[key], there[key]) for key in got)
        cache.put(there)
        cache.size()
        cache.max_bytes()
        cache.database.close()
        seen.add((cache.problem, len(got) == len(there)))
    assert len(seen) > 2  # the damage was of several kinds


def test_a_file_replaced_by_another_process_is_not_replaced_again(tmp_path):
    damage(tmp_path, "pages")
    first, second = FeatureCache(tmp_path), FeatureCache(tmp_path)
    first.put(vectors(5))
    second.put(vectors(5, start=5))  # finds the damage of the file it has open, but not of the one that is there now
    assert "damaged" in first.problem and "damaged" in second.problem
    assert holds(first, vectors(10)) and holds(FeatureCache(tmp_path), vectors(10))


def test_a_full_disk(tmp_path, caplog):
    cache = FeatureCache(tmp_path)
    cache.put(vectors(5))
    sql(cache, f"PRAGMA max_page_count = {sql(cache, 'PRAGMA page_count')[0][0]}")
    cache.put(vectors(1000))
    cache.put(vectors(10, start=1000))
    assert holds(cache, vectors(1010)) and cache.path is None and cache.size()[0] == 1010
    assert [record.getMessage() for record in caplog.records] == [cache.problem]
    assert "full" in cache.problem and str(tmp_path) in cache.problem
    assert holds(FeatureCache(tmp_path), vectors(5))


def test_a_full_disk_does_not_stop_reading(tmp_path, caplog):
    cache = FeatureCache(tmp_path)
    cache.put(vectors(5))
    sql(cache, "UPDATE features SET used = 0")
    sql(cache, "PRAGMA query_only = ON")
    assert holds(cache, vectors(5)) and cache.path and not caplog.records
    for change in (cache.clear, lambda: cache.limit(10**9)):
        with pytest.raises(CoopError, match="cannot be changed"):
            change()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        cache = FeatureCache(folder)
        cache.put(vectors(2))
        assert len(cache.get(vectors(2))) == 2 and str(folder) in cache.problem


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="users' rights are those of POSIX")
@pytest.mark.parametrize("holding", [True, False])
def test_a_folder_that_cannot_be_written(holding, caplog):
    with tempfile.TemporaryDirectory() as folder:
        if holding:
            FeatureCache(Path(folder)).put(vectors(2))
        Path(folder).chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:  # who may write everywhere
                os.seteuid(65534)
            cache = FeatureCache(Path(folder))
            told_on_opening = [cache.problem] if cache.problem else []  # one that is there may well be read
            for _ in range(2):
                cache.put(vectors(3))
            assert holds(cache, vectors(3)) and cache.path is None and folder in cache.problem
            assert len(told_on_opening) + len(caplog.records) == 1
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


def test_a_use_is_noted_when_the_last_is_an_hour_old(tmp_path):
    cache, there = FeatureCache(tmp_path), vectors(700)
    cache.put(there)
    before = cache.database.total_changes
    cache.get(there)
    assert cache.database.total_changes == before
    sql(cache, "UPDATE features SET used = used - 4000")
    before = cache.database.total_changes
    cache.get(there)
    assert cache.database.total_changes == before + 700
    cache.get(there)
    assert cache.database.total_changes == before + 700
    assert sql(cache, "SELECT MIN(used) FROM features")[0][0] > time.time() - 60


BOUND = 2_000_000
KB2 = 512  # numbers


def test_a_bound_holds_at_once_and_the_least_recently_used_go_first(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put(vectors(2000, width=KB2))
    sql(cache, "UPDATE features SET used = used - 9000")
    cache.get(vectors(100))  # the oldest become the most recently used
    assert cache.size()[1] > 2 * BOUND and cache.max_bytes() is None
    cache.limit(BOUND)
    assert 0.8 * BOUND < on_disk(tmp_path) < 0.95 * BOUND
    assert cache.size()[1] == on_disk(tmp_path) and FeatureCache(tmp_path).max_bytes() == BOUND
    kept = cache.get(vectors(2000)).keys()
    assert kept == vectors(100).keys() | vectors(len(kept) - 100, start=2000 - (len(kept) - 100)).keys()
    assert len(kept) > 500


def test_later_puts_keep_to_a_bound_set_elsewhere(tmp_path, monkeypatch):
    cache, trimmings = FeatureCache(tmp_path), []
    FeatureCache(tmp_path).limit(BOUND)
    cache.database.set_trace_callback(lambda text: trimmings.append(text) if "BEGIN IMMEDIATE" in text else None)
    for start in range(0, 2000, 10):
        cache.put(vectors(10, start, KB2))
        assert on_disk(tmp_path) <= BOUND and holds(cache, vectors(10, start, KB2))
    assert 0 < len(trimmings) < 100  # of 200 puts
    assert len(cache.get(vectors(2000))) > 500
    assert cache.clear() > 500 and cache.max_bytes() == BOUND
    cache.limit(None)
    assert cache.max_bytes() is None
    cache.put(vectors(2000, width=KB2))
    assert cache.size()[0] == 2000 and on_disk(tmp_path) > 2 * BOUND


def test_a_cache_in_memory_keeps_to_its_bound():
    cache = FeatureCache(None)
    cache.limit(BOUND)
    for start in range(0, 2000, 100):
        cache.put(vectors(100, start, KB2))
        assert 0 < cache.size()[1] <= BOUND and holds(cache, vectors(100, start, KB2))


def test_what_is_larger_than_the_bound_does_no_harm(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.limit(BOUND)
    for _ in range(2):
        cache.put({b"large" * 3: np.zeros(BOUND, np.float32)})
    assert on_disk(tmp_path) <= BOUND and cache.problem is None
    cache.put(vectors(5))
    assert holds(cache, vectors(5))
    cache.limit(1)  # less than an empty cache
    assert cache.size()[0] == 0


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from coopcli.clip.cache import FeatureCache
folder, me, start = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rng = np.random.default_rng(me)
make = lambda numbers: {bytes([i]) * 16: np.full(100, i, np.float32) for i in numbers}
time.sleep(max(0, start - time.time()))
for i in range(20):
    while time.time() < start + i / 20:
        pass
    cache = FeatureCache(folder / str(i))  # all processes make it at the same time
    cache.put({b"%d" % me * 16: np.full(3, me, np.float32)})
    assert cache.path and (not cache.problem or "damaged" in cache.problem), cache.problem
cache, mine = FeatureCache(folder / "shared"), set()
for _ in range(100):
    some = make(rng.integers(0, 200, 20).tolist())
    cache.put(some)
    mine |= some.keys()
    got = cache.get(make(range(200)))
    assert mine <= got.keys() and all((value == key[0]).all() and len(value) == 100 for key, value in got.items())
assert cache.path and not cache.problem, cache.problem
"""


def test_four_processes_at_the_same_time(tmp_path):
    for i in range(0, 20, 2):  # and half of the files are damaged
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "features.sqlite").write_bytes(b"this is no database at all" * 50)
    start = time.time() + 1
    command = [sys.executable, "-W", "error", "-c", WORKER, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(k), str(start)], stderr=subprocess.PIPE, text=True) for k in range(4)]
    told = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4 and told == [""] * 4, told
    for i in range(20):
        assert len(FeatureCache(tmp_path / str(i)).get([b"%d" % k * 16 for k in range(4)])) == 4
    cache = FeatureCache(tmp_path / "shared")
    assert sql(cache, "PRAGMA integrity_check") == [("ok",)] and cache.size()[0] == 200
    assert cache.problem is None


def test_it_waits_for_other_processes_and_writes_ahead(tmp_path):
    cache = FeatureCache(tmp_path)
    assert sql(cache, "PRAGMA journal_mode") == [("wal",)]
    assert sql(cache, "PRAGMA synchronous") == [(1,)]  # NORMAL
    assert sql(cache, "PRAGMA busy_timeout") == [(2_000,)] and module.WAIT == 60


ACTIONS = {
    "open": lambda cache: FeatureCache(cache.path.parent).put(vectors(3)),
    "put": lambda cache: cache.put(vectors(3)),
    "limit": lambda cache: (cache.limit(10**9), cache.put(vectors(3))),
    "clear": lambda cache: (cache.clear(), cache.put(vectors(3))),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("released", [True, False])
def test_a_lock_of_another_process_is_reported_while_it_waits(tmp_path, monkeypatch, caplog, action, released):
    cache = FeatureCache(tmp_path)
    cache.put(vectors(1))
    cache.database.close()
    monkeypatch.setattr(module, "SILENT_WAIT", 0.1)
    monkeypatch.setattr(module, "WAIT", 60 if released else 0.3)
    cache = FeatureCache(tmp_path)
    file = tmp_path / ("features.lock" if action == "open" else "features.sqlite")
    with closing(sqlite3.connect(file, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE" if action == "open" else "BEGIN IMMEDIATE")
        if released:
            threading.Timer(0.5, other.rollback).start()
        if not released and action in ("limit", "clear"):
            with pytest.raises(CoopError, match="cannot be changed: database is locked"):
                ACTIONS[action](cache)
        else:
            ACTIONS[action](cache)
        assert f'waiting for another process that holds the feature cache "{tmp_path / "features.sqlite"}"' in caplog.text
        assert caplog.text.count("waiting") == 1
    kept = FeatureCache(tmp_path).get(vectors(3))
    assert len(kept) == (3 if released else 1)


@pytest.mark.parametrize("variables", [{}, {"HOME": ""}, {"XDG_CACHE_HOME": ""}])
def test_a_user_without_a_home_folder(tmp_path, monkeypatch, caplog, variables):
    for key in ("HOME", "XDG_CACHE_HOME", "COOP_CACHE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a user without an entry
    monkeypatch.chdir(tmp_path)
    cache = FeatureCache(default_cache_folder())
    cache.put(vectors(3))
    assert holds(cache, vectors(3)) and not any(tmp_path.iterdir())
    assert cache.path is None and "set COOP_CACHE to a folder" in cache.problem


@pytest.mark.parametrize(
    "size, n",
    [
        ("2GB", 2 * 10**9), ("500MB", 500 * 10**6), ("2GiB", 2**31), ("1.5GB", 1_500_000_000), ("12345678", 12345678),
        ("20 mb", 20 * 10**6), ("20480KiB", 20 * 2**20), ("1T", 10**12), ("none", None),
    ],
)  # fmt: skip
def test_sizes_on_the_command_line(size, n):
    told = CliRunner().invoke(app, ["cache", "--max-size", size, "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout)["max_bytes"] == n
    assert ("of at most" in CliRunner().invoke(app, ["cache"]).stdout) == (n is not None)
    assert json.loads(CliRunner().invoke(app, ["cache", "clear", "--json"]).stdout)["max_bytes"] == n


@pytest.mark.parametrize(
    "size", ["", "much", "2XB", "-1GB", "1e9", "1,5GB", "2GB 3", "9MB", "0", "GB", "9" * 18 + "TB", "9" * 400]
)
def test_wrong_sizes_on_the_command_line(size):
    told = CliRunner().invoke(app, ["cache", f"--max-size={size}"])
    assert told.exit_code == 2 and told.stdout == "" and "Traceback" not in told.stderr
    assert not default_cache_folder().exists()


def test_the_command_line_on_a_damaged_and_on_an_unusable_cache(tmp_path, monkeypatch):
    default_cache_folder().mkdir()
    damage(default_cache_folder(), "truncated")
    told = CliRunner().invoke(app, ["cache"])
    assert told.exit_code == 0 and told.stdout.startswith("0 features")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "file"))
    told = CliRunner().invoke(app, ["cache"])
    assert isinstance(told.exception, CoopError) and "cannot be used" in str(told.exception) and told.stdout == ""


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("COOP_CACHE")
    assert "coop" in str(default_cache_folder())
