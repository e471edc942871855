"""Predictions image by image, and `coop predict` as a user types it."""

import csv
import io
import json
import os
import sys
from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import COLOURS, failed, learned_prompt, ran, write_picture
from families import folder_of_family
from PIL import Image
from transformers import CLIPImageProcessorPil

from coopcli.clip import image_features as features
from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.clip.text_encoder import TextEncoder
from coopcli.data.dataset import ImageItem
from coopcli.errors import CoopError, UsageError
from coopcli.learned.applied import learned_features
from coopcli.learned.classifier import Classifier, Prompt
from coopcli.learned.head import Head
from coopcli.learned.origin import Origin
from coopcli.learned.predict import Prediction, find_images, predict
from coopcli.learned.prompt import load_learned


@pytest.fixture
def run(mini, tmp_path):
    learned_prompt(mini).save(tmp_path / "run" / "prompt.safetensors")
    return tmp_path / "run"


ORIGIN = [field.name for field in fields(Origin)]


def items_at(items, ending):
    (at,) = [number for number, item in enumerate(items) if item.name.endswith(ending)]
    return at


def names_of(items):
    return [item.name for item in items]


# ---------------------------------------------------------------------------------------------- the core


def test_predictions_are_those_of_the_stock_towers(mini, photos):
    """Image by image with nothing of ours but the class features, which have tests of their own."""
    learned = learned_prompt(mini)
    classes = learned_features(mini, learned, learned.class_names)
    process = CLIPImageProcessorPil.from_pretrained(MINI_FOLDER)
    found = list(predict(Classifier(learned, mini), find_images([str(photos)]), top=3))
    assert len(found) == 18
    for prediction in found:
        pixels = process([Image.open(prediction.image).convert("RGB")], return_tensors="pt").pixel_values
        with torch.no_grad():
            seen = mini.model.get_image_features(pixel_values=pixels).pooler_output
        expected = (mini.logit_scale * seen @ classes.T / seen.norm()).softmax(-1)[0]
        order = expected.argsort(descending=True).tolist()
        assert [name for name, _ in prediction.top] == [learned.class_names[k] for k in order]
        assert [p for _, p in prediction.top] == pytest.approx(expected[order].tolist(), abs=1e-5)
        assert prediction.class_name == prediction.top[0][0]


def test_below_the_threshold_it_is_none_of_these(mini, photos):
    classifier, items = Classifier(learned_prompt(mini), mini), list(find_images([str(photos)]))
    best = [found.top[0][1] for found in predict(classifier, items)]
    edge = sorted(best)[9]
    for p, found in zip(best, predict(classifier, items, top=99, threshold=edge), strict=True):
        assert len(found.top) == 3
        assert found.class_name == (found.top[0][0] if p >= edge else None)


def test_sigmoid_probabilities_are_each_classs_own(coop, photos, tmp_path):
    """SigLIP's: sigmoid of scale * cosine + bias, from the stock model's own parameters; none of it on a CLIP or a head."""
    clip = load_backbone(folder_of_family("siglip", tmp_path / "siglip"), device="cpu")
    learned = learned_prompt(clip)
    learned.save(tmp_path / "run" / "prompt.safetensors")
    classes = learned_features(clip, learned, learned.class_names)
    items = list(find_images([str(photos)]))
    seen = features.image_features(clip, items, FeatureCache(None))
    logits = seen @ classes.T * clip.model.logit_scale.exp() + clip.model.logit_bias
    expected = 1 / (1 + np.exp(-logits.numpy()))
    prompt = Prompt(learned, clip, probabilities="sigmoid")
    assert prompt.predict_proba(photos / "red" / "0.png")[0] == pytest.approx(expected[items_at(items, "red/0.png")], abs=1e-5)
    rows = ran(coop("predict", tmp_path / "run", photos, "--probabilities", "sigmoid", "--top", "3", "--json")).splitlines()
    for line, row in zip(map(json.loads, rows), expected, strict=True):
        assert line["probabilities"] == "sigmoid"
        assert [rank["probability"] for rank in line["top"]] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-5)
        assert line["class"] == learned.class_names[row.argmax()]
    table = csv.DictReader(io.StringIO(ran(coop("predict", tmp_path / "run", photos, "--probabilities", "sigmoid", "--csv"))))
    assert {row["probabilities"] for row in table} == {"sigmoid"}
    assert json.loads(ran(coop("predict", tmp_path / "run", photos / "red" / "0.png", "--json")))["probabilities"] == "softmax"
    head = Head("linear-probe", classes, **{name: getattr(prompt.head, name) for name in ORIGIN})
    with pytest.raises(CoopError, match="linear-probe head gives probabilities of one class among all"):
        Classifier(head, clip, probabilities="sigmoid")
    with pytest.raises(UsageError, match="softmax or sigmoid"):
        Classifier(learned, clip, probabilities="other")


