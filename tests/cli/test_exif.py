"""`--exif`: images turned by their EXIF orientation, in every command that reads images."""

import csv
import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from conftest import COLOURS, failed, learned_prompt, ran
from PIL import Image

from coopcli import CLIP, FeatureCache, Prompt, image_features, load_data
from coopcli.clip import image_features as features

ORIENTATION = 0x0112
LIES = {  # by EXIF orientation, how a picture lies in its file: turning it by that shows it upright
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip
QUICK = ["--shots", "1", "--epochs", "1", "--views", "1", "--model", "mini"]
TOLD = "are turned by their EXIF orientation"
IGNORED = "are to be turned by their EXIF orientation, which is ignored, as in the reference; --exif turns them"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The same pictures twice: upright, and as a phone writes them, in every orientation."""
    monkeypatch.setattr(features, "_warned", set())
    random, orientations = np.random.default_rng(0), count()
    for name, colour in COLOURS.items():
        for number in range(3):
            shade = np.linspace(0, 1, 40)[None, :, None] * np.linspace(0.5, 1, 30)[:, None, None]
            pixels = np.array(colour) * shade + random.normal(0, 12, (30, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            orientation = next(orientations) % 8 + 1
            lying, exif = LIES[orientation], Image.Exif()
            exif[ORIENTATION] = orientation
            for folder, image in (("upright", picture), ("phone", picture if lying is None else picture.transpose(lying))):
                path = tmp_path / folder / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, exif=exif if folder == "phone" else None)
    return tmp_path


def predictions(coop, folder, *command):
    ran(coop(*command, "--predictions", "p.csv"))
    return list(csv.reader((folder / "p.csv").open()))


def test_zeroshot_and_ensemble_turn_when_asked(coop, folders):
    for command in (["zeroshot"], ["ensemble", "--template", "a {}.", "--template", "one {}."]):
        upright, as_it_lies, turned = (
            predictions(coop, folders, *command, *given, "--model", "mini")
            for given in (["upright"], ["phone"], ["phone", "--exif"])
        )
        assert turned == upright != as_it_lies
        assert predictions(coop, folders, *command, "phone", "--model", "mini") == as_it_lies  # never the turned features


def test_the_prompt_keeps_it_for_all_that_use_it(coop, folders, monkeypatch):
    ran(coop("fit", "phone", "--exif", *QUICK, "-o", "run"))
    assert "exif = true" in (folders / "run" / "settings.toml").read_text()
    turned, upright, lying = (
        predictions(coop, folders, "eval", "run", *given) for given in (["phone"], ["upright"], ["phone", "--no-exif"])
    )
    assert turned == upright != lying
    classes = [json.loads(line)["top"] for line in ran(coop("predict", "run", "phone", "--json")).splitlines()]
    assert classes == [json.loads(line)["top"] for line in ran(coop("predict", "run", "upright", "--json")).splitlines()]
    proba = Prompt.load(folders / "run", CLIP("mini")).predict_proba([folders / "phone" / "red" / "1.png"])
    assert proba.max() == pytest.approx(float(turned[8][3]), abs=1e-6) and turned[8][0] == "red/1.png"
    for command in (["transfer", "run", "phone", "--no-plot"], ["report", "run"]):
        monkeypatch.setattr(features, "_warned", set())
        code, _, err = coop(*command)
        assert code == 0 and TOLD in err and IGNORED not in err
    failed(coop("fit", "phone", "--no-exif", *QUICK, "-o", "run"), 2, "exif: True -> False")


def test_a_sweep_keeps_it(coop, folders, monkeypatch):
    grid = ["sweep", "phone", "--methods", "zeroshot,tip-adapter,fine-tune", "--shots", "1", "--seeds", "1", "--model", "mini"]
    code, _, err = coop(*grid, "--exif", "-o", "s", "--no-plot", "--jobs", "1")
    assert code == 0 and TOLD in err and IGNORED not in err
    failed(coop(*grid, "-o", "s", "--no-plot"), 2, "exif: True -> False", "--overwrite")
    for head in sorted((folders / "s" / "cells").glob("*/head.safetensors")):
        monkeypatch.setattr(features, "_warned", set())
        code, _, err = coop("eval", head.parent, "phone")
        assert code == 0 and TOLD in err


def test_a_run_of_before_there_was_the_option_goes_on(coop, folders):
    ran(coop("fit", "upright", *QUICK, "-o", "run"))
    path = folders / "run" / "settings.toml"
    path.write_text(path.read_text().replace("exif = false\n", ""))
    code, _, err = coop("fit", "upright", *QUICK, "-o", "run")
    assert code == 0 and "done already" in err
    assert b'\\"exif\\"' not in (folders / "run" / "prompt.safetensors").read_bytes()  # the bytes are as they were


def test_what_is_ignored_is_told_with_the_way_out(coop, folders):
    code, _, err = coop("zeroshot", "phone", "--model", "mini")
    assert code == 0 and f"7 of 9 images {IGNORED}" in err


def test_from_python(folders):
    """A model turns images or not; what is learned with it keeps that."""
    mini = CLIP("mini", device="cpu", exif=True)
    phone, upright = (load_data(str(folders / name)).splits["all"] for name in ("phone", "upright"))
    turned, expected = (image_features(mini, items, FeatureCache(None)) for items in (phone, upright))
    assert torch.equal(turned, expected)
    assert not torch.equal(image_features(mini.with_exif(False), phone, FeatureCache(None)), expected)
    assert Prompt(replace(learned_prompt(mini), exif=True), mini.with_exif(False)).clip.exif
