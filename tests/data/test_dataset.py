import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coopcli.data.dataset import DataSet, ImageItem, by_split_name, class_order, columns_named, file_item, read_file, split_name
from coopcli.errors import CoopError, UsageError


def data_of(**sizes):
    splits = {split: tuple(ImageItem(f"{split}/{i}", i % 2, bytes) for i in range(size)) for split, size in sizes.items()}
    return DataSet("toys", ("a", "b"), ("a", "b"), splits)


def names(items):
    return [item.name for item in items]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("train", [f"train/{i}" for i in range(12)]),
        ("val", ["val/0", "val/1", "val/2"]),
        ("valid", ["val/0", "val/1", "val/2"]),
        ("validation", ["val/0", "val/1", "val/2"]),
        ("validation[1:]", ["val/1", "val/2"]),
        ("train[:50%]", [f"train/{i}" for i in range(6)]),
        ("train[90%:]", ["train/11"]),
        ("train[-2:]", ["train/10", "train/11"]),
        ("val[:1]+test", ["val/0", "test/0", "test/1", "test/2"]),
        ("all[11:13]", ["train/11", "val/0"]),
    ],
)
def test_parts_of_splits(wanted, expected):
    assert names(data_of(train=12, val=3, test=3).select(wanted)) == expected


def test_all_is_every_split_or_the_one_there_is():
    assert len(data_of(train=12, val=3, test=3).select("all")) == 18
    assert names(data_of(all=2).select("all")) == names(data_of(all=2).select("all[:100%]")) == ["all/0", "all/1"]


@given(st.integers(1, 30), st.none() | st.integers(-40, 40), st.none() | st.integers(-40, 40))
def test_numbers_cut_as_in_python(size, start, stop):
    data = data_of(train=size)
    expected = [f"train/{i}" for i in range(size)][start:stop]
    spec = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    try:
        assert names(data.select(spec)) == expected
    except UsageError as error:  # the library allows no start beyond the end
        assert "contains no images" in str(error) or "is not a part of toys" in str(error)
        assert not expected or min(start or 0, stop or 0) < -size


@pytest.mark.parametrize("wanted", ["train[:50%", "train[a:]", "nope[:3]", "train[:3]+nope", "", "train/val", "train[1:2:3]"])
def test_what_is_no_part(wanted):
    with pytest.raises(UsageError, match=r"is not a part of toys; write a split \(all, train, test\)"):
        data_of(train=12, test=3).select(wanted)


def test_a_missing_split():
    with pytest.raises(UsageError, match="toys has no val split; it has: train"):
        data_of(train=12).select("val")
    with pytest.raises(UsageError, match=r'"train\[3:3\]" contains no images of toys'):
        data_of(train=12).select("train[3:3]")


def test_splits_under_their_usual_names():
    found = by_split_name([("train", 1), ("validation", 2), ("valid", 3), ("extra", 4)])
    assert found == {"train": 1, "val": 2, "valid": 3, "extra": 4}


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_whole_numbers_are_ordered_by_size(numbers):
    assert class_order(map(str, numbers)) == [str(number) for number in sorted(set(numbers))]


def test_other_labels_are_ordered_by_the_alphabet():
    assert class_order(["10", "9", "cat", "9"]) == ["10", "9", "cat"]


def test_columns_by_name():
    columns = ["Image_Path", " class-name", "Label", "label"]
    assert columns_named(columns, ("path", "imagepath")) == ["Image_Path"]
    assert columns_named(columns, ("classname",)) == [" class-name"]
    assert columns_named(columns, ("label", "classname")) == ["Label", "label", " class-name"]
    assert columns_named(columns, ("target",)) == []


# ------------------------------------------------------------------------------------------------ files


def test_a_file_is_read_when_asked(tmp_path):
    (tmp_path / "a b\nü.jpg").write_bytes(b"123")
    item = file_item(tmp_path / "a b\nü.jpg", "a b\nü.jpg", 3)
    assert (item.name, item.label, item.path) == ("a b\nü.jpg", 3, tmp_path / "a b\nü.jpg") and item.read() == b"123"


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for a writer
    for name, reason in {
        "folder.jpg": "it is a folder",
        "broken.jpg": "it does not exist; look elsewhere",
        "loop.jpg": "Too many levels of symbolic links",
        "pipe.jpg": "it is not a regular file",
        "file\0.jpg": "null",
        f"{'x' * 300}.jpg": "File name too long",
    }.items():
        with pytest.raises(CoopError, match=f'image ".*" cannot be read: .*{reason}'):
            read_file(tmp_path / name, "; look elsewhere")


def test_a_file_beyond_the_bound_is_not_read(tmp_path):
    """As large as a disk, on paper: a sparse file."""
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(CoopError, match=r'large.jpg" cannot be read: it has 204,800 MiB, more than the 256 MiB'):
        read_file(tmp_path / "large.jpg")


def test_a_file_that_this_user_may_not_read(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.jpg").write_bytes(b"123")
    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)  # root may read all
    with pytest.raises(CoopError, match=r'image ".*a\.jpg" cannot be read: Permission denied'):
        read_file(tmp_path / "a.jpg")


def test_a_name_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"123")
    (found,) = tmp_path.iterdir()
    item = file_item(found, found.name)
    assert item.name == "\\udcff.jpg" and item.read() == b"123"


@pytest.mark.parametrize("word", ["test_tube", "trains", "train_station", "dev1", "te2", "images", "2017", "contest", ""])
def test_words_that_are_no_split(word):
    assert split_name(word) is None
