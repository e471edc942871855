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
    grid = ["--model", "mini", "--methods", "coop", "--shots", "1", "--seeds", "1", "--recipe", "fast", "--views", "1"]
    grid += ["--no-plot"]
    failed(coop("sweep", *grid, "-o", "runs/first"), 2, "holds the results of coop fit; use another --output")
    ran(coop("sweep", *grid, "-o", "grid"))
    failed(coop("fit", *QUICK, "-o", "grid"), 2, "holds the results of coop sweep")
    failed(coop("predict", "grid", "red"), 2, "those of a sweep are in its folder cells")
    (cell,) = (photos / "grid" / "cells").iterdir()
    failed(coop("report", cell), 2, "one experiment of a sweep", "grid")


def test_a_table_of_paths_with_a_root_and_names(coop, photos, tmp_path):
    """Options that are paths reach the result files as text."""
    rows = [f"{name}/{k}.png,{name}" for name in ("red", "blue") for k in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "names.tsv").write_text("red\tcrimson\nblue\tnavy\n")
    arguments = ["list.csv", "--images", photos, "--classnames", "names.tsv", "--model", "mini", "--methods", "zeroshot"]
    written = json.loads(ran(coop("sweep", *arguments, "--no-plot", "--json", "-o", "grid")))
    assert written["settings"]["images"] == str(photos) and written["settings"]["classnames"] == "names.tsv"
    assert json.loads((tmp_path / "grid" / "results.json").read_text())["results"][0]["images"] == 6


def test_keep_close_is_an_axis(coop, split_photos):
    """A grid grows by it, keeps what it had, and names the two in its table."""
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
        "2",
        "-o",
        "grid",
    ]
    first = json.loads(ran(coop("sweep", split_photos, *grid, "--no-plot", "--json")))["results"]
    more = json.loads(ran(coop("sweep", split_photos, *grid, "--no-plot", "--keep-close", "0,8", "--json")))["results"]
    assert [row["keep_close"] for row in more] == [0, 8] and more[0]["seconds"] == first[0]["seconds"]
    assert "keep-close 8" in ran(coop("sweep", split_photos, *grid, "--no-plot", "--keep-close", "0,8"))
    failed(coop("sweep", split_photos, *grid, "--keep-close", "much"), 2, '"much" is not a number')
