import json
from collections import Counter

import pytest
import torch
from conftest import write_picture
from hypothesis import given
from hypothesis import strategies as st

from coopcli.clip.prompts import ContextSettings
from coopcli.data.checks import count_traps, leak_traps, name_traps, prompt_traps
from coopcli.data.dataset import DataSet, ImageItem, file_item
from coopcli.data.load import load_data
from coopcli.learned.applied import classes_of
from coopcli.learned.prompt import LearnedPrompt


def named(*names, folders=None):
    return DataSet("toys", names, folders or names, {})


def items_of(*labels):
    return [ImageItem(str(row), label, bytes) for row, label in enumerate(labels)]


# ------------------------------------------------------------------------------------------------ names


def test_names_that_read_the_same_in_a_prompt():
    (trap,) = name_traps(named("sea_lion", "Sea Lion", "seal", folders=("n1", "n2", "n3")))
    assert trap.startswith('classes "n1", "n2" all read "sea lion" in a prompt, which cannot tell them apart')


def test_many_classes_that_read_alike_are_told_in_one_line_with_their_number():
    names = tuple(name for number in range(700) for name in (f"bird {number}", f"Bird {number}", f"fish {number}"))
    (trap,) = name_traps(named(*names, folders=tuple(f"n{k}" for k in range(2100))))
    assert trap.startswith('classes "n0", "n1" all read "bird 0" in a prompt') and "(700 of 2100 classes" in trap


@given(st.lists(st.sampled_from(["a b", "a_b", "A  B", "ab", "c", "C", "ß", "SS"]), min_size=2))
def test_one_warning_where_names_come_twice_with_their_number(names):
    words = Counter("_".join(name.replace("_", " ").split()).lower() for name in names)
    several = [count - 1 for count in words.values() if count > 1]
    traps = name_traps(named(*names))
    assert len(traps) == bool(several)
    assert (f"({sum(several)} of {len(names)} classes have the name of another)" in "".join(traps)) == (len(several) > 1)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("n01440764", "n01443537", "n01484850"), 'class names such as "n01440764", "n01443537", "n01484850" look like ids'),
        (("0", "1", "2", "10", "11"), '"0", "1", "2" and 2 more look like ids'),
        (("747", "A300B4", "DC-10"), None),  # one of them is a name
        (("n0144", "number 7"), None),
    ],
)
def test_names_that_are_ids(names, note):
    traps = name_traps(named(*names))
    assert len(traps) == (note is not None)
    assert note is None or (note in traps[0] and "--classnames" in traps[0])


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("001.Black_footed_Albatross", "002.Laysan_Albatross"), "001.Black_footed_Albatross<TAB>Black_footed_Albatross"),
        (("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), "n02085620-Chihuahua<TAB>Chihuahua"),
        (("0_cat", "1_dog", "bird"), "0_cat<TAB>cat"),
        (("747-400", "737-800", "A320"), None),
        (("3 d", "cat", "dog"), None),  # one of three
    ],
)
def test_ids_inside_names(names, line):
    traps = name_traps(named(*names))
    assert len(traps) == (line is not None)
    assert line is None or ("contain ids" in traps[0] and f'--classnames, a file of lines such as "{line}"' in traps[0])


def test_traps_in_names_are_noted_when_data_is_loaded(photos, caplog):
    (photos / "red").rename(photos / "Green")
    load_data(str(photos))
    assert caplog.text.count("in a prompt") == 1
    caplog.clear()
    (photos / "names.json").write_text(json.dumps({"Green": "dark green"}))
    load_data(str(photos), classnames=photos / "names.json")
    assert caplog.text == ""


# ------------------------------------------------------------------------------------------------ counts


def test_classes_without_images():
    assert count_traps(("a", "b", "c"), items_of(0, 1, 2)) == []
    assert count_traps(("a", "b", "c"), items_of(0, 0)) == ['2 of 3 classes have no images: "b", "c"']
    assert count_traps(tuple("abcdef"), [], "train images") == ['6 of 6 classes have no train images: "a", "b", "c" and 3 more']


def test_imbalance_is_noted_with_its_numbers():
    assert count_traps(("a", "b"), items_of(*[0] * 9, 1)) == []
    (trap,) = count_traps(("a", "b"), items_of(*[0] * 10, 1), "test images")
    assert trap.startswith('"a" has 10 test images, "b" has 1: ') and "macro average" in trap


# ------------------------------------------------------------------------------------------------ prompts


def test_a_prompt_of_other_classes():
    assert prompt_traps(("Red", "deep_blue"), ("green", "Deep Blue")) == []
    (trap,) = prompt_traps(("red", "blue"), ("0", "1"))
    assert trap.startswith('the prompt was learned for other classes ("red", "blue") than the data\'s ("0", "1")')


@pytest.mark.parametrize("order", [("red", "green", "blue"), ("blue", "red", "green")])
def test_classes_are_matched_by_name_whatever_their_order(photos, tmp_path, order):
    """A split file, a table and a folder that number the same classes otherwise mean the same."""
    colours = ("blue", "green", "red")
    known = tuple(f"a {colour} picture" for colour in colours)
    prompt = LearnedPrompt(
        torch.zeros(1, 8),
        ContextSettings(1),
        class_names=known,
        folders=colours,
        model="mini",
        revision=None,
        fingerprint="f",
        training={},
    )
    rows = [[f"{colour}/{i}.png", label, colour.upper()] for label, colour in enumerate(order) for i in range(2)]
    (tmp_path / "split.json").write_text(json.dumps({"test": rows}))
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(f"{path},{name}" for path, _, name in rows))
    for source in (tmp_path / "split.json", tmp_path / "table.csv", photos):
        data = load_data(str(source), photos if source.is_file() else None)
        names = classes_of(prompt, data)
        assert sorted(names) == sorted(known) and prompt_traps(known, names) == []
        for of_split in data.splits.values():
            assert all(names[item.label] == f"a {item.name.split('/')[0]} picture" for item in of_split)


# ------------------------------------------------------------------------------------------------ leaks


def counted(items):
    """The items, and the names of those that were read."""
    read = []

    def reader(item):
        return lambda: (read.append(item.name), item.read())[1]

    return [ImageItem(item.name, item.label, reader(item), item.path) for item in items], read


def test_images_that_are_trained_on_too(tmp_path):
    for k, name in enumerate(("a", "b", "c", "d")):
        write_picture(tmp_path / f"{name}.png", seed=k, size=(20 + 10 * k, 20))
    train = [file_item(tmp_path / f"{name}.png", f"train/{name}") for name in "ab"]
    assert leak_traps(train, [file_item(tmp_path / "c.png", "c")]) == []
    twin = ImageItem("row 3", 0, (tmp_path / "b.png").read_bytes)  # of a table, without a file
    other = ImageItem("row 4", 0, lambda: b"no image")
    files = [file_item(tmp_path / f"{name}.png", f"test/{name}") for name in "dac"]
    test, read = counted([*files, twin, other])
    assert leak_traps(train, test) == [
        "2 of 5 test images are byte-identical to train images (first: test/a is train/a); this inflates the accuracy"
    ]
    assert sorted(read) == ["row 3", "row 4", "test/a"]  # the others' sizes say enough


def test_what_cannot_be_read_is_no_leak(tmp_path):
    gone = [file_item(tmp_path / "gone.png", "gone"), file_item(tmp_path, "folder")]
    assert leak_traps(gone, gone) == leak_traps([], []) == []
    write_picture(tmp_path / "a.png")
    there = file_item(tmp_path / "a.png", "a")
    assert len(leak_traps([*gone, there], [*gone, there])) == 1
