import json

import pytest
from conftest import write_picture

from coopcli.data.fewshot import draw_few_shot
from coopcli.data.lists import load_split_file, load_table, portable
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError


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


@pytest.mark.parametrize(
    ("listed", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("a b/ü\n.jpg", "a b/ü\n.jpg"),
        ("./a/b.jpg", "./a/b.jpg"),
        ("/data/a/b.jpg", "/data/a/b.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        (".\\a\\b.jpg", "a/b.jpg"),
        ("\\a\\b.jpg", "a/b.jpg"),
        ("a/b\\c.jpg", "a/b/c.jpg"),
        ("..\\a\\b.jpg", "../a/b.jpg"),
    ],
)
def test_paths_that_windows_wrote(listed, path):
    assert portable(listed) == path


@pytest.mark.parametrize("form", ["red\\{}", ".\\red\\{}", "\\red\\{}", "./red\\{}"])
def test_a_split_file_that_windows_wrote(photos, tmp_path, form):
    train = [[form.format("0.png"), 0, "crimson"], [form.format("1.png"), 0, "crimson"], ["blue/0.png", 1, "navy"]]
    data = load_data(str(split_file(tmp_path, {"train": train})), images_root=photos)
    assert [item.name for item in data.splits["train"]] == ["red/0.png", "red/1.png", "blue/0.png"]
    assert data.folders == ("red", "blue")
    assert data.splits["train"][1].read() == (photos / "red/1.png").read_bytes()


# ------------------------------------------------------------------------------------------------ tables


def table(folder, text, name="toys.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,label\nred/0.png,crimson\nblue/0.png,navy\n"),
        ("t.csv", "Label;Image Path\r\ncrimson;red\\0.png\r\nnavy;blue\\0.png\r\n"),
        ("t.csv", "\ufefffile_name,note,class_name\nred/0.png,,crimson\nblue/0.png,,navy\n"),
        ("t.CSV", 'image, class\n"red/0.png", "crimson"\nblue/0.png, navy \n'),
        ("t.tsv", "file\tname\nred/0.png\tcrimson\nblue/0.png\tnavy\n"),
        ("t.jsonl", '{"file_name": "red/0.png", "category": "crimson"}\n\n{"file_name": "blue/0.png", "category": "navy"}\n'),
    ],
)
def test_tables(photos, tmp_path, name, text):
    data = load_data(str(table(tmp_path, text, name)), images_root=photos)
    assert (data.name, data.class_names, list(data.splits)) == ("t", ("crimson", "navy"), ["all"])
    assert [(item.name, item.label) for item in data.splits["all"]] == [("red/0.png", 0), ("blue/0.png", 1)]
    assert data.splits["all"][0].read() == (photos / "red/0.png").read_bytes()


def test_a_split_column(photos, tmp_path, caplog):
    rows = ["red/0.png,red,train", "blue/0.png,blue,train", "red/1.png,red,Valid", "blue/1.png,blue,test"]
    data = load_data(str(table(tmp_path, "path,label,split\n" + "\n".join(rows))), photos)
    assert {split: [item.name for item in items] for split, items in data.splits.items()} == {
        "train": ["red/0.png", "blue/0.png"], "val": ["red/1.png"], "test": ["blue/1.png"],
    }  # fmt: skip
    for word in ("fold1", ""):
        rows[0] = f"red/0.png,red,{word}"
        data = load_data(str(table(tmp_path, "path,label,split\n" + "\n".join(rows))), photos)
        assert len(data.splits["all"]) == 4 and f'a column "split" with "{word}", which is no split' in caplog.text


def test_columns_that_are_chosen(photos, tmp_path, caplog):
    path = table(tmp_path, "id,where,breed,label\n1,red/0.png,crimson,7\n2,blue/0.png,navy,10\n3,blue/1.png,,9\n")
    data = load_data(str(path), photos, None, "where", "breed")
    assert data.class_names == ("crimson", "navy") and len(data.splits["all"]) == 2
    assert "1 of 3 images of" in caplog.text and "have no label and are left out" in caplog.text
    assert load_table(path, photos, "where").class_names == ("7", "9", "10")  # by size