def test_sigmoid_is_refused_without_a_bias(coop, run, photos):
    failed(coop("predict", run, photos, "--probabilities", "sigmoid"), 1, '"mini" has no logit_bias', "SigLIP")


def test_what_cannot_be_read_is_told_in_its_place(mini, photos):
    (photos / "red" / "1.png").write_bytes(b"no image")
    (photos / "red" / "3.png").write_bytes((photos / "red" / "3.png").read_bytes()[:200])
    items = find_images([str(photos / "red"), str(photos / "blue")])
    found = list(predict(Classifier(learned_prompt(mini), mini), items))
    assert [number for number, outcome in enumerate(found) if isinstance(outcome, CoopError)] == [1, 3]
    assert "red/1.png" in str(found[1]) and "red/3.png" in str(found[3])
    assert [outcome.image for outcome in found if isinstance(outcome, Prediction)][-1] == str(photos / "blue" / "5.png")


def test_memory_holds_a_few_images_however_many_there_are(mini, monkeypatch):
    """Images are made as they are asked for; few are under way at any time, cached ones or new ones."""
    width = mini.feature_width
    monkeypatch.setattr(type(mini), "encode_images", lambda _, pixels, names: torch.ones(len(pixels), width) / width**0.5)
    taken = 0

    def many(n):
        nonlocal taken
        for number in range(n):
            taken += 1
            picture = np.full((8, 8, 3), [number % 256, number // 256, 0], np.uint8)
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "PPM")
            yield ImageItem(str(number), 0, content.getvalue)

    classifier = Classifier(learned_prompt(mini), mini)
    for _ in ("new", "cached"):
        taken, most = 0, 0
        for number, found in enumerate(predict(classifier, many(2000))):
            assert found.image == str(number)
            most = max(most, taken - number)
        assert taken == 2000 and 1 < most < 500


def test_leaving_early_ends_the_worker_processes(mini, photos):
    import multiprocessing

    items = [item for _ in range(100) for item in find_images([str(photos / "red")])]
    with closing(predict(Classifier(learned_prompt(mini), mini), items)) as found:
        assert next(found).image == items[0].name
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------------------------------------- sources


def test_sources(photos, monkeypatch):
    monkeypatch.chdir(photos)
    write_picture(photos / "deep" / "er" / "0.png")
    write_picture(photos / "deep" / ".hidden.png")
    (photos / "deep" / "notes.txt").write_text("no image")
    write_picture(photos / "odd [1]*.png")
    assert names_of(find_images(["deep"])) == ["deep/er/0.png"]
    assert names_of(find_images(["red", "green/1.png"])) == [f"red/{i}.png" for i in range(6)] + ["green/1.png"]
    assert names_of(find_images(["r*/[01].png"])) == ["red/0.png", "red/1.png"]
    assert names_of(find_images(["d*p/**/*.png"])) == ["deep/er/0.png"]
    assert names_of(find_images(["odd [1]*.png"])) == ["odd [1]*.png"]  # as it is, though it looks like a glob
    assert names_of(find_images(["-", "red/0.png"], ["a b.png\n", "\n", "c.png\r\n"])) == ["a b.png", "c.png", "red/0.png"]
    assert len(list(find_images(["."]))) == 18 + 2


def test_wrong_sources(photos, tmp_path):
    with pytest.raises(UsageError, match='no image, folder or glob "nowhere"'):
        find_images([str(photos), "nowhere"])
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), str(tmp_path / "*.jpg"), "-"):
        with pytest.raises(CoopError, match="no images in"):
            find_images([source])


