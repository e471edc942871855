import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coopcli.errors import UsageError
from coopcli.settings import changes, read_settings, to_toml

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
values = st.one_of(scalars, st.lists(scalars, max_size=3))
tables = st.dictionaries(texts, values, max_size=5)


@given(st.dictionaries(texts, st.one_of(values, tables), max_size=5))
def test_toml_comes_back_as_it_went(settings):
    assert tomllib.loads(to_toml(settings)) == settings


def test_none_paths_and_tuples():
    settings = {"data": Path("a/b"), "lr": None, "template": ("{}", "a {}"), "resolved": {"warm": None, "n": 1}}
    assert to_toml(settings) == 'data = "a/b"\ntemplate = ["{}", "a {}"]\n\n[resolved]\nn = 1\n'


def test_a_path_that_is_no_unicode_is_one_line():
    with pytest.raises(UsageError, match=r"udcff.*rename"):
        to_toml({"data": "photos\udcff"})


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r'"nowhere.toml" cannot be read: No such file'):
        read_settings(Path("nowhere.toml"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path)
    for wrong in (b"shots = ", b"shots = 1\nshots = 2", b"a = " + b"1" * 5000, b'a = "\\ud800"', b"a = " + b"[" * 5000):
        (tmp_path / "wrong.toml").write_bytes(wrong)
        with pytest.raises(UsageError, match=r'wrong.toml" is not valid TOML'):
            read_settings(tmp_path / "wrong.toml")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-32"])
def test_another_encoding_is_refused_and_a_mark_is_not(tmp_path, encoding):
    (tmp_path / "other.toml").write_bytes('data = "ä"\n'.encode(encoding))
    with pytest.raises(UsageError, match=r'other.toml" cannot be read: it is not UTF-8 text.*; save it as UTF-8'):
        read_settings(tmp_path / "other.toml")
    (tmp_path / "marked.toml").write_bytes('data = "ä"\r\n'.encode("utf-8-sig"))
    assert read_settings(tmp_path / "marked.toml") == {"data": "ä"}


def test_changes():
    before = {"lr": 0.002, "csc": False, "init": None, "resolved": {"fingerprint": "a"}}
    assert changes(before, before) == changes(read(before), before) == changes(before, before | {"init": None}) == []
    after = {"lr": 0.1, "csc": False, "resolved": {"fingerprint": "b"}, "seed": 1}
    assert changes(before, after) == ["lr: 0.002 -> 0.1", "fingerprint: a -> b", "seed: None -> 1"]
    assert changes({"template": ["{}"]}, {"template": ("{}",)}) == []


def read(settings):
    return tomllib.loads(to_toml(settings))
