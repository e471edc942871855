"""`coop sweep` and `coop transfer` as commands: folders of runs, and what is not installed."""

import json
import sys

from conftest import failed, ran

QUICK = ["--model", "mini", "--epochs", "2", "--views", "2"]


def test_without_matplotlib_the_figures_are_left_out(coop, photos, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    grid = ["--model", "mini", "--shots", "1", "--seeds", "1", "--views", "1", "--recipe", "fast", "--methods"]
    code, out, err = coop("sweep", photos, *grid, "zeroshot,coop", "-o", "sweep")
    assert code == 0 and "zeroshot" in out and "figures need matplotlib" in err
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {"results.csv", "results.md"}
    (cell,) = (tmp_path / "sweep" / "cells").glob("coop-*")
    code, out, err = coop("transfer", cell, photos, "-o", "moved")
    assert code == 0 and "zeroshot" in out and "figures need matplotlib" in err
    monkeypatch.setitem(sys.modules, "sklearn", None)
    failed(coop("sweep", photos, *grid, "coop,linear-probe", "-o", "other"), 2, "needs scikit-learn", "--methods")
    assert not (tmp_path / "other").exists()


def test_folders_of_runs(coop, photos, monkeypatch, tmp_path):
    """They are no classes, and what one command wrote the other does not take for its own."""
    monkeypatch.chdir(photos)
    ran(coop("fit", *QUICK, "--output", "runs/first"))
    assert json.loads(ran(coop("zeroshot", "--model", "mini", "--json")))["class_names"] == ["blue", "green", "red"]
    grid = [
        "--model",
        "mini",
        "--methods",
        "coop",
        "--shots",
        "1",
        "--seeds",
        "1",
        "--recipe",
        "fast",
        "--views",
        "1",
        "--no-plot",
    ]
    failed(coop("sweep", *grid, "-o", "runs/first"), 2, "holds the results of coop fit; use another --output")
    ran(coop("sweep", *grid, "-o", "grid"))
    failed(coop("fit", *QUICK, "-o", "grid"), 2, "holds the results of coop sweep")
    failed(coop("predict", "grid", "red"), 2, "those of a sweep lie in its folder cells")
    (cell,) = (photos / "grid" / "cells").iterdir()
    failed(coop("report", cell), 2, "one experiment of a sweep", "grid")
