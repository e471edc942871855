import json

import pytest
from conftest import write_picture

from coopcli.data.fewshot import draw_few_shot
from coopcli.data.lists import load_split_file, load_table, portable
from coopcli.data.load import describe, load_data
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
    assert dict(data.columns) == {"image": "path", "label": "label", "split": "split"}
    other = "\n".join(rows).replace("blue,test", "blue,Extra")
    assert list(load_data(str(table(tmp_path, f"path,label,split\n{other}")), photos).splits) == ["train", "val", "extra"]
    with pytest.raises(CoopError, match=r'toys\.csv" has no split in row 4'):
        load_data(str(table(tmp_path, "path,label,split\n" + "\n".join(rows).replace("blue,test", "blue,"))), photos)
    assert not caplog.records
    folds = [row.rpartition(",")[0] + f",fold{k}" for k, row in enumerate(rows)]
    data = load_data(str(table(tmp_path, "path,label,split\n" + "\n".join(folds))), photos)
    assert len(data.splits["all"]) == 4 and 'a column "split" with "fold0", which is not a split' in caplog.text
    folds = [row.replace(",fold", ",") for row in folds]
    data = load_data(str(table(tmp_path, "path,label,fold\n" + "\n".join(folds))), photos)
    assert len(data.splits["all"]) == 4 and 'a column "fold" with "0", which is not a split' in caplog.text
    flags = [row.replace(",0", ",true").replace(",1", ",maybe") for row in folds]
    data = load_data(str(table(tmp_path, "path,label,is_valid\n" + "\n".join(flags))), photos)
    assert len(data.splits["all"]) == 4 and 'column "is_valid" with "maybe", which is neither true nor false' in caplog.text


def test_columns_that_are_chosen(photos, tmp_path, caplog):
    path = table(tmp_path, "id,where,breed,label\n1,red/0.png,crimson,7\n2,blue/0.png,navy,10\n3,blue/1.png,,9\n")
    data = load_data(str(path), photos, None, "where", "breed")
    assert data.class_names == ("crimson", "navy") and len(data.splits["all"]) == 2
    assert "left out 1 of 3 images of" in caplog.text and "which have no label" in caplog.text
    assert load_table(path, photos, "where").class_names == ("7", "9", "10")  # by size