# ---------------------------------------------------------------------------------------------- the command


def test_forms_of_output(coop, run, photos):
    lines = [json.loads(line) for line in ran(coop("predict", run, photos, "--top", "2", "--json")).splitlines()]
    assert [line["image"] for line in lines] == names_of(find_images([str(photos)]))
    for line in lines:
        assert set(line) == {"image", "class", "probability", "top", "probabilities"} and len(line["top"]) == 2
        assert line["top"][0] == {"class": line["class"], "probability": line["probability"]}
        assert 0 <= line["top"][1]["probability"] <= line["probability"] <= 1

    rows = list(csv.DictReader(io.StringIO(ran(coop("predict", run, photos, "--csv")))))
    assert [(row["image"], row["class"]) for row in rows] == [(line["image"], line["class"]) for line in lines]
    assert [float(row["probability"]) for row in rows] == pytest.approx([line["probability"] for line in lines])
    both = list(csv.DictReader(io.StringIO(ran(coop("predict", run, photos, "--csv", "--top", "2")))))
    for row, line in zip(both, lines, strict=True):
        assert [row["class_1"], row["class_2"]] == [rank["class"] for rank in line["top"]]

    heading, *table = ran(coop("predict", run, photos, "--top", "2")).splitlines()
    assert heading.split() == ["%", "class", "image"] and len(table) == 36
    for first, second, line in zip(table[::2], table[1::2], lines, strict=True):
        assert first.split() == [f"{100 * line['probability']:.1f}", line["class"], line["image"]]
        assert second.split()[1:] == [line["top"][1]["class"]]


def test_none_of_these(coop, run, photos):
    picture = photos / "red" / "0.png"
    above = ["--threshold", "1"]
    line = json.loads(ran(coop("predict", run, picture, "--json", *above)))
    assert line["class"] is None and line["top"][0]["probability"] == line["probability"] < 1
    assert ran(coop("predict", run, picture, "--csv", *above)).splitlines()[1].split(",")[1] == "none of these"
    (only,) = ran(coop("predict", run, picture, *above)).splitlines()[1:]
    assert "none of these" in only and only.endswith("0.png") and only.split()[0][0].isdigit()
    verdict, *ranks = ran(coop("predict", run, picture, "--top", "3", *above)).splitlines()[1:]
    assert verdict.split()[:3] == ["none", "of", "these"] and {line.split()[1] for line in ranks} == set(COLOURS)


