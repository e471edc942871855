import os
from pathlib import Path

import pytest
from conftest import write_picture

from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import readable_features
from coopcli.data.load import describe, load_data
from coopcli.errors import CoopError


def test_flat_folder(photos):
    data = load_data(str(photos))
    assert data.class_names == data.folders == ("blue", "green", "red")
    assert list(data.splits) == ["all"] and len(data.splits["all"]) == 18
    first = data.splits["all"][0]
    assert first.name == "blue/0.png" and first.label == 0
    assert first.read() == (photos / "blue/0.png").read_bytes()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "valid", "Test"), ("TRAINING", "Validation", "testing"), ("tr", "dev", "te"),
     ("training_set", "val-set", "eval"), ("Train Data", "DEVEL", "held-out"), ("train2017", "val2017", "test2017"),
     ("train_images", "images_val", "01_test"), ("Training-Images", "valid.split", "Test Set 1")],
)  # fmt: skip
def test_split_folder(split_photos, train, val, test):
    for old, new in {"train": train, "val": val, "test": test}.items():
        (split_photos / old).rename(split_photos / new)
    data = load_data(str(split_photos))
    assert {split: len(items) for split, items in data.splits.items()} == {"test": 9, "train": 12, "val": 6}
    assert data.splits["test"][0].name == f"{test}/blue/0.png" and not data.left_out


def test_hidden_files_runs_and_nested_folders(photos):
    write_picture(photos / "red" / "more" / "deep.jpg")
    write_picture(photos / ".thumbnails" / "x.png")
    write_picture(photos / "coop-runs" / "x.png")
    (photos / "red" / "._0.png").write_bytes(b"junk")
    (photos / "red" / "notes.txt").write_text("no image")
    data = load_data(str(photos))
    assert data.class_names == ("blue", "green", "red")
    assert [item.name for item in data.splits["all"]].count("red/more/deep.jpg") == 1
    assert len(data.splits["all"]) == 19


def test_symbolic_link_loop_ends(photos):
    (photos / "red" / "loop").symlink_to(photos)
    assert len(load_data(str(photos)).splits["all"]) == 18


def test_empty_class_folder(photos):
    (photos / "yellow").mkdir()
    with pytest.raises(CoopError, match=r'class folder ".*yellow" has no images'):
        load_data(str(photos))


def test_empty_folder(tmp_path):
    with pytest.raises(CoopError, match="no class folders"):
        load_data(str(tmp_path))


def test_splits_without_class_folders(photos):
    for split in ("train", "test"):
        write_picture(photos.parent / "flat" / split / "0.png")
    with pytest.raises(CoopError, match=r"are splits \(test, train\) without class folders"):
        load_data(str(photos.parent / "flat"))


def test_only_a_train_split(split_photos):
    for split in ("val", "test"):
        (split_photos / split).rename(split_photos.parent / split)
    data = load_data(str(split_photos))
    assert list(data.splits) == ["train"] and data.class_names == ("blue", "green", "red")


def test_links_to_folders(photos, tmp_path):
    """A class may be one, and within a class there may be some; each folder counts once."""
    for name in ("elsewhere", "more"):
        write_picture(tmp_path / name / "1.png")
    (photos / "yellow").symlink_to(tmp_path / "elsewhere")
    (photos / "red" / "more").symlink_to(tmp_path / "more")
    (photos / "red" / "again").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "more")
    data = load_data(str(photos))
    assert data.class_names == ("blue", "green", "red", "yellow")
    assert [item.name for item in data.splits["all"][12:]] == [
        *(f"red/{i}.png" for i in range(6)), "red/again/1.png", "yellow/1.png",
    ]  # fmt: skip


def test_links_to_images(photos, tmp_path):
    (photos / "red" / "linked.png").symlink_to(photos / "blue" / "0.png")
    (photos / "red" / "nothing.png").symlink_to(tmp_path / "nothing")
    items = {item.name: item for item in load_data(str(photos)).splits["all"]}
    assert items["red/linked.png"].read() == (photos / "blue" / "0.png").read_bytes()
    with pytest.raises(CoopError, match="does not exist"):  # not passed over: an image is missing
        items["red/nothing.png"].read()


def test_a_folder_that_this_user_may_not_read(photos, monkeypatch):
    true = os.scandir

    def refuse(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    (photos / "red" / "deep").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)  # root may read all
    with pytest.raises(CoopError, match=r'folder ".*red/deep" cannot be read: Permission denied'):
        load_data(str(photos))


def test_data_that_this_user_may_not_read(photos, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CoopError, match=r'folder ".*photos" cannot be read: Permission denied'):
        load_data(str(photos))


