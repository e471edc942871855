import json
import time

import pytest

from coopcli.data.classnames import read_choices, read_class_list, read_classnames
from coopcli.data.dataset import DataSet
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError

# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("name", "text", "pairs"),
    [
        ("a.json", '["tench", "great_white shark"]', [(None, "tench"), (None, "great_white shark")]),
        ("a.json", '{"n1": "tench", "n2": "shark"}', [("n1", "tench"), ("n2", "shark")]),
        ("a.txt", "tench\n\n  great white shark \r\n", [(None, "tench"), (None, "great white shark")]),
        ("a.tsv", "n1\ttench\nn2\tgreat white shark", [("n1", "tench"), ("n2", "great white shark")]),
        ("a.txt", "n01440764 tench\nn01484850 white shark", [("n01440764", "tench"), ("n01484850", "white shark")]),
        (
            "split_zhou_X.json",
            json.dumps({"train": [["b/1.jpg", 1, "shark"], ["a/1.jpg", 0, "tench"]], "test": []}),
            [("a", "tench"), ("b", "shark")],
        ),
    ],
)
def test_class_lists(tmp_path, name, text, pairs):
    (tmp_path / name).write_text(text, newline="")
    assert read_class_list(tmp_path / name) == pairs
    assert read_choices(tmp_path / name) == tuple(name for _, name in pairs)


@pytest.mark.parametrize(
    "content",
    ["\ufefftench\nshark", "\ufefftench\r\nshark\r\n", '\ufeff["tench", " shark "]', "tench \n\n shark", "tench\nshark\u2028"],
)
def test_marks_and_blanks_are_no_part_of_a_name(tmp_path, content):
    (tmp_path / "names").write_bytes(content.encode())
    assert read_choices(tmp_path / "names") == ("tench", "shark")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "names").write_bytes("Bär\nVögel\n".encode(encoding))
    with pytest.raises(UsageError, match=r'class-name file ".*names" cannot be read: it is not UTF-8 text.*; save it as UTF-8'):
        read_class_list(tmp_path / "names")


@pytest.mark.parametrize("text", ['["a", "b"', '{"a": "b",}', '["\\ud800", "b"]', "[NaN]"])
def test_damaged_json_is_not_read_as_lines(tmp_path, text):
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match='names" is not valid JSON: '):
        read_class_list(tmp_path / "names")


def test_a_real_split_file(shared_data):
    names = read_choices(shared_data / "splits" / "split_zhou_Caltech101.json")
    assert len(names) == 100


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"[1, 2]", b"12", b"\xff\xfe", b'{"train": 1}', b'{"a": ["b"]}', b'{"a": "b", "c": null}', b'["a", ""]',
     b"n1\t"],
)  # fmt: skip
def test_class_lists_of_another_form(tmp_path, content):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(CoopError, match="names"):
        read_class_list(tmp_path / "names")
    with pytest.raises(UsageError, match=r"none.*cannot be read"):
        read_class_list(tmp_path / "none")


@pytest.mark.parametrize("text", ["cat", "cat\ncat"])
def test_nothing_to_choose(tmp_path, text):
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match="two or more different names"):
        read_choices(tmp_path / "names")


def test_repeated_names_to_choose_among_are_told_once_and_taken_once(tmp_path, caplog):
    (tmp_path / "names").write_text("n1\tcrane\nn2\theron\nn3\tcrane\nn4\theron\nn5\tcrane\n")
    assert read_choices(tmp_path / "names") == ("crane", "heron")
    assert [record.getMessage() for record in caplog.records] == [
        f'class-name file "{tmp_path / "names"}" repeats 3 names (first: "crane"); each is taken once'
    ]


# ------------------------------------------------------------------------------------------------ renaming


@pytest.mark.parametrize(
    "text", ['{"red": "crimson"}', "red\tcrimson\n", '["blue", "green", "crimson"]', "blue\ngreen\ncrimson\n"]
)
def test_classnames(photos, tmp_path, text):
    (tmp_path / "names").write_text(text)
    data = load_data(str(photos), classnames=tmp_path / "names")
    assert data.class_names == ("blue", "green", "crimson")
    assert data.folders == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('["one"]', "lists 1 names for 3"),
        ("red crimson", "folder<TAB>name"),
        ("red\tcrimson\nblue", '"blue" without a folder'),
        ("red crimson\nblue sky\ngreen moss", '"red crimson"; expected folder<TAB>name'),
        ('{"a": "b"}', "names none"),
        ("7", "must contain"),
    ],
)
def test_bad_classnames(photos, tmp_path, text, reason):
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match=reason):
        load_data(str(photos), classnames=tmp_path / "names")


def test_names_alone_that_are_the_datas_own_go_by_name(photos, tmp_path):
    (tmp_path / "names").write_text("Red\nblue\ngreen\n")
    assert load_data(str(photos), classnames=tmp_path / "names").class_names == ("blue", "green", "Red")


def test_a_misspelt_folder_is_noted(photos, tmp_path, caplog):
    (tmp_path / "names").write_text("bleu\tsky\ngreen\tmoss\n")
    load_data(str(photos), classnames=tmp_path / "names")
    assert 'names "bleu", which is not a class of this data, and leaves "blue" unchanged' in caplog.text
    caplog.clear()
    (tmp_path / "names").write_text("red\tr\ngreen\tg\nblue\tb\nblack\tk\n")  # a file for more classes, as ImageNet's
    assert load_data(str(photos), classnames=tmp_path / "names").class_names == ("b", "g", "r") and not caplog.records


def test_missing_classnames(photos, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_data(str(photos), classnames=tmp_path / "names")


@pytest.mark.parametrize("line", ["{folder}\t{name}", "{folder} of {name}"])
def test_names_of_tens_of_thousands_of_classes_are_read_at_once(tmp_path, line):
    """In time that grows with their number, not with its square: that would take twenty times as long as this allows."""
    folders = tuple(f"class{number:05}" for number in range(40_000))
    data = DataSet("many", folders, folders, {})
    (tmp_path / "names").write_text("".join(f"{line.format(folder=folder, name='crane')}\n" for folder in folders))
    began = time.process_time()
    if "\t" in line:
        assert read_classnames(tmp_path / "names", data) == dict.fromkeys(folders, "crane")
    else:
        with pytest.raises(UsageError, match="expected folder<TAB>name"):
            read_classnames(tmp_path / "names", data)
    assert time.process_time() - began < 1
