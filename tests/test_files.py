import pytest

from coopcli.errors import CoopError
from coopcli.files import write_atomically


def test_a_write_that_fails_leaves_what_was(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CoopError, match="No space left"):
        write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
