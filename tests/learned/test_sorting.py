"""Moving and linking images: nothing is overwritten, names are those of the classes."""

import errno
import os

import pytest

from coopcli.errors import CoopError
from coopcli.learned import sorting
from coopcli.learned.sorting import class_folders, sort_image


def test_class_names_become_folders():
    folders = class_folders(("cat", "a/b", "a-b", "..", "", "C: drive", "e\x1b", "\ud800"))
    assert folders["cat"] == "cat" and len(set(folders.values())) == 8
    assert not any(set(name) & set("/\\:\x1b") or name.strip(" .") != name or not name for name in folders.values())


@pytest.mark.parametrize("link", [False, True])
def test_a_taken_name_gets_a_number(tmp_path, link):
    places = []
    for k in range(3):
        image = tmp_path / f"from{k}" / "cat.jpg"
        image.parent.mkdir()
        image.write_text(str(k))
        places.append(sort_image(image, tmp_path / "sorted" / "cat", link))
        assert image.exists() == link
    assert [place.name for place in places] == ["cat.jpg", "cat (2).jpg", "cat (3).jpg"]
    assert [place.read_text() for place in places] == ["0", "1", "2"]


def test_again_changes_nothing(tmp_path):
    image = tmp_path / "cat.jpg"
    image.write_text("cat")
    first = sort_image(image, tmp_path / "links", link=True)
    assert sort_image(image, tmp_path / "links", link=True) == first and len(list((tmp_path / "links").iterdir())) == 1
    moved = sort_image(image, tmp_path / "cat")
    assert sort_image(moved, tmp_path / "cat") == moved and moved.read_text() == "cat"


def test_links_are_moved_as_links_to_the_same_file(tmp_path):
    (tmp_path / "real.jpg").write_text("cat")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "link.jpg").symlink_to("../real.jpg")
    place = sort_image(tmp_path / "from" / "link.jpg", tmp_path / "deep" / "er" / "cat")
    assert place.is_symlink() and place.read_text() == "cat" and (tmp_path / "real.jpg").exists()


def test_on_another_disk_the_image_is_copied_and_never_over_another(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    for k in range(2):
        (tmp_path / "cat.jpg").write_text(str(k))
        sort_image(tmp_path / "cat.jpg", tmp_path / "cat")
    assert {path.name: path.read_text() for path in (tmp_path / "cat").iterdir()} == {"cat.jpg": "0", "cat (2).jpg": "1"}

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "cat.jpg").write_text("2")
    monkeypatch.setattr(sorting.shutil, "copyfileobj", full)
    with pytest.raises(CoopError, match=r"cat.jpg.*cannot be moved.*No space"):
        sort_image(tmp_path / "cat.jpg", tmp_path / "cat")
    assert (tmp_path / "cat.jpg").read_text() == "2" and len(list((tmp_path / "cat").iterdir())) == 2