@pytest.mark.parametrize(
    ("columns", "text", "kind", "reason"),
    [
        ((), "a,b\n1,2\n", UsageError, "known to hold images; say --image-column, one of: a, b"),
        ((), "path,b\n1,2\n", UsageError, "known to hold labels; say --label-column, one of: path, b"),
        (("x",), "path,b\n1,2\n", UsageError, 'no column "x" for images; say --image-column, one of: path, b'),
        ((None, "x"), "path,label\n1,2\n", UsageError, 'no column "x" for labels'),
        ((), "path,label\n", CoopError, "has no rows"),
        ((), "", CoopError, "has no rows"),
        ((), "path,label\na,b,c\n", CoopError, "a row has more fields than the header"),
        ((), 'path,label\n"a,b', CoopError, "cannot be read: unexpected end"),
        ((), "path,label\na,x\n,y\n", CoopError, "names no image in row 2"),
        ((), "path,label\na,\nb,\n", CoopError, "no labelled images"),
        ((), "path,label\na,x\nb,x\n", CoopError, "one class only"),
    ],
)
def test_tables_that_are_none(tmp_path, columns, text, kind, reason):
    with pytest.raises(CoopError, match=reason) as caught:
        load_data(str(table(tmp_path, text)), None, None, *columns)
    assert type(caught.value) is kind


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"a": 1'])
def test_lines_that_are_no_json_objects(tmp_path, content):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(CoopError, match=r"t\.jsonl\" cannot be read"):
        load_table(tmp_path / "t.jsonl")


def test_a_listed_image_that_is_not_there(photos, tmp_path):
    data = load_data(str(table(tmp_path, "path,label\nred/0.png,a\nred/99.png,b\n")), images_root=photos)
    with pytest.raises(
        CoopError, match=r'red/99\.png" cannot be read: it is not there; "toys\.csv" lists it relative to --images'
    ):
        data.splits["all"][1].read()


def test_metadata_of_an_image_folder(photos):
    rows = "\n".join(f"{path.parent.name}/{path.name},{path.parent.name}ish" for path in sorted(photos.rglob("*.png")))
    (photos / "metadata.csv").write_text(f"file_name,label\n{rows}\n")
    data = load_data(str(photos))
    assert (data.name, data.class_names) == ("photos", ("blueish", "greenish", "redish"))
    assert data.splits["all"][0].read() == (photos / "blue/0.png").read_bytes()


def test_metadata_of_each_split(split_photos):
    for split, part in {"train": "train", "validation": "val"}.items():
        (split_photos / part).rename(split_photos / split)
        paths = sorted((split_photos / split).rglob("*.png"))
        lines = [json.dumps({"file_name": f"{path.parent.name}/{path.name}", "class": path.parent.name}) for path in paths]
        (split_photos / split / "metadata.jsonl").write_text("\n".join(lines))
    data = load_data(str(split_photos))
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 12, "val": 6}
    assert data.splits["val"][0].read() == (split_photos / "validation/blue/0.png").read_bytes()


def test_images_of_one_name_in_two_splits_are_two(tmp_path):
    for split, count in {"train": 4, "test": 6}.items():
        for i in range(count):
            write_picture(tmp_path / "data" / split / f"{i}.png", seed=i + count)
        rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(count))
        (tmp_path / "data" / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    data = load_data(str(tmp_path / "data"))
    assert data.splits["test"][0].name == "test/0.png"
    assert len(draw_few_shot(data, 2, 1).test) == 6


def test_metadata_without_labels_leaves_the_folders(photos):
    (photos / "metadata.csv").write_text("file_name,caption\nred/0.png,a thing\nblue/0.png,a sea\n")
    assert load_data(str(photos)).class_names == ("blue", "green", "red")
    assert load_data(str(photos), label_column="caption").class_names == ("a sea", "a thing")
