"""The table of methods: one row adds a method everywhere."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from coopcli.errors import UsageError
from coopcli.learning.methods import METHODS, Method
from coopcli.learning.methods.text_tuning import learn_bias

ROW = Method("mine", "a number of my own", "text_tuning:learn_bias")
HELP = """
import sys
from coopcli.learning.methods import METHODS, Method
assert "torch" not in sys.modules
METHODS["mine"] = Method("mine", "a number of my own", "text_tuning:learn_bias")
sys.argv = ["coop", "sweep", "--help"]
from coopcli.__main__ import main
main()
"""


def test_a_new_row_is_a_method_of_sweep(coop, split_photos, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "mine", ROW)
    given = ["sweep", split_photos, "--methods", "zeroshot,mine", "--model", "mini", "--device", "cpu", "--shots", "2"]
    code, out, _ = coop(*given, "--seeds", "1", "--views", "2", "--jobs", "1", "-o", tmp_path / "out", "--no-plot")
    assert code == 0 and "a number of my own" in out
    assert "mine" in (tmp_path / "out" / "results.csv").read_text()
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "mine" in json.dumps(written)


def test_a_new_row_is_in_the_help():
    made = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, env=None)
    assert "mine" in made.stdout and "fine-tune" in made.stdout


@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.function], ids=lambda method: method.name)
def test_every_row_names_a_function_of_this_package(method):
    module, _, function = method.function.partition(":")
    assert callable(getattr(import_module(f"coopcli.learning.methods.{module}"), function)) and method.learns


def test_rows_without_a_function_are_not_learned_here():
    assert [name for name, method in METHODS.items() if not method.function] == ["zeroshot", "ensemble", "coop"]
    with pytest.raises(ValueError, match="zeroshot learns no head"):
        METHODS["zeroshot"].learn(None)


def test_a_package_that_is_not_installed(monkeypatch):
    assert all(method.check_package() is None for method in METHODS.values())
    with pytest.raises(UsageError, match=r"mine needs some-package: pip install 'coopcli\[sweep\]', or leave mine out of"):
        Method("mine", function="text_tuning:learn_bias", package=("no_such_package", "some-package")).learn(None)


def test_the_function_gets_the_task(monkeypatch):
    seen = []
    monkeypatch.setattr("coopcli.learning.methods.text_tuning.learn_bias", lambda task: seen.append(task) or "a head")
    assert ROW.learn("a task") == "a head" and seen == ["a task"] and learn_bias is not None
