"""Each example runs as it stands and tells what it promises."""

import os
import re
import runpy
import sys
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


def test_the_notebook_runs_clean(tmp_path, monkeypatch):
    """Every cell in a Jupyter kernel: no error, nothing on stderr but what `coop` says in plain lines, no leftover bars."""
    nbformat = pytest.importorskip("nbformat", reason="needs pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install nbclient ipykernel")
    for name, value in {
        "COOP_CACHE": tmp_path / "cache",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells), "clear its outputs"
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "".join(output.get("text", "") or output["data"]["text/plain"] for output in outputs)
    assert re.search(r"hand-written [\d.]+%, learned [\d.]+%", shown) and "<LearnedPrompt 16 vectors, end, 10 classes" in shown
    assert "image,class,probability" in shown and "\x1b" not in shown and "\r" not in shown
    assert not [output for output in outputs if output.get("name") == "stderr"], shown


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
