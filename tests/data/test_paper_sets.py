"""The paper's data sets by name, and checks of downloads: made-up ones here, the real EuroSAT and Caltech101 where they are."""

import json

import pytest
from conftest import failed, ran, write_picture

from coopcli.clip.templates import read_template
from coopcli.data.load import load_data
from coopcli.data.paper_check import check_paper_set
from coopcli.data.paper_sets import PAPER_SETS, paper_set
from coopcli.errors import CoopError, UsageError


@pytest.mark.parametrize(
    ("typed", "name"),
    [("eurosat", "EuroSAT"), ("oxford_pets", "OxfordPets"), ("DTD", "DescribableTextures"), ("caltech-101", "Caltech101"),
     ("Flowers102", "OxfordFlowers"), ("food 101", "Food101"), ("cars", "StanfordCars"), ("ImageNet", "ImageNet")],
)  # fmt: skip
def test_names_in_any_spelling(typed, name):
    assert paper_set(typed).name == name


def test_an_unknown_name_lists_the_eleven():
    with pytest.raises(UsageError, match='"cifar" is not a data set of the paper; those are Caltech101, OxfordPets'):
        paper_set("cifar")
    assert len(PAPER_SETS) == 11


def test_templates_are_the_papers(shared_data):
    published = json.loads((shared_data / "prompts" / "coop_paper_templates.json").read_text())["hand_written"]
    assert {one.name: read_template(one.name.lower()) for one in PAPER_SETS} == published
    assert read_template("art of the {}.") == "art of the {}."
    with pytest.raises(UsageError, match=r'template "a photo" has no \{\} for the class name'):
        read_template("a photo")


def test_a_template_by_name_is_kept_as_its_text(coop, photos):
    shown = json.loads(ran(coop("zeroshot", photos, "--model", "mini", "--template", "eurosat", "--json")))
    assert shown["templates"] == ["a centered satellite photo of {}."]
    quick = ["--model", "mini", "--shots", "1", "--epochs", "1", "--views", "1", "-o", "run"]
    ran(coop("fit", photos, *quick, "--template", "dtd"))
    assert 'template = "{} texture."' in (photos.parent / "run" / "settings.toml").read_text()
    again = ran(coop("fit", "--config", "run/settings.toml", "-o", "again"))
    assert 'hand-written "{} texture."' in again
    failed(coop("fit", photos, *quick, "--template", "a photo"), 2, 'template "a photo"')


@pytest.mark.parametrize("name", ["EuroSAT", "Caltech101"])
def test_the_official_splits_are_known(shared_data, name):
    """Their train images are not all on these machines: what lacks is counted, what is there is not."""
    found = check_paper_set(paper_set(name), shared_data)
    assert found.images.name == paper_set(name).images and found.counts["test"] == paper_set(name).sizes[2]
    (problem,) = found.problems
    n, total = (int(word) for word in problem.split()[:3:2])
    listed = {item.name for items in load_data(str(found.data), found.images).splits.values() for item in items}
    assert total == len(listed) and n == sum(not (found.images / name).is_file() for name in listed) > 0


@pytest.mark.parametrize("file", ["Caltech101", "DescribableTextures", "EuroSAT", "OxfordFlowers", "OxfordPets", "StanfordCars",
                                  "UCF101"])  # fmt: skip
def test_the_sizes_are_those_of_the_published_splits(shared_data, file):
    split = json.loads((shared_data / "splits" / f"split_zhou_{file}.json").read_text())
    known = paper_set(file)
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == known.sizes
    assert len({row[1] for part in split.values() for row in part}) == known.n_classes