@pytest.mark.parametrize(
    ("columns", "text", "kind", "reason"),
    [
        ((), "a,b\n1,2\n", UsageError, "known to hold images; choose one with --image-column: a, b"),
        ((), "path,b\n1,2\n", UsageError, "known to hold labels; choose one with --label-column: path, b"),
        (("x",), "path,b\n1,2\n", UsageError, 'no column "x" for images; choose one with --image-column: path, b'),
        ((None, "x"), "path,label\n1,2\n", UsageError, 'no column "x" for labels'),
        ((), "path,label\n", CoopError, "has no rows"),
        ((), "", CoopError, "has no rows"),
        ((), "path,label\na,b,c\n", CoopError, "row 1 below its header has more fields than the header"),
        ((), 'path,label\n"a,b', CoopError, "cannot be read: unexpected end"),
        ((), "path,label\na,x\n,y\n", CoopError, "names no image in row 2"),
        ((), "path,label\na,\nb,\n", CoopError, "no labelled images"),
        ((), "path,label\na,x\nb,x\n", CoopError, "only one class"),
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
        CoopError, match=r'red/99\.png" cannot be read: it does not exist; "toys\.csv" lists it relative to --images'
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


# ------------------------------------------------------------------------------------------------ which columns


def rows_of(photos, *extra):
    """Two images each of two classes, with further cells for each row."""
    images = ["red/0.png", "red/1.png", "blue/0.png", "blue/1.png"]
    return "".join(
        ",".join([image, image.partition("/")[0], *cells]) + "\n" for image, *cells in zip(images, *extra, strict=True)
    )


@pytest.mark.parametrize(
    ("column", "words", "splits"),
    [
        ("split", ("train", "TEST", "Training", "testing"), ["train", "test"]),
        ("subset", ("Train", "val", "train", "dev"), ["train", "val"]),
        ("data set", ("train", "test", "train", "test"), ["train", "test"]),
        ("Fold", ("train", "test", "train", "test"), ["train", "test"]),
        ("is_valid", ("False", "True", "False", "True"), ["train", "val"]),
        ("is_test", ("0", "1", "0", "1"), ["train", "test"]),
        ("is-train", ("1.0", "0.0", "1.0", "0.0"), ["train", "test"]),
    ],
)
def test_columns_of_splits(photos, tmp_path, column, words, splits):
    data = load_data(str(table(tmp_path, f"path,label,{column}\n{rows_of(photos, words)}")), photos)
    assert {split: [item.name for item in items] for split, items in data.splits.items()} == {
        splits[0]: ["red/0.png", "blue/0.png"], splits[1]: ["red/1.png", "blue/1.png"],
    }  # fmt: skip
    assert f'split "{column}"' in describe(data)


def test_two_columns_of_splits(photos, tmp_path):
    text = "path,label,split,is_valid\n"
    same = rows_of(photos, ("train", "val", "train", "val"), ("0", "1", "0", "1"))
    assert list(load_data(str(table(tmp_path, text + same)), photos).splits) == ["train", "val"]
    other = rows_of(photos, ("train", "test", "train", "test"), ("0", "1", "0", "1"))
    with pytest.raises(CoopError, match=r'disagree, "split" and "is_valid"'):
        load_data(str(table(tmp_path, text + other)), photos)


@pytest.mark.parametrize(
    ("header", "cells", "option"),
    [
        ("path,label,class_name", ("cat", "cat", "dog", "dog"), "label, class_name.*--label-column"),
        ("path,label,category", ("1", "2", "1", "2"), "label, category.*--label-column"),
        ("path,label,image", ("red/1.png", "red/0.png", "blue/1.png", "blue/0.png"), "path, image.*--image-column"),
    ],
)
def test_columns_that_fit_alike_are_a_question(photos, tmp_path, header, cells, option):
    with pytest.raises(UsageError, match=f"has several columns that may hold .*{option}"):
        load_data(str(table(tmp_path, f"{header}\n{rows_of(photos, cells)}")), photos)


def test_of_two_image_columns_the_one_with_files(photos, tmp_path):
    data = load_data(str(table(tmp_path, f"path,label,image\n{rows_of(photos, ('1', '2', '3', '4'))}")), photos)
    assert dict(data.columns) == {"image": "path", "label": "label"}


@pytest.mark.parametrize("title", ["{stem}", "{stem}.png", "picture {k} of many"])
def test_titles_of_files_are_no_classes(photos, tmp_path, title):
    images = [f"{colour}/{k}.png" for colour in ("red", "blue") for k in range(6)]
    rows = [f"{image},{title.format(stem=image.split('/')[1][:-4], k=k)}" for k, image in enumerate(images)]
    with pytest.raises(UsageError, match="known to hold labels; choose one with --label-column: path, name"):
        load_data(str(table(tmp_path, "path,name\n" + "\n".join(rows))), photos)
    with_label = [f"{row},{row.partition('/')[0]}" for row in rows]
    data = load_data(str(table(tmp_path, "path,name,label\n" + "\n".join(with_label))), photos)
    assert data.class_names == ("blue", "red")


def test_an_image_with_two_labels_is_noted(photos, tmp_path, caplog):
    load_data(str(table(tmp_path, "path,label\nred/0.png,a\nred/0.png,b\nred/0.png,b\nblue/0.png,b\n")), photos)
    assert '1 image listed with several labels (first: "' in caplog.text and 'red/0.png" as "a", "b")' in caplog.text


def test_metadata_with_unknown_columns_names_the_option(photos, tmp_path):
    rows = "".join(f"{path.name},{path.parent.name}\n" for path in sorted(photos.rglob("*.png"))[:8])
    (tmp_path / "flat").mkdir()
    for row in rows.split():
        write_picture(tmp_path / "flat" / row.partition(",")[0])
    (tmp_path / "flat" / "metadata.csv").write_text(f"file_name,breed\n{rows}")
    with pytest.raises(CoopError, match=r"no class folders.*metadata.csv.*choose it with --label-column: file_name, breed"):
        load_data(str(tmp_path / "flat"))
    assert load_data(str(tmp_path / "flat"), label_column="breed").class_names == ("blue", "green")
    (photos / "metadata.csv").write_text("file_name,caption\nred/0.png,a thing\n")
    assert "file_name, caption" in describe(load_data(str(photos)))


# ------------------------------------------------------------------------------------------------ how tables are written


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nred/0.png,a\nblue/0.png,b\n,\n",
        "path,label\r\n red/0.png , a \r\n\tblue/0.png,b\r\n\r\n,\r\n",
        "sep=;\npath;label\nred/0.png;a\nblue/0.png;b\n",
        "sep=,\r\npath,label\r\nred/0.png,a\r\nblue/0.png,b\r\n",
        "path,label,\nred/0.png,a,\nblue/0.png,b,\n",
        "\ufeffpath,label\nred/0.png,a\nblue/0.png,b",
    ],
)
def test_tables_as_spreadsheets_write_them(photos, tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text.encode())
    data = load_data(str(tmp_path / "t.csv"), photos)
    assert [(item.name, item.label) for item in data.splits["all"]] == [("red/0.png", 0), ("blue/0.png", 1)]
    assert data.class_names == ("a", "b")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_newlines_end_a_line(photos, tmp_path, sign):
    lines = [
        json.dumps({"path": f"{name}/0.png", "label": f"{name}{sign}x", "n": 1}, ensure_ascii=False) for name in ("red", "blue")
    ]
    if sign > "\x1f":  # JSON allows no others inside a text
        (tmp_path / "t.jsonl").write_text("\n".join(lines), "utf-8")
        assert load_data(str(tmp_path / "t.jsonl"), photos).class_names == (f"blue{sign}x", f"red{sign}x")
    (tmp_path / "t.csv").write_text(f"path,label\nred/0.png,a{sign}x\nblue/0.png,b\n", "utf-8")
    assert load_data(str(tmp_path / "t.csv"), photos).class_names == (f"a{sign}x", "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\rred/0.png,a\rblue/0.png,b\r", "carriage returns alone"),
        ("path,label,label\nred/0.png,a,b\n", 'two columns are called "label"'),
    ],
)
def test_tables_that_could_be_read_in_two_ways(tmp_path, text, reason):
    (tmp_path / "t.csv").write_bytes(text.encode())
    with pytest.raises(CoopError, match=reason):
        load_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "Infinity", "-Infinity", "NaN", '"\\ud800"', "1e999"],
)
def test_odd_numbers_and_texts_in_json_are_one_line(photos, tmp_path, value):
    (tmp_path / "t.jsonl").write_text(f'{{"path": "red/0.png", "label": {value}}}\n{{"path": "blue/0.png", "label": "b"}}')
    split_file = tmp_path / "split.json"
    split_file.write_text(f'{{"train": [["red/0.png", {value}, "a"], ["blue/0.png", 1, "b"]]}}')
    with pytest.raises(CoopError, match=r'split.json" is not a split file'):
        load_data(str(split_file), photos)
    if value != "1e999":  # a number as others in a table
        with pytest.raises(CoopError, match=r't.jsonl" cannot be read: ') as caught:
            load_table(tmp_path / "t.jsonl")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ['["a", 1.5, "x"]', '["a", true, "x"]', '[1, 0, "x"]', '["a", 0, null]', '["a", 0]', '"abc"'])
