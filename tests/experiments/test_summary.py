import csv
import io
import json
import statistics

import pytest

from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.summary import Spread, costs_of, curves_of, label, markdown_of, spread_of, summary, table_of
from coopcli.experiments.sweep_folder import flat_row, write_results
from coopcli.files import csv_of
from coopcli.learning.methods import METHODS


def result(method="coop", shots=1, seed=1, top1=0.5, variant=None, model="mini", **more):
    return Result(Cell(method, model, shots, seed, variant), top1=top1, macro=top1, **more)


RESULTS = [
    result("zeroshot", 0, 0, 0.25),
    *(
        result(shots=shots, seed=seed, top1=shots / 10 + seed / 100, variant=Variant())
        for shots in (1, 4)
        for seed in (1, 2, 3)
    ),
    result(shots=4, seed=1, top1=None, variant=Variant(csc=True), note="too few"),
]


def test_means_and_deviations_over_seeds():
    zeroshot, one, four, csc = summary(RESULTS)
    assert zeroshot.top1 == Spread(0.25, 0.0, 1) and csc.top1 is None
    expected = [0.11, 0.12, 0.13]
    assert one.top1.mean == pytest.approx(statistics.mean(expected)) and one.top1.n == 3
    assert one.top1.std == pytest.approx(statistics.stdev(expected)) and four.cell.shots == 4
    assert spread_of([None, 0.5]) == Spread(0.5, 0.0, 1) and spread_of([None]) is None
    assert str(Spread(0.1234, 0.02, 3)) == "12.3 ± 2.0" and str(Spread(0.5, 0.0, 1)) == "50.0"


def test_labels_say_what_differs():
    names = [name for name, _ in curves_of(summary(RESULTS))]
    assert names == ["zeroshot", "coop, unified", "coop, class-specific"]
    cells = [
        Cell("coop", model, 1, 1, Variant(n_ctx, init=init)) for model in "ab" for n_ctx in (None, 4) for init in (None, "a")
    ]
    assert label(cells[0], cells) == "coop, a, M = 16, random" and label(cells[3], cells) == 'coop, a, M = 4, "a"'
    assert len({label(cell, cells) for cell in cells}) == 8


def test_files(tmp_path):
    write_results(tmp_path, "toy $1 #", {"device": "cpu", "data": "é"}, RESULTS, plot=True)
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


def test_a_table_has_a_level_for_hand_written_prompts(tmp_path):
    first, zeroshot, coop, csc = table_of(summary(RESULTS))
    assert first == ["shots", "1", "4"] and zeroshot == ["zeroshot", "25.0", "25.0"]
    assert coop == ["coop, unified", "12.0 ± 1.0", "42.0 ± 1.0"] and csc == ["coop, class-specific", "-", "-"]
    rows = markdown_of(summary(RESULTS)).split("\n\n")[0].splitlines()
    assert rows[0] == "| top-1 %; shots | 1 | 4 |" and rows[1] == "| --- | --- | --- |" and len(rows) == 5


def test_what_each_learns_at_its_most_shots():
    rows = [
        result("zeroshot", 0, 0),
        *(result(shots=shots, seed=seed, seconds=shots + seed, parameters=2048) for shots in (1, 4) for seed in (1, 2)),
        result("tip-adapter", None),
        result("lp++", 16, top1=None),
    ]
    first, coop, tip = costs_of(summary(rows))
    assert first == ["method", "shots", "learns", "numbers", "seconds"]
    assert coop == ["coop", "4", METHODS["coop"].learns, "2,048", "5.5"]
    assert tip == ["tip-adapter", "all", "nothing; keeps the features of the train images", "0", "0.0"]
    assert markdown_of(summary(rows)).splitlines()[-1] == f"| {' | '.join(tip)} |"
