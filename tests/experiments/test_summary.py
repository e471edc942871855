import statistics

import pytest

from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.summary import Spread, costs_of, figure_of, markdown_of, spread_of, summary, table_of
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


def test_the_figure_has_a_place_for_all_shots():
    rows = [*RESULTS, result(shots=None, seed=1, top1=0.9, variant=Variant())]
    shots, curves = figure_of(summary(rows[::-1]))
    assert shots == ("1", "4", "all")
    by_label = {label: (points, level) for label, points, level in curves}
    (_, mean, std), *rest = by_label["zeroshot"][0]
    assert (mean, std, rest) == (0.25, 0.0, []) and by_label["zeroshot"][1]
    coop, level = by_label["coop, unified"]
    assert not level and [(place, round(mean, 6)) for place, mean, _ in coop] == [(0, 0.12), (1, 0.42), (2, 0.9)]
    assert coop[0][2] == pytest.approx(0.01) and by_label["coop, class-specific"] == ((), False)
    assert table_of(summary(rows[::-1]))[0] == ["shots", "1", "4", "all"]
    assert figure_of(summary(RESULTS[:1])) == (("0",), (("zeroshot", ((0, 0.25, 0.0),), True),))


def test_a_table_has_a_level_for_hand_written_prompts():
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
