import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coopcli.cache import FeatureCache, default_cache_folder


def vectors(n):
    return {bytes([i // 256, i % 256]) * 8: np.full(4, i, np.float32) for i in range(n)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1200))
def test_what_is_put_is_got(n):
    cache, there = FeatureCache(None), vectors(n)
    cache.put(there)
    got = cache.get([*there, b"absent" * 3])
    assert got.keys() == there.keys()
    assert all(np.array_equal(got[key], there[key]) for key in there)


def test_it_lasts_and_clears(tmp_path):
    FeatureCache(tmp_path).put(vectors(10))
    cache = FeatureCache(tmp_path)
    assert cache.size()[0] == 10 and cache.size()[1] > 0
    assert cache.clear() == 10
    assert FeatureCache(tmp_path).size()[0] == 0


@pytest.mark.parametrize("content", [b"this is no database at all" * 50, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_does_not_stop_work(tmp_path, content):
    (tmp_path / "features.sqlite").write_bytes(content)
    cache = FeatureCache(tmp_path)
    cache.put(vectors(3))
    assert len(cache.get(vectors(3))) == 3
    assert cache.problem and str(tmp_path) in cache.problem


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache")
    cache.put(vectors(2))
    assert len(cache.get(vectors(2))) == 2 and cache.problem


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("COOP_CACHE")
    assert "coop" in str(default_cache_folder())
