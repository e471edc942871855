import csv
import io
import json

import pytest

from coopcli.errors import CoopError
from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.summary import summary
from coopcli.experiments.sweep_folder import flat_row, read_sweep, remove_sweep, write_result, write_results
from coopcli.files import csv_of


def result(method="coop", shots=1, seed=1, top1=0.5, variant=None, model="mini", **more):
    return Result(Cell(method, model, shots, seed, variant), top1=top1, macro=top1, **more)


def test_the_files_of_a_sweep(tmp_path):
    coop = [result(shots=shots, seed=s, top1=shots / 10 + s / 100, variant=Variant()) for shots in (1, 4) for s in (1, 2, 3)]
    results = [result("zeroshot", 0, 0, 0.25), *coop, result(shots=4, top1=None, variant=Variant(csc=True), note="too few")]
    write_results(tmp_path, "toy $1 #", {"device": "cpu", "data": "é"}, results, plot=True)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["method"] for row in rows] == ["zeroshot"] + 7 * ["coop"]
    assert rows[-1]["top1"] == "" and rows[-1]["csc"] == "True" and rows[-1]["note"] == "too few"
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["settings"]["data"] == "é" and content["peak_memory"] > 0 and "torch" in content["versions"]
    assert content["results"][0]["top1"] == 0.25
    assert content["summary"][1]["top1_std"] == pytest.approx(0.01)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "accuracy.svg").exists()


def test_base_to_new_has_three_figures(tmp_path):
    rows = [result(shots=shots, top1=0.8, new=0.4, harmonic=0.533, variant=Variant()) for shots in (1, 2)]
    write_results(tmp_path, "toy", {}, rows, plot=True)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"accuracy", "accuracy-new", "accuracy-harmonic"}
    write_results(tmp_path / "none", "toy", {}, [result(top1=None)], plot=True)
    assert not list((tmp_path / "none").glob("*.png"))


def test_csv_of_nothing_and_of_odd_text():
    assert csv_of([]) == "\n"
    text = csv_of([flat_row(result(note='a, "b"\nc'))])
    assert next(csv.DictReader(io.StringIO(text)))["note"] == 'a, "b"\nc'


@pytest.mark.parametrize("damage", ["{", "[]", '{"summary": [{}], "results": [], "settings": {}}', '{"summary": []}'])
def test_a_sweep_is_read_back_as_its_rows(tmp_path, damage):
    prompts = Variant(None, "middle", True, "a photo of a", "fast")
    cells = [Cell("zeroshot", "mini"), *(Cell("coop", "mini", *key, prompts) for key in ((1, 1), (1, 2), (None, 1)))]
    results = [Result(cell, 0.25 * k, 0.2 * k, None, None, 8, seconds=k) for k, cell in enumerate(cells)]
    results.append(Result(Cell("tip-adapter", "mini", 1, 1), note="left out"))
    results += [Result(Cell("lp++", "mini", 4, seed), top1) for seed, top1 in ((1, 0.5), (2, None))]  # one of two seeds
    write_results(tmp_path, "toy", {"data": "toy"}, results, plot=False)
    sweep = read_sweep(tmp_path)
    assert sweep.rows == summary(results) and sweep.settings == {"data": "toy"} and sweep.results[4]["note"] == "left out"
    (tmp_path / "results.json").write_text(damage)
    with pytest.raises(CoopError, match="is not what `coop sweep` wrote"):
        read_sweep(tmp_path)


def test_all_images_are_drawn_beside_numbers_of_shots(tmp_path):
    """An accuracy with all images once vanished from the figure."""
    cells = [result(shots=shots, top1=share, variant=Variant()) for shots, share in ((1, 0.2), (None, 0.8))]
    for name, results in (("both", cells), ("one", cells[:1]), ("all", cells[1:]), ("by hand", [result("zeroshot", 0, 0)])):
        write_results(tmp_path / name, "toy", {}, results, plot=True)
        assert (tmp_path / name / "accuracy.png").stat().st_size > 1000
    assert "<!-- all -->" in (tmp_path / "both" / "accuracy.svg").read_text()
    assert "<!-- 80.0 -->" in (tmp_path / "all" / "accuracy.svg").read_text()  # a bar


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("results", {"top1": 93.5}), ("results", {"macro": float("nan")}), ("results", {"seconds": "long"}),
        ("results", {"seconds": float("inf")}), ("summary", {"top1": -0.1}), ("summary", {"top1_std": "0"}),
        ("summary", {"seeds": None}), ("summary", {"shots": "few"}),
    ],
)  # fmt: skip
def test_impossible_results_are_not_believed(tmp_path, place, change):
    write_results(tmp_path, "toy", {}, [result()], plot=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert read_sweep(tmp_path).results[0]["top1"] == 0.5
    content[place][0] |= change
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(CoopError, match="is not what `coop sweep` wrote"):
        read_sweep(tmp_path)


def test_removing_a_sweep_leaves_what_is_not_its_own(tmp_path):
    write_results(tmp_path, "toy", {}, [result(), result(shots=2)], plot=True)
    write_result(tmp_path, result())
    (tmp_path / "settings.toml").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    remove_sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "settings.toml"]
    remove_sweep(tmp_path)
