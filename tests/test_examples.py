import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example))["main"](str(photos))
    out = capsys.readouterr().out
    assert "learned" in out and "nearest to the first vector" in out
    assert (tmp_path / "prompt.safetensors").exists()
