import json

import pytest
from conftest import write_picture

from coopcli.errors import CoopError, UsageError
from coopcli.images import load_data, load_split_file


def test_flat_folder(photos):
    data = load_data(str(photos))
    assert data.class_names == data.folders == ("blue", "green", "red")
    assert list(data.splits) == ["all"] and len(data.splits["all"]) == 18
    first = data.splits["all"][0]
    assert first.name == "blue/0.png" and first.label == 0
    assert first.read() == (photos / "blue/0.png").read_bytes()


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folder(split_photos, val):
    (split_photos / "val").rename(split_photos / val)
    data = load_data(str(split_photos))
    assert {split: len(items) for split, items in data.splits.items()} == {"test": 9, "train": 12, "val": 6}
    assert data.splits["test"][0].name == "test/blue/0.png"


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


def test_missing_path():
    with pytest.raises(UsageError, match="no folder or file"):
        load_data("./nowhere")


def test_wrong_file(photos):
    with pytest.raises(UsageError, match="is a file"):
        load_data(str(photos / "red" / "0.png"))


def test_empty_class_folder(photos):
    (photos / "yellow").mkdir()
    with pytest.raises(CoopError, match=r'class folder ".*yellow" holds no images'):
        load_data(str(photos))


def test_empty_folder(tmp_path):
    with pytest.raises(CoopError, match="no class folders"):
        load_data(str(tmp_path))


def test_one_class_only(tmp_path):
    write_picture(tmp_path / "red" / "0.png")
    with pytest.raises(CoopError, match="one class only"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("text", ['{"red": "crimson"}', "red\tcrimson\n", '["blue", "green", "crimson"]'])
def test_classnames(photos, tmp_path, text):
    (tmp_path / "names").write_text(text)
    data = load_data(str(photos), classnames=tmp_path / "names")
    assert data.class_names == ("blue", "green", "crimson")
    assert data.folders == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("text", "reason"),
    [('["one"]', "lists 1 names for 3"), ("red crimson", "folder<TAB>name"), ('{"a": "b"}', "names none"), ("7", "must hold")],
)
def test_bad_classnames(photos, tmp_path, text, reason):
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match=reason):
        load_data(str(photos), classnames=tmp_path / "names")


def test_missing_classnames(photos, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_data(str(photos), classnames=tmp_path / "names")


def split_file(folder, rows):
    path = folder / "split_zhou_Toys.json"
    path.write_text(json.dumps(rows))
    return path


def test_split_file(photos, tmp_path):
    train = [["red/0.png", 1, "Deep Red"], ["blue/0.png", 0, "Sea Blue"]]
    path = split_file(tmp_path, {"train": train, "val": [], "test": [["red/1.png", 1, "Deep Red"]]})
    data = load_data(str(path), images_root=photos)
    assert (data.name, data.class_names, data.folders) == ("Toys", ("Sea Blue", "Deep Red"), ("blue", "red"))
    assert list(data.splits) == ["train", "test"]
    assert data.splits["train"][0].read() == (photos / "red/0.png").read_bytes()


def test_split_file_image_that_is_not_there(tmp_path):
    data = load_split_file(split_file(tmp_path, {"train": [["a/0.png", 0, "a"], ["b/0.png", 1, "b"]]}))
    with pytest.raises(CoopError, match="is that the right folder"):
        data.splits["train"][0].read()


@pytest.mark.parametrize(
    "rows", [[1, 2], {"train": [["a", 0]]}, {"train": [["a", 1, "b"]]}, {"train": [["a", 0, "b"], ["c", 0, "d"]]}, {}]
)
def test_bad_split_files(tmp_path, rows):
    with pytest.raises(CoopError):
        load_data(str(split_file(tmp_path, rows)))


def test_split_file_with_a_wrong_root(tmp_path):
    with pytest.raises(UsageError, match="--images"):
        load_data(str(split_file(tmp_path, {"train": []})), images_root=tmp_path / "nowhere")


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
