import pytest

from coopcli.errors import UsageError
from coopcli.images import load_data


def test_local_data_set_of_the_datasets_library(photos, tmp_path):
    import datasets

    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    labels = [["blue", "green", "red"].index(path.split("/")[-2]) for path in paths]
    features = datasets.Features({"picture": datasets.Image(), "colour": datasets.ClassLabel(names=["Blue", "Green", "Red"])})
    table = datasets.Dataset.from_dict({"picture": paths, "colour": labels}, features=features)
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "saved")
    data = load_data(str(tmp_path / "saved"))
    assert data.class_names == ("Blue", "Green", "Red")
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 18, "val": 18}
    item = data.splits["train"][7]
    assert item.label == labels[7] and item.read() == (photos / "green" / "1.png").read_bytes()


def test_data_set_without_class_labels(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="no column that is known to hold images; say --image-column, one of: text"):
        load_data(str(tmp_path / "saved"))


def test_unknown_hub_id():
    with pytest.raises(UsageError, match="is no folder here, and no data set"):
        load_data("nobody/nothing")
