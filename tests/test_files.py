import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coopcli.errors import CoopError, UsageError
from coopcli.files import csv_of, parse_json, read_text, remove_partials, text_lines, write_atomically


def test_a_write_that_fails_leaves_what_was(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CoopError, match="No space left"):
        write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rows_as_csv():
    assert csv_of([{"a": 1, "b": None}, {"a": 'x, "y"\n', "b": 0}]) == 'a,b\n1,\n"x, ""y""\n",0\n'


# ------------------------------------------------------------------------------------------------ what is replaced


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_a_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "file").chmod(mode)
    write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new" / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_link_keeps_pointing_at_its_target(tmp_path, hops):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    target.write_bytes(b"before")
    for hop in range(hops):
        (tmp_path / f"link{hop}").symlink_to(target if not hop else f"link{hop - 1}")
    write_atomically(tmp_path / f"link{hops - 1}", b"after")
    assert (tmp_path / f"link{hops - 1}").is_symlink() and target.read_bytes() == b"after"
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere" / "new")
    write_atomically(tmp_path / "dangling", b"made")
    assert (tmp_path / "elsewhere" / "new").read_bytes() == b"made" and (tmp_path / "dangling").is_symlink()


def test_a_device_is_written_to(tmp_path):
    null = Path("/dev/null")
    before = null.stat()
    (tmp_path / "null").symlink_to(null)
    for path in (null, tmp_path / "null"):
        write_atomically(path, b"content")
    after = null.stat()
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    content, read = bytes(300_000), []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", content)
    reader.join(20)
    assert read == [content] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("as_file", [False, True])
def test_stdout_by_its_name(tmp_path, name, as_file):
    code = (
        "import os, pathlib; from coopcli.files import write_atomically\n"
        f"os.write(1, b'a'); write_atomically(pathlib.Path({name!r}), b'b')"
    )
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out if as_file else subprocess.PIPE, check=True)
    assert ((tmp_path / "out").read_bytes() if as_file else done.stdout) == b"ab"


@pytest.mark.parametrize("name", ["x", "x" * 245, "x" * 255, "ö" * 127])
def test_names_of_any_length(tmp_path, name):
    write_atomically(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 256)):
        with pytest.raises(CoopError, match="cannot be written: "):
            write_atomically(path, b"content")


# ------------------------------------------------------------------------------------------------ partial files


def test_no_planted_file_or_link_is_written_through(tmp_path, monkeypatch):
    """The name of the partial file cannot be guessed, and one that exists is not opened."""
    (tmp_path / "victim").write_bytes(b"dear")
    seen = []
    true = os.open

    def planting(path, flags, *mode, **more):
        if str(path).endswith(".partial"):
            seen.append(Path(path).name)
            if len(seen) == 1:
                Path(path).symlink_to(tmp_path / "victim")
        return true(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", planting)
    with pytest.raises(CoopError, match="File exists"):
        write_atomically(tmp_path / "file", b"content")
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "victim").read_bytes() == b"dear" and (tmp_path / "file").read_bytes() == b"content"
    assert len(set(seen)) == 2


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from coopcli import files
os.fsync = lambda descriptor: (print("written", flush=True), sys.stdin.read())
files.write_atomically(Path({str(tmp_path / "file")!r}), b"half")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    remove_partials(tmp_path)
    assert len(list(tmp_path.glob(".*.partial"))) == 1  # its process lives
    process.kill()
    process.communicate()
    (tmp_path / ".metrics.json.999999999.partial").write_bytes(b"")  # as earlier versions named them
    (tmp_path / ".somebody.partial").write_bytes(b"")
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".somebody.partial"]


@pytest.mark.parametrize(("age", "kept"), [(60, True), (3600, True), (10**6, False)])
def test_partial_files_of_another_machine_are_removed_when_old(tmp_path, age, kept):
    partial = tmp_path / ".coop-0badc0de-1-00.partial"
    partial.write_bytes(b"")
    os.utime(partial, (time.time() - age, time.time() - age))
    remove_partials(tmp_path)
    assert partial.exists() == kept


# ------------------------------------------------------------------------------------------------ text


def test_text_is_read_without_its_mark(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffé\r\n\r\n b\u2028c \n\td".encode())
    assert text_lines(read_text(tmp_path / "text", "table")) == ["é", " b\u2028c ", "\td"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "text").write_bytes("aé\n".encode(encoding))
    with pytest.raises(UsageError, match=r'table ".*text" cannot be read: it is not UTF-8 text.*; save it as UTF-8'):
        read_text(tmp_path / "text", "table", UsageError)


@pytest.mark.parametrize("name", ["none", "x\0y", ".", "x" * 300])
def test_text_that_cannot_be_read(tmp_path, name):
    with pytest.raises(CoopError, match=r"table .* cannot be read: "):
        read_text(tmp_path / name, "table")


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "-Infinity", "1" * 5000, '"\\ud800"', '{"\\udfff": 1}', "[" * 100_000, ""]
)
def test_what_is_not_json(text):
    with pytest.raises((ValueError, RecursionError)):
        parse_json(text)


def test_letters_of_two_halves_are_json():
    assert parse_json('["\\ud83d\\ude00", 1e5]') == ["😀", 1e5]
