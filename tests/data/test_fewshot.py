import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coopcli.data.fewshot import draw_few_shot, few_shot_lists, half
from coopcli.data.load import DataSet, ImageItem, load_split_file
from coopcli.errors import CoopError, UsageError

FILES = {
    "caltech101": "Caltech101", "dtd": "DescribableTextures", "eurosat": "EuroSAT", "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars", "ucf101": "UCF101",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_published_lists(shared_data, name):
    """30 lists a data set, 210 in all: 5 shot counts, 3 seeds, train and val."""
    published = json.loads((shared_data / "splits" / "fewshot_lists.json").read_text())[name]
    splits = load_split_file(shared_data / "splits" / f"split_zhou_{FILES[name]}.json").splits
    checked = 0
    for shots, by_seed in published.items():
        for seed, lists in by_seed.items():
            train, val = few_shot_lists(splits["train"], splits["val"], int(shots), int(seed))
            assert [item.name for item in train] == lists["train"]
            assert [item.name for item in val] == lists["val"]
            checked += 2
    assert checked == 30


labelled = st.lists(st.integers(0, 5), max_size=60).map(
    lambda labels: [ImageItem(str(i), label, bytes) for i, label in enumerate(labels)]
)


@given(labelled, labelled, st.integers(1, 20), st.integers(0, 5))
def test_k_of_each_class_or_all_it_has(train, val, shots, seed):
    for items, drawn, k in zip((train, val), few_shot_lists(train, val, shots, seed), (shots, min(shots, 4)), strict=True):
        assert len({item.name for item in drawn}) == len(drawn)
        for label in range(6):
            had = [item for item in items if item.label == label]
            assert len([item for item in drawn if item.label == label]) == min(k, len(had))
    assert few_shot_lists(train, val, None, seed) == (train, val)


def data_of(n_classes, per_class=4):
    def items(split):
        return tuple(ImageItem(f"{split}/{k}/{i}", k, bytes) for i in range(per_class) for k in range(n_classes))

    names = tuple(f"c{k}" for k in range(n_classes))
    return DataSet("toy", names, names, {split: items(split) for split in ("train", "val", "test")})


@given(st.integers(4, 9), st.integers(1, 5), st.integers(0, 3))
def test_base_and_new_are_two_halves_of_the_same_draw(n_classes, shots, seed):
    data = data_of(n_classes)
    whole, base, new = (draw_few_shot(data, shots, seed, classes) for classes in ("all", "base", "new"))
    assert base.class_names + new.class_names == whole.class_names and len(base.class_names) == -(-n_classes // 2)
    for part in ("train", "val", "test"):
        of_whole = {(item.name, whole.class_names[item.label]) for item in getattr(whole, part)}
        of_halves = [(item.name, one.class_names[item.label]) for one in (base, new) for item in getattr(one, part)]
        assert len(of_halves) == len(of_whole) and set(of_halves) == of_whole
    assert base.sha256 != whole.sha256


def test_a_half_of_one_class_is_no_task():
    assert half(data_of(3), "base").class_names == ("c0", "c1")
    for n_classes, classes in ((2, "base"), (2, "new"), (3, "new")):
        with pytest.raises(CoopError, match=f"has {n_classes} classes, 1 of them {classes}"):
            draw_few_shot(data_of(n_classes), 1, 1, classes)


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_that_cannot_be(shots):
    with pytest.raises(UsageError, match=f"not {shots}"):
        draw_few_shot(data_of(4), shots, 1)


def test_half_of_a_data_set_for_evaluation():
    new = half(data_of(5), "new")
    assert new.class_names == ("c3", "c4") and {item.label for item in new.splits["test"]} == {0, 1}
    assert all(item.name.split("/")[1] == str(item.label + 3) for item in new.splits["test"])


def test_without_splits_what_was_not_drawn_is_tested_on():
    data = data_of(2)
    flat = DataSet("flat", data.class_names, data.folders, {"all": data.splits["train"]})
    drawn = draw_few_shot(flat, 3, 1)
    assert len(drawn.train) == 6 and len(drawn.test) == 2 and not drawn.val
    assert not {item.name for item in drawn.train} & {item.name for item in drawn.test}


def test_a_val_split_alone_is_tested_on_and_not_chosen_by():
    """As ImageNet comes: train and val."""
    data = data_of(2)
    two = DataSet("two", data.class_names, data.folders, {split: data.splits[split] for split in ("train", "val")})
    drawn = draw_few_shot(two, 1, 1)
    assert drawn.test == two.splits["val"] and drawn.val == () and drawn.train == draw_few_shot(data, 1, 1).train
