"""Each example runs as it stands and tells what it promises."""

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import COLOURS, learned_prompt, ran

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {"learn_from_folder", "classify", "class_weights_elsewhere", "predict_without_torch"}


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder, with arguments; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*map(str, arguments))
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_learn_from_folder(example, photos, tmp_path):
    out = example("learn_from_folder", photos)
    assert re.search(r"hand-written [\d.]+%, learned [\d.]+%", out) and "nearest to the first vector: " in out
    assert (tmp_path / "prompt.safetensors").exists()


def test_classify(example, photos, mini, tmp_path):
    learned_prompt(mini).save(tmp_path / "prompt.safetensors")
    told = dict(line.split(": ") for line in example("classify", "prompt.safetensors", photos).splitlines())
    assert told["classes"] == "red, green, blue"
    assert set(told["the first three"].split(", ")) <= set(COLOURS) and told["the first, rotated by 90 degrees"] in COLOURS
    assert told["the weather in it"] in ("a sunny day", "a rainy day")
    assert float(told["accuracy"]) == pytest.approx(float(told["macro average"]))  # classes of equal size


def test_class_weights_elsewhere(example, photos, mini, tmp_path):
    learned_prompt(mini).save(tmp_path / "prompt.safetensors")
    lines = example("class_weights_elsewhere", "prompt.safetensors", photos / "red" / "0.png").splitlines()
    assert [line.split(":")[0] for line in lines] == list(COLOURS)
    for line in lines:
        here, by_coop = map(float, re.findall(r"[\d.]+", line.split(":")[1]))
        assert here == pytest.approx(by_coop, abs=2e-4)


@pytest.mark.skipif(not find_spec("onnxscript"), reason='needs onnxscript: pip install "coopcli[export]"')
def test_predict_without_torch(example, coop, photos, mini, tmp_path):
    learned_prompt(mini).save(tmp_path / "prompt.safetensors")
    ran(coop("export", "prompt.safetensors"))
    picture = photos / "red" / "0.png"
    by_coop = ran(coop("predict", "prompt.safetensors", picture)).splitlines()[1].split()
    name, share = example("predict_without_torch", "classifier.onnx", picture).removeprefix(f"{picture}: ").split()
    assert name == by_coop[1] and float(share.rstrip("%")) == pytest.approx(float(by_coop[0]), abs=0.1)
