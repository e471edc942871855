import io
import json
import sys
import tarfile

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from coopcli.data.streams import find_files, samples
from coopcli.errors import CoopError, UsageError


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_files_are_found_by_name_glob_range_and_url(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"part-{number:03}.tar", {})
    expected = [str(tmp_path / f"part-{number:03}.tar") for number in range(3)]
    assert find_files(str(tmp_path / "*.tar")) == find_files(str(tmp_path / "part-{000..002}.tar")) == expected
    assert find_files(expected[1]) == [expected[1]]
    assert find_files(f"file://{tmp_path}/*.tar") == [f"file://{file}" for file in expected]
    assert find_files(str(tmp_path)) == find_files("user/data") == []
    with pytest.raises(UsageError, match="there is no file"):
        find_files(str(tmp_path / "*.parquet"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"pip install 'coopcli\[s3\]'"):
        find_files("s3://bucket/part-*.tar")
    with pytest.raises(UsageError, match="cannot be opened"):
        find_files("nonsense://bucket/a.tar")


def test_tars_give_images_with_the_labels_beside_them(tmp_path):
    files = {
        "a/1.jpg": b"one", "a/1.cls": b"3\n", "a/2.json": b'{"label": " cat ", "width": 3}', "a/2.png": b"two",
        "a/3.0.webp": b"three", "a/3.0.txt": b"a dog", "a/4.jpg": b"four", "a/5.cls": b"9", "b/5.jpg": b"five",
        "b/5.json": b"[broken",
    }  # fmt: skip
    found = list(samples(write_tar(tmp_path / "x.tar", files)))
    assert found == [
        ("a/1.jpg", b"one", "3"), ("a/2.png", b"two", "cat"), ("a/3.0.webp", b"three", None), ("a/4.jpg", b"four", None),
        ("b/5.jpg", b"five", None),
    ]  # fmt: skip


def test_tables_give_images_of_bytes_or_structs_and_names_of_classes(tmp_path):
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": None}]
    table = pyarrow.table({"image": images, "label": [1, 0], "id": [7, 8]})
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    assert list(samples(str(tmp_path / "a.parquet"))) == [("0/1.png", b"one", "dog"), ("1", b"", "cat")]
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [b"x"], "mask": [b"y"], "kind": ["cat"]}), tmp_path / "b.parquet")
    assert list(samples(str(tmp_path / "b.parquet"), label_column="kind")) == [("0", b"x", "cat")]
    with pytest.raises(UsageError, match='no column "size"; it has: jpg, mask, kind'):
        list(samples(str(tmp_path / "b.parquet"), label_column="size"))


def test_files_in_memory_are_read_as_those_here(tmp_path):
    write_tar(tmp_path / "x.tar", {"1.jpg": b"one"})
    with fsspec.open("memory://bucket/x.tar", "wb") as file:
        file.write((tmp_path / "x.tar").read_bytes())
    (found,) = find_files("memory://bucket/*.tar")
    assert list(samples(found)) == [("1.jpg", b"one", None)]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    whole = tmp_path / name
    if name == "x.tar":
        write_tar(whole, {f"{n}.jpg": b"0" * 5000 for n in range(9)})
    else:
        pyarrow.parquet.write_table(pyarrow.table({"image": [b"0" * 5000]}), whole)
    for content in (b"nonsense" * 200, whole.read_bytes()[:-11000] or b"PAR1"):
        whole.write_bytes(content)
        with pytest.raises(CoopError, match=name):
            list(samples(str(whole)))