def test_paths_on_stdin(coop, run, photos, monkeypatch):
    strange = photos / "a\udcffb.png"  # no text in any encoding, and on Linux a name all the same
    write_picture(strange)
    given = b"".join(os.fsencode(path) + b"\n" for path in (photos / "red" / "0.png", strange, photos / "gone.png"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    code, out, err = coop("predict", run, "-", "--json")
    assert code == 0 and "gone.png" in err and "1 of 3 images" in err
    shown = [json.loads(line)["image"] for line in out.splitlines()]
    assert shown == [str(photos / "red" / "0.png"), str(photos / "a\\udcffb.png")]


def test_names_that_do_more_than_show(coop, run, photos):
    write_picture(photos / "line\nbreak\x1b[31m.png")
    out = ran(coop("predict", run, photos))
    assert len(out.splitlines()) == 1 + 19 and "\x1b" not in out and "line\\nbreak\\x1b[31m.png" in out


def test_images_that_cannot_be_read(coop, run, photos):
    for name in ("1.png", "4.png"):
        (photos / "red" / name).write_bytes(b"no image")
    code, out, err = coop("predict", run, photos / "red", "--csv")
    assert code == 0 and len(out.splitlines()) == 1 + 4
    assert err.count("red/1.png") == err.count("red/4.png") == 1 and "2 of 6 images" in err
    failed(coop("predict", run, photos / "red" / "1.png", "--on-error", "fail"), 1, "1.png", "cannot be read")
    code, out, err = coop("predict", run, photos / "red" / "1.png", photos / "red" / "4.png")
    assert (code, out) == (1, "") and err.splitlines()[-1] == "coop: none of the 2 images can be read"


def test_the_second_call_needs_no_text_tower(coop, run, photos, monkeypatch):
    first = ran(coop("predict", run, photos / "red", "--json"))

    def never(*_):
        raise AssertionError("the text tower was asked for")

    monkeypatch.setattr(TextEncoder, "__init__", never)
    assert ran(coop("predict", run, photos / "red", "--json")) == first
    assert len(ran(coop("predict", run, photos / "blue")).splitlines()) == 1 + 6
    for other in (["--no-cache"], ["--classnames", photos.parent / "names"]):
        (photos.parent / "names").write_text("red\npink\n")
        code, out, err = coop("predict", run, photos / "red", *other)
        assert (code, out) == (1, "") and "was asked for" in err


def test_other_classes(coop, run, photos, mini, tmp_path):
    (tmp_path / "names").write_text("crimson\nnavy\n")
    lines = ran(coop("predict", run, photos, "--classnames", "names", "--json")).splitlines()
    assert {json.loads(line)["class"] for line in lines} <= {"crimson", "navy"}
    learned_prompt(mini, csc=True).save(tmp_path / "csc.safetensors")
    assert ran(coop("predict", "csc.safetensors", photos / "red", "--json"))
    failed(coop("predict", "csc.safetensors", photos, "--classnames", "names"), 1, "class-specific", '"crimson"')


def test_a_head(coop, photos, mini, tmp_path):
    torch.manual_seed(0)
    names, weights, bias = tuple(COLOURS), 30 * torch.randn(3, mini.feature_width), torch.randn(3)
    head = Head(
        "linear-probe", weights, bias, class_names=names, folders=names, model="mini", revision=None,
        fingerprint=mini.fingerprint, training={},
    )  # fmt: skip
    head.save(tmp_path / "head.safetensors")
    lines = [json.loads(line) for line in ran(coop("predict", "head.safetensors", photos, "--json", "--top", "3")).splitlines()]
    seen = features.image_features(mini, list(find_images([str(photos)])), Classifier(head, mini).cache)
    expected = (seen @ weights.T + bias).softmax(-1)
    for line, row in zip(lines, expected.tolist(), strict=True):
        given = {rank["class"]: rank["probability"] for rank in line["top"]}
        assert [given[name] for name in names] == pytest.approx(row, abs=1e-5)
    right = [line["class"] == line["image"].split("/")[-2] for line in lines]
    assert json.loads(ran(coop("eval", "head.safetensors", photos, "--json")))["top1"] == pytest.approx(sum(right) / 18)


def test_wrong_commands(coop, run, photos, tmp_path):
    failed(coop("predict", run, "nowhere"), 2, '"nowhere"')
    failed(coop("predict", "no.safetensors", photos), 2, "no.safetensors")
    failed(coop("predict", run, photos, "--csv", "--json"), 2, "--csv", "--json")
    (tmp_path / "empty").mkdir()
    failed(coop("predict", run, "empty"), 1, 'no images in "empty"')
    for wrong in (["--top", "0"], ["--threshold", "1.5"], ["--on-error", "ask"]):
        code, out, err = coop("predict", run, photos, *wrong)
        assert (code, out) == (2, "") and wrong[0].lstrip("-") in err and "Traceback" not in err


def test_two_classes_of_one_name(coop, mini, photos, tmp_path):
    learned_prompt(mini, ("red", "blue", "red"), csc=True).save(tmp_path / "twofold.safetensors")
    found = list(predict(Classifier(load_learned(tmp_path / "twofold.safetensors"), mini), find_images([str(photos)]), top=3))
    assert all([name for name, _ in prediction.top].count("red") == 2 for prediction in found)
    assert len(ran(coop("predict", "twofold.safetensors", photos, "--json")).splitlines()) == 18


def test_files_of_other_endings_are_counted(mini, coop, photos):
    learned_prompt(mini).save(photos.parent / "prompt.safetensors")
    for name in ("a.svg", "b.SVG", "c.txt", ".hidden.svg"):
        (photos / "red" / name).write_text("x")
    code, out, err = coop("predict", "prompt.safetensors", photos / "red", "--csv")
    assert code == 0 and len(out.splitlines()) == 7
    assert err.splitlines() == ["note: left out 3 files by ending (.svg 2, .txt 1)"]
