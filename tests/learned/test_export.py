"""The exported file against PyTorch, and the example that runs it without PyTorch against coop."""

import copy
import dataclasses
import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, failed, learned_prompt, ran, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.clip.openclip import OpenClipModel
from coopcli.clip.pixels import prepare
from coopcli.errors import CoopError
from coopcli.learned import export
from coopcli.learned.classifier import Classifier
from coopcli.learned.head import Head

EXAMPLE = (
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "predict_without_torch.py")) if find_spec("onnxruntime") else {}
)
missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f'needs {", ".join(missing)}: pip install "coopcli[export]"')

SIDE = json.loads((MINI_FOLDER / "config.json").read_text())["vision_config"]["image_size"]
NAMES = tuple(COLOURS)


@pytest.fixture(scope="module")
def classifier(mini):
    """All that a head may have, on the first layer of mini's image tower: exporting takes its time for every layer."""
    model = copy.deepcopy(mini.model)
    model.vision_model.encoder.layers = model.vision_model.encoder.layers[:1]
    clip = dataclasses.replace(mini, name="small", model=model, fingerprint="5" * 32)
    torch.manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(7, clip.feature_width), dim=-1)
    values = torch.tensor([0, 0, 1, 2, 2, 2, 1])
    weights, bias = 10 * torch.randn(3, clip.feature_width), torch.randn(3)
    about = dict(class_names=NAMES, folders=NAMES, model="small", revision=None, fingerprint=clip.fingerprint, training={})
    head = Head("tip-adapter", weights, bias, keys, values, 3.0, 5.5, **about)
    return Classifier(head, clip)


@pytest.fixture(scope="module")
def content(classifier):
    return export.onnx_bytes(classifier)


def session_of(content):
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_probabilities_for_any_number_of_pictures(classifier, content):
    session = session_of(content)
    for n in (1, 2, 5):
        pixels = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
        (found,) = session.run(None, {"pixels": pixels})
        assert found.shape == (n, 3) and found.dtype == np.float32
        assert found == pytest.approx(classifier.predict_proba(pixels), abs=1e-5)
    assert export.difference(content, classifier) < 1e-5


def test_metadata_are_all_it_needs_and_tell_nothing_of_this_machine(content):
    told = session_of(content).get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == list(NAMES)
    assert json.loads(told["preprocessing"]) == {
        "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE},
    }  # fmt: skip
    assert (told["model"], told["fingerprint"]) == ("small", "5" * 32)
    for path in (Path(export.__file__).parent, Path(torch.__file__).parent, Path.home()):
        assert str(path).encode() not in content


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 9))
@settings(max_examples=60)
def test_the_examples_preprocessing_is_coops(mini, tmp_path_factory, width, height, seed):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    write_picture(path, size=(width, height), seed=seed)
    expected = prepare(mini.preprocessing, path.read_bytes(), "a.png", b"", [None])[0]
    assert np.array_equal(EXAMPLE["pixels"](str(path), SIDE, SIDE).transpose(2, 0, 1), expected)


def test_the_example_predicts_what_coop_predicts(classifier, content, photos, tmp_path, capsys):
    (tmp_path / "classifier.onnx").write_bytes(content)
    Image.open(photos / "red" / "0.png").resize((90, 61)).save(photos / "red" / "0.jpg")
    paths = sorted(map(str, photos.rglob("*.*")))
    EXAMPLE["main"](str(tmp_path / "classifier.onnx"), *paths)
    shares = classifier.predict_proba(paths).max(axis=1)
    expected = [f"{path}: {name}" for path, name in zip(paths, classifier.predict(paths), strict=True)]
    lines = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [line for line, _ in lines] == expected
    assert [float(share.rstrip("%")) for _, share in lines] == pytest.approx(100 * shares, abs=0.1)


def test_the_command(coop, mini, photos, tmp_path):
    learned_prompt(mini).save(tmp_path / "run" / "prompt.safetensors")
    told = json.loads(ran(coop("export", "run", "--output", "here/a.onnx", "--json")))
    written = (tmp_path / "here" / "a.onnx").read_bytes()
    assert told["difference"] < 1e-5 and told["bytes"] == len(written) and told["class_names"] == list(NAMES)
    pixels = np.stack([EXAMPLE["pixels"](str(path), SIDE, SIDE) for path in sorted(photos.rglob("*.png"))])
    (found,) = session_of(written).run(None, {"pixels": pixels})
    assert found == pytest.approx(Classifier(learned_prompt(mini), mini).predict_proba(pixels), abs=1e-5)
    failed(coop("export", "nowhere"), 2, "nowhere")


def test_same_classifier_same_bytes(classifier, content):
    assert export.onnx_bytes(classifier) == content


def test_a_tower_of_open_clip(mini):
    """Any number of pictures, though outside of a graph it takes them in parts of equal size."""
    side = SIDE // 6
    visual = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, side, side), torch.nn.Flatten(), torch.nn.Linear(24 * 36, mini.feature_width)
    )
    clip = dataclasses.replace(mini, model=OpenClipModel(visual, mini.model, mini.model.logit_scale), fingerprint="0" * 32)
    about = dict(class_names=NAMES, folders=NAMES, model="open_clip:x/y", revision=None, training={})
    head = Head("linear-probe", torch.randn(3, mini.feature_width), fingerprint=clip.fingerprint, **about)
    classifier = Classifier(head, clip)
    session = session_of(export.onnx_bytes(classifier))
    for n in (1, 19):
        pixels = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
        (found,) = session.run(None, {"pixels": pixels})
        assert found == pytest.approx(classifier.predict_proba(pixels), abs=1e-5)


def test_what_goes_wrong(coop, mini, tmp_path, classifier, content, monkeypatch):
    learned_prompt(mini).save(tmp_path / "run" / "prompt.safetensors")
    with pytest.raises(CoopError, match="differ from PyTorch's"):
        export.difference(content, Classifier(learned_prompt(mini), mini))
    monkeypatch.setattr(export, "onnx_bytes", lambda _: content)
    failed(coop("export", "run", "-o", "a.onnx"), 1, "differ from PyTorch's")
    assert not (tmp_path / "a.onnx").exists()
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    code, out, err = coop("export", "run")
    assert code == 0 and out.startswith("run/classifier.onnx: 3 classes") and "not compared" in err
    monkeypatch.undo()
    monkeypatch.setattr(export, "MAX_BYTES", 10**5)
    with pytest.raises(CoopError, match="holds 2 GB"):
        export.onnx_bytes(classifier)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    failed(coop("export", "run", "-o", "b.onnx"), 1, "onnx is not installed", 'pip install "coopcli[export]"')
    assert not (tmp_path / "b.onnx").exists()