def test_files_of_every_kind_in_one_folder(mini, tmp_path, caplog):
    """What can be read is, under its own name; the rest is counted, and nothing hangs."""
    red, blue = tmp_path / "photos" / "red", tmp_path / "photos" / "blue"
    good = ["a b.png", "ü中.JPG", "new\nline.png", "[red].png", "'\".png", " .png"]
    for k, name in enumerate(good):
        write_picture(red / "0.png", seed=k)
        (red / "0.png").rename(red / name)  # a PNG by its bytes, whatever its ending
    write_picture(blue / "0.png")
    content = (blue / "0.png").read_bytes()
    with open(os.fsencode(red) + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(content)
    (red / "folder.png").mkdir()
    (red / "empty.png").write_bytes(b"")
    (red / "half.png").write_bytes(content[: len(content) // 2])
    (red / "page.gif").write_text("<html>")
    os.mkfifo(red / "pipe.jpg")
    (red / "link.png").symlink_to(red / "link.png")
    items = load_data(str(tmp_path / "photos")).splits["all"]
    kept, features = readable_features(mini, items, FeatureCache(None))
    assert {item.name for item in kept} == {"blue/0.png", "red/\\udcff.png", *(f"red/{name}" for name in good)}
    assert features.shape == (8, mini.feature_width) and "skipped 5 of 13 images" in caplog.text


# ------------------------------------------------------------------------------------------------ classes or splits?


@pytest.mark.parametrize("split", ["train", "Test", "validation"])
def test_a_class_called_as_a_split_hides_no_other_class(photos, split):
    """A train is a vehicle, too; its folder may have subfolders."""
    write_picture(photos / split / "0.png")
    assert load_data(str(photos)).class_names == tuple(sorted(["blue", "green", "red", split]))
    write_picture(photos / split / "steam" / "0.png")
    with pytest.raises(
        CoopError, match=rf'has "{split}", which looks like a split, beside other .*"blue", "green", "red".* rename'
    ):
        load_data(str(photos))


def test_two_folders_of_one_split_are_a_question(split_photos):
    (split_photos / "test").rename(split_photos / "Validation")
    with pytest.raises(CoopError, match=r'has several val folders \("Validation", "val"\); merge or rename'):
        load_data(str(split_photos))


def test_what_lies_beside_splits_is_counted(split_photos):
    write_picture(split_photos / "unlabelled" / "0.png")
    write_picture(split_photos / "sheet.png")
    write_picture(split_photos / "train" / "stray.png")
    (split_photos / "annotations").mkdir()
    data = load_data(str(split_photos))
    assert len(data.splits["train"]) == 12
    assert data.left_out == ('folders "annotations", "unlabelled"', '2 images outside class folders (first: "sheet.png")')


# ------------------------------------------------------------------------------------------------ what is passed over


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN", ".AppleDouble", "lost+found"])
def test_folders_of_desktops_and_servers_are_no_data(photos, name):
    for place in (photos, photos / "red", photos / "red" / "more"):
        write_picture(place / name / "0-checkpoint.png")
    write_picture(photos / "red" / "more" / "0.png")
    data = load_data(str(photos))
    assert data.class_names == ("blue", "green", "red") and len(data.splits["all"]) == 19 and not data.left_out


def test_files_of_other_endings_are_counted(photos):
    for name in ("a.svg", "b.SVG", "c.xcf", "labels.txt", "README"):
        (photos / "red" / name).write_text("x")
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (photos / "red" / junk).write_text("x")
    data = load_data(str(photos))
    assert data.left_out == ("5 files by ending (.svg 2, none 1, .xcf 1, .txt 1)",)
    assert describe(data) == f"photos: 3 classes, 18 images; left out: {data.left_out[0]}"
    for k in range(6):
        (photos / "blue" / f"x.end{k}").write_text("x")
    assert load_data(str(photos)).left_out[0].endswith("and 5 more endings)")


def test_class_folders_one_folder_further_down_are_named(tmp_path):
    write_picture(tmp_path / "download" / "photos" / "red" / "0.png")
    write_picture(tmp_path / "download" / "photos" / "blue" / "0.png")
    with pytest.raises(CoopError, match=r'only one class \("photos"\).*; did you mean ".*download/photos"\?'):
        load_data(str(tmp_path / "download"))
    write_picture(tmp_path / "single" / "red" / "0.png")
    with pytest.raises(CoopError, match=r"two or more$"):
        load_data(str(tmp_path / "single"))


def test_accents_written_in_two_ways_are_told(tmp_path, caplog):
    """As macOS and other systems write them: the same to the eye, two folders."""
    for name in ("caf\u00e9", "cafe\u0301", "bar"):
        write_picture(tmp_path / "places" / name / "0.png")
    load_data(str(tmp_path / "places"))
    assert "which cannot tell them apart" in caplog.text