def test_rows_of_a_split_file_are_not_guessed(tmp_path, row):
    (tmp_path / "split.json").write_text(f'{{"train": [["b", 0, "y"], {row}]}}')
    with pytest.raises(CoopError, match="is not a split file"):
        load_split_file(tmp_path / "split.json")


@pytest.mark.parametrize("column", ["label", "path"])
@pytest.mark.parametrize("value", ['["red/0.png"]', '["a", "b"]', "[]", '{"name": "a"}'])
def test_a_list_or_object_is_no_label_and_no_path(photos, tmp_path, column, value):
    good = {"path": '"red/0.png"', "label": '"a"'}
    rows = ["{" + ", ".join(f'"{key}": {cell}' for key, cell in row.items()) + "}" for row in (good, good | {column: value})]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    with pytest.raises(CoopError, match=rf'row 2 of its column "{column}"; give each image one {column}'):
        load_table(tmp_path / "t.jsonl", photos)


def test_numbers_and_lists_elsewhere_in_json_lines(photos, tmp_path):
    """pandas writes whole numbers as 1.0 where a value is missing; boxes and captions are lists."""
    rows = ['{"path": "red/0.png", "label": 2.0, "boxes": [1]}', '{"path": "red/1.png", "label": 10, "boxes": []}']
    (tmp_path / "t.jsonl").write_text("\n".join([*rows, '{"path": "red/2.png", "label": 10.0}']))
    assert load_table(tmp_path / "t.jsonl", photos).class_names == ("2", "10")
