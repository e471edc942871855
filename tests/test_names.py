from hypothesis import given
from hypothesis import strategies as st

from coopcli.names import distinct, encodable, name_key, places, readable_name, short_name


def test_readable_name():
    assert readable_name("annual_crop__land ") == "annual crop land"


def test_places_of_names_that_come_twice():
    known = ["missile", "sun", "missile", "moon"]
    assert places(known, known) == [0, 1, 2, 3] and places(known, ["moon", "missile", "mars"]) == [3, 0, None]
    assert places(known, ["missile"] * 3) == [0, 2, 2]


@given(st.lists(st.sampled_from(["a", "b", "a (2)", "a (3)"])))
def test_distinct_names(names):
    numbered = distinct(names)
    assert len(set(numbered)) == len(numbered) == len(names)
    assert all(new == name or new.startswith(f"{name} (") for name, new in zip(names, numbered, strict=True))
    assert [new for k, new in enumerate(numbered) if names[k] not in names[:k]] == list(dict.fromkeys(names))


@given(st.text(st.characters(exclude_categories=[])))
def test_every_name_can_be_written(name):
    written = encodable(name).encode()
    if not any("\ud800" <= letter <= "\udfff" for letter in name):
        assert written.decode() == name


def test_short_names_tell_models_apart():
    assert short_name("open_clip:RN50/openai") == "RN50-openai"
    assert short_name("open_clip:RN101//some/where/epoch_3.pt") == "RN101-epoch_3"
    assert short_name("openai/clip-vit-base-patch16") == "clip-vit-base-patch16"


def test_spellings_of_one_name_share_a_key():
    assert len({name_key(name) for name in ("sea_lion", "Sea  Lion", " sea lion_")}) == 1
    assert name_key("sealion") != name_key("sea lion")
