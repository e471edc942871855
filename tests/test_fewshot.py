import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coopcli.fewshot import few_shot_lists
from coopcli.images import ImageItem, load_split_file

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
