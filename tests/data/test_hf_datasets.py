import io
import tarfile

import pytest
from conftest import write_picture

from coopcli.data.dataset import DataSet
from coopcli.data.hf_datasets import from_datasets
from coopcli.data.load import describe, load_data
from coopcli.errors import CoopError, UsageError

datasets = pytest.importorskip("datasets")
NAMES = ["Blue", "Green", "Red"]


@pytest.fixture(autouse=True)
def own_tables(tmp_path, monkeypatch):
    """What the library makes of files goes elsewhere than into the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "tables")


@pytest.fixture
def paths(photos):
    return sorted(photos.rglob("*.png"))  # six of blue, of green, of red


def images_of(paths):
    return [{"bytes": path.read_bytes(), "path": path.name} for path in paths]


def labels_of(paths, names=(0, 1, 2)):
    return [names[("blue", "green", "red").index(path.parent.name)] for path in paths]


def typed(paths, **columns):
    """A data set with an image column and ClassLabels."""
    kinds = {name: datasets.ClassLabel(names=NAMES) for name in columns}
    features = datasets.Features({"picture": datasets.Image(), **kinds})
    return datasets.Dataset.from_dict({"picture": images_of(paths), **columns}, features=features)


def check(data: DataSet, paths, split, class_names=tuple(NAMES)):
    """That the split holds these images, in this order, with the right labels."""
    assert data.class_names == class_names and len(data.splits[split]) == len(paths)
    assert [item.label for item in data.splits[split]] == labels_of(paths)
    assert [item.read() for item in data.splits[split]] == [path.read_bytes() for path in paths]


# ------------------------------------------------------------------------------------------------ where it lies


def test_a_saved_data_set_with_splits(paths, tmp_path):
    table = typed(paths, colour=labels_of(paths))
    datasets.DatasetDict({"train": table, "validation": table.select(range(7)), "extra": table}).save_to_disk(tmp_path / "toys")
    data = load_data(str(tmp_path / "toys"))
    assert (data.name, list(data.splits)) == ("toys", ["train", "val", "extra"])
    check(data, paths, "train")
    check(data, paths[:7], "val")
    assert data.splits["val"][6].name == "validation/6"
    assert data.select("validation[5:]") == data.select("valid[5:]") == data.splits["val"][5:]


def test_a_saved_data_set_without_splits(paths, tmp_path):
    typed(paths, colour=labels_of(paths)).save_to_disk(tmp_path / "toys")
    check(load_data(str(tmp_path / "toys")), paths, "all")


@pytest.mark.parametrize("place", ["", "data", "train"])
def test_a_folder_of_parquet_files(paths, tmp_path, place):
    (tmp_path / "toys" / place).mkdir(parents=True)
    typed(paths, colour=labels_of(paths)).to_parquet(tmp_path / "toys" / place / "train-00000-of-00001.parquet")
    data = load_data(str(tmp_path / "toys"))
    assert data.name == "toys" and list(data.splits) == ["train"]
    check(data, paths, "train")


def test_one_parquet_file_that_another_program_wrote(paths, tmp_path):
    """Without the library's own description: images are structs or bytes, labels numbers or texts."""
    import pyarrow
    from pyarrow import parquet

    columns = {"img": images_of(paths), "Label": labels_of(paths, (7, 10, 30))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "toys.parquet")
    data = load_data(str(tmp_path / "toys.parquet"))
    assert data.name == "toys"
    check(data, paths, "all", ("7", "10", "30"))
    columns = {"photo": [path.read_bytes() for path in paths], "class": labels_of(paths, ("navy", "olive", "rose"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "bytes.parquet")
    with pytest.raises(UsageError, match="known to hold images; choose one with --image-column: photo, class"):
        load_data(str(tmp_path / "bytes.parquet"))
    check(load_data(str(tmp_path / "bytes.parquet"), image_column="photo"), paths, "all", ("navy", "olive", "rose"))


def test_one_arrow_file(paths, tmp_path):
    typed(paths, colour=labels_of(paths)).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    check(load_data(str(file)), paths, "all")


@pytest.mark.parametrize("as_folder", [True, False])
def test_webdataset_archives(paths, tmp_path, as_folder):
    (tmp_path / "toys").mkdir()
    with tarfile.open(tmp_path / "toys" / "train-000.tar", "w") as archive:
        for number, (path, label) in enumerate(zip(paths, labels_of(paths), strict=True)):
            for ending, content in (("png", path.read_bytes()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:03}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    data = load_data(str(tmp_path / "toys" / ("" if as_folder else "train-000.tar")))
    check(data, paths, "train" if as_folder else "all", ("0", "1", "2"))


def test_an_image_folder_with_a_table_of_metadata(photos, paths, tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = [path.relative_to(photos).as_posix() for path in paths]
    rows = {"file_name": names, "label": labels_of(paths, ("navy", "olive", "rose"))}
    parquet.write_table(pyarrow.table(rows), photos / "metadata.parquet")
    data = load_data(str(photos))
    assert data.class_names == ("navy", "olive", "rose")
    assert sorted(item.read() for item in data.splits["train"]) == sorted(path.read_bytes() for path in paths)


def test_an_id_that_is_not_there():
    with pytest.raises(UsageError, match=r'no file or folder "nobody/nothing" here, and no data set of that name could'):
        load_data("nobody/nothing")


def test_a_file_that_is_damaged(tmp_path):
    (tmp_path / "toys.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UsageError, match=r'toys\.parquet" cannot be read as a data set: '):
        load_data(str(tmp_path / "toys.parquet"))


# ------------------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize("name", ["label", "labels", "class", "target", "CLS", "class_name"])
@pytest.mark.parametrize("values", [("a", "b", "c"), (2, 3, 11), (-1, 0, 1)])
def test_labels_by_name(paths, name, values):
    table = datasets.Dataset.from_dict({"picture": images_of(paths), "note": ["x"] * 18, name: labels_of(paths, values)})
    data = from_datasets(table.cast_column("picture", datasets.Image()))
    check(data, paths, "all", tuple(map(str, values)))


def test_truth_values_as_labels(paths):
    table = datasets.Dataset.from_dict({"image": images_of(paths), "label": labels_of(paths, (False, True, True))})
    data = from_datasets(table)
    assert data.class_names == ("False", "True") and [item.label for item in data.splits["all"]] == [0] * 6 + [1] * 12


def test_classes_are_those_of_all_splits(paths):
    tables = {
        split: datasets.Dataset.from_dict({"image": images_of(part), "label": labels_of(part, ("c", "b", "a"))})
        for split, part in {"train": paths[6:], "test": paths[:6]}.items()
    }
    data = from_datasets(datasets.DatasetDict(tables))
    assert data.class_names == ("a", "b", "c") and {item.label for item in data.splits["test"]} == {2}


def test_several_columns_of_a_kind_are_a_question(paths):
    table = typed(paths, fine=labels_of(paths), coarse=[0] * 18)
    with pytest.raises(UsageError, match=r"2 label columns; choose one with --label-column: fine, coarse"):
        from_datasets(table)
    check(from_datasets(table, label_column="fine"), paths, "all")
    check(from_datasets(table.rename_column("fine", "label")), paths, "all")
    table = (
        table.rename_column("fine", "label").add_column("mask", images_of(paths[::-1])).cast_column("mask", datasets.Image())
    )
    with pytest.raises(UsageError, match=r"2 image columns; choose one with --image-column: picture, mask"):
        from_datasets(table)
    check(from_datasets(table, image_column="picture"), paths, "all")
    check(from_datasets(table.rename_column("picture", "image")), paths, "all")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "known to hold labels"),
        ({"label": [[0, 1]] * 18}, "known to hold labels"),
        ({"label": [0.5] * 18}, "whole numbers or texts\\) but Value"),
        ({"label": [None] * 18}, "labels no image|whole numbers or texts"),
        ({"label": [""] * 18}, 'column "label" of data labels no image'),
    ],
)
def test_columns_that_are_no_labels(paths, columns, reason):
    table = datasets.Dataset.from_dict({"picture": images_of(paths), **columns}).cast_column("picture", datasets.Image())
    with pytest.raises(CoopError, match=reason):
        from_datasets(table)


def test_chosen_columns_that_hold_something_else(paths):
    table = typed(paths, label=labels_of(paths)).add_column("number", [1.5] * 18).add_column("tags", [["a", "b"]] * 18)
    with pytest.raises(CoopError, match='column "number" of data does not hold images'):
        from_datasets(table, image_column="number")
    with pytest.raises(CoopError, match='column "tags" of data does not hold labels'):
        from_datasets(table, label_column="tags")
    with pytest.raises(
        UsageError, match='no column "x" for labels; choose one with --label-column: picture, label, number, tags'
    ):
        from_datasets(table, label_column="x")


def test_images_without_label_are_left_out(paths, caplog):
    table = typed(paths, label=[*labels_of(paths[:-2]), -1, None])
    data = from_datasets(datasets.DatasetDict({"train": table, "test": typed(paths[:3], label=[-1] * 3)}), "toys")
    check(data, paths[:-2], "train")
    assert list(data.splits) == ["train"]  # the test labels are secret
    assert "2 of 18 images of toys, train, which have no label" in caplog.text and "3 of 3 images of toys, test" in caplog.text


# ------------------------------------------------------------------------------------------------ images


def test_images_that_are_not_there(paths, tmp_path):
    held = [
        *images_of(paths[:1]),
        None,
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": None, "path": str(paths[3])},
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    table = datasets.Dataset.from_dict({"image": held, "label": [0, 1, 2, 0]}, features=features)
    items = from_datasets(table).splits["all"]
    assert items[0].read() == paths[0].read_bytes() and items[3].read() == paths[3].read_bytes()
    with pytest.raises(CoopError, match='image "all/1" cannot be read: the data set has no image in this row'):
        items[1].read()
    with pytest.raises(CoopError, match=r'gone\.png" cannot be read: it does not exist'):
        items[2].read()


def test_rows_that_were_shuffled(paths):
    table = typed(paths, label=labels_of(paths)).shuffle(seed=3)
    data = from_datasets(table)
    assert [item.label for item in data.splits["all"]] == table["label"][:]
    by_content = {path.read_bytes(): label for path, label in zip(paths, labels_of(paths), strict=True)}
    assert all(by_content[item.read()] == item.label for item in data.splits["all"])


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_stream_is_refused_with_the_reason(paths, as_dict):
    stream = typed(paths, label=labels_of(paths)).to_iterable_dataset()
    stream = datasets.IterableDatasetDict({"train": stream}) if as_dict else stream
    with pytest.raises(UsageError, match=r"toys is streamed, .* few-shot draws and accuracy need the list"):
        from_datasets(stream, "toys")


@pytest.mark.parametrize("ending", ["parquet", "folder"])
def test_paths_in_a_table_start_from_the_image_folder(photos, paths, tmp_path, ending, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    names = [path.relative_to(photos).as_posix() for path in paths]
    columns = {"file_name": names, "label": labels_of(paths, ("navy", "olive", "rose"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "lists" / "toys.parquet")
    source = tmp_path / "lists" / ("toys.parquet" if ending == "parquet" else "")
    if ending == "parquet":
        check(load_data(str(source), photos), paths, "all", ("navy", "olive", "rose"))
    split = "all" if ending == "parquet" else "train"
    with pytest.raises(CoopError, match=r"does not exist; .* relative to --images"):
        load_data(str(source)).splits[split][0].read()
    if ending == "folder":
        return
    for path in paths:  # beside the table
        write_picture(tmp_path / "lists" / path.relative_to(photos))
        (tmp_path / "lists" / path.relative_to(photos)).write_bytes(path.read_bytes())
    check(load_data(str(source)), paths, split, ("navy", "olive", "rose"))


def test_a_column_of_splits(paths):
    table = typed(paths, label=labels_of(paths)).add_column("subset", ["Train", "test"] * 9)
    data = from_datasets(table)
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 9, "test": 9}
    check(data, paths[1::2], "test")
    assert describe(data) == 'data: 3 classes, 9 train + 9 test images; columns: image "picture", label "label", split "subset"'


def test_two_label_columns_without_a_type_are_a_question(paths):
    table = typed(paths, x=labels_of(paths)).remove_columns("x").add_column("label", labels_of(paths))
    table = table.add_column("category", ["a", "b"] * 9)
    with pytest.raises(UsageError, match=r"several columns that may hold labels \(label, category\)"):
        from_datasets(table)
    assert from_datasets(table, label_column="category").class_names == ("a", "b")