@pytest.fixture
def eurosat(tmp_path, monkeypatch):
    """A small data set of the shape of EuroSAT, in $DATA as the reference lays it out."""
    folder = tmp_path / "all" / "eurosat"
    rows = {part: [[f"Forest/{part}.jpg", 0, "Forest"], [f"River/{part}.jpg", 1, "River"]] for part in ("train", "val", "test")}
    for row in (row for part in rows.values() for row in part):
        write_picture(folder / "2750" / row[0])
    (folder / "split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    small = paper_set("eurosat").__class__(**vars(paper_set("eurosat")) | {"n_classes": 2, "sizes": (2, 2, 2)})
    monkeypatch.setattr("coopcli.data.paper_sets.PAPER_SETS", (small,))
    return folder


def test_a_complete_download_gives_the_command_that_uses_it(coop, eurosat):
    code, out, err = coop("data", "eurosat", "all")
    assert code == 0 and out == "EuroSAT is complete: 2 classes, images: 2 train, 2 val, 2 test\n"
    command = err.splitlines()[-1].removeprefix("next: coop ").split()
    assert command == [
        "zeroshot",
        "all/eurosat/split_zhou_EuroSAT.json",
        "--images",
        "all/eurosat/2750",
        "--template",
        "EuroSAT",
    ]
    assert json.loads(ran(coop(*command, "--model", "mini", "--json")))["n"] == 2
    assert json.loads(ran(coop("data", "EuroSAT", eurosat, "--json")))["complete"]


def test_images_that_an_archive_put_deeper_are_found(coop, eurosat):
    (eurosat / "2750").rename(eurosat / "inner")
    (eurosat / "EuroSAT").mkdir()
    (eurosat / "inner").rename(eurosat / "EuroSAT" / "2750")
    assert json.loads(ran(coop("data", "eurosat", "all", "--json")))["images"] == "all/eurosat/EuroSAT/2750"


def test_what_is_missing_is_told_with_where_to_get_it(coop, eurosat):
    (eurosat / "2750" / "River" / "val.jpg").unlink()
    failed(coop("data", "eurosat", "all"), 1, "1 of 6 listed images are not in", "River/val.jpg", "github.com/phelber/EuroSAT")
    split = eurosat / "split_zhou_EuroSAT.json"
    rows = json.loads(split.read_text())
    split.write_text(json.dumps(rows | {"val": []}))
    failed(
        coop("data", "eurosat", "all"),
        1,
        "is not the official split: it has 2 classes and 2 + 0 + 2 images, that 2 and 2 + 2 + 2",
    )
    split.unlink()
    failed(coop("data", "eurosat", "all"), 1, "no split_zhou_EuroSAT.json", "DATASETS.md")
    failed(coop("data", "eurosat", "nowhere"), 1, '"nowhere" is not a folder')
    failed(coop("data", "cifar"), 2, '"cifar" is not a data set of the paper')


def test_aircraft_gets_its_split_file(tmp_path, monkeypatch):
    """In the order of variants.txt, with names that hold spaces and slashes, as the reference's loader reads them."""
    (tmp_path / "variants.txt").write_text("Yak-42\nF-16A/B\nDash 8\n")
    lists = {"train": "0034309 F-16A/B\n0000001 Dash 8\n", "val": "0000002 Yak-42\n", "test": "0000003 Dash 8\n"}
    for part, text in lists.items():
        (tmp_path / f"images_variant_{part}.txt").write_text(text)
    for number in ("0034309", "0000001", "0000002", "0000003"):
        write_picture(tmp_path / "images" / f"{number}.jpg")
    found = check_paper_set(paper_set("aircraft"), tmp_path)
    assert found.data == tmp_path / "split_zhou_FGVCAircraft.json" and len(found.made) == 1
    dataset = load_data(str(found.data), found.images)
    assert dataset.class_names == ("Yak-42", "F-16A/B", "Dash 8")
    assert [(item.name, item.label) for item in dataset.split("train")] == [("0034309.jpg", 1), ("0000001.jpg", 2)]
    assert any("is not the official split" in problem for problem in found.problems)  # it is far too small
    (tmp_path / "split_zhou_FGVCAircraft.json").unlink()
    (tmp_path / "images_variant_val.txt").write_text("0000002 Concorde\n")
    with pytest.raises(CoopError, match='gives image 0000002 the variant "Concorde", which is not in variants'):
        check_paper_set(paper_set("aircraft"), tmp_path)


def test_imagenet_gets_clips_class_names(tmp_path, shared_data):
    ids = [f"n{number:08}" for number in range(1000)]
    for part in ("train", "val"):
        for name in ids:
            (tmp_path / "images" / part / name).mkdir(parents=True)
    found = check_paper_set(paper_set("imagenet"), tmp_path)
    assert not found.problems and found.data == tmp_path / "images" and found.counts == {"train": 0, "val": 0}
    names = json.loads((shared_data / "prompts" / "imagenet_classnames.json").read_text())
    assert found.classnames.read_text() == "".join(f"{one} {name}\n" for one, name in zip(ids, names, strict=True))
    (tmp_path / "images" / "val" / ids[3]).rmdir()
    (tmp_path / "images" / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    (problem,) = check_paper_set(paper_set("imagenet"), tmp_path).problems
    assert "are not in class folders" in problem
