import json

import pytest
from conftest import SHARED_DATA

from coopcli.data.load import load_data
from coopcli.demo.satellites import ARCHIVE, TEST, TRAIN, unpack_satellites


def test_ten_classes_of_train_and_test_pictures(tmp_path):
    unpack_satellites(tmp_path / "satellites")
    data = load_data(str(tmp_path / "satellites"))
    assert len(data.class_names) == 10 and "highway_or_road" in data.class_names
    for split, count in (("train", TRAIN), ("test", TEST)):
        assert [sum(item.label == label for item in data.splits[split]) for label in range(10)] == [count] * 10
    assert "MIT License" in (tmp_path / "satellites" / "LICENSE.txt").read_text()
    assert ARCHIVE.stat().st_size < 2_000_000


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the official split of EuroSAT")
def test_pictures_are_of_the_official_split(tmp_path):
    """No test picture is trained on, and each is the very file of the data set."""
    unpack_satellites(tmp_path)
    official = json.loads((SHARED_DATA / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    for split in ("train", "test"):
        listed = {path.rpartition("/")[2]: path for path, _, _ in official[split]}
        for picture in (tmp_path / split).rglob("*.jpg"):
            assert picture.read_bytes() == (SHARED_DATA / "eurosat" / "2750" / listed[picture.name]).read_bytes()
