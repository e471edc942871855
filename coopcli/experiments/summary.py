"""Results of a grid over their seeds: means and deviations, the tables, and the paper's figure as plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..learning.methods import METHODS
from .describe import grouped, label
from .grid import Cell, Result

# The accuracies of a row; the latter two only where the base classes are learned.
VALUES = {"top1": "top-1 %", "new": "new classes, top-1 %", "harmonic": "harmonic mean of base and new, %"}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of n shares in [0, 1]; in print, of percentages."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.std:.1f}" if self.n > 1 else "")


@dataclass(frozen=True)
class SummaryRow:
    """Cells that differ in their seed only, and their accuracies over the seeds; None where no cell has one."""

    cell: Cell
    seeds: int
    top1: Spread | None
    macro: Spread | None
    new: Spread | None
    harmonic: Spread | None
    seconds: float
    parameters: int


class Curve(NamedTuple):
    """A line of the figure: points (place among the figure's shots, mean, deviation), the accuracies as shares in [0, 1].

    A `level` is a hand-written prompt's: one point, whose place means nothing.
    """

    label: str
    points: tuple[tuple[int, float, float], ...]
    level: bool


class Figure(NamedTuple):
    """The paper's figure: accuracy over the number of train images per class. `shots` name the places, in ascending order."""

    shots: tuple[str, ...]
    curves: tuple[Curve, ...]


def summary(results: Sequence[Result]) -> list[SummaryRow]:
    """The results over their seeds, in the order of their first cells."""
    return [
        SummaryRow(
            cell,
            seeds=len(group),
            top1=spread_of([result.top1 for result in group]),
            macro=spread_of([result.macro for result in group]),
            new=spread_of([result.new for result in group]),
            harmonic=spread_of([result.harmonic for result in group]),
            seconds=statistics.mean(result.seconds for result in group),
            parameters=max(result.parameters for result in group),
        )
        for cell, group in grouped(results, lambda result: result.cell.without_seed).items()
    ]


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Mean and deviation of the values that are not None; the deviation of a single one is 0."""
    known = [value for value in values if value is not None]
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else 0.0, len(known)) if known else None


def figure_of(rows: Sequence[SummaryRow], value: str = "top1") -> Figure:
    """The figure of an accuracy, for plots and pages alike; rows without it give a curve without points."""
    shots = _shots(rows)
    curves = []
    for name, of_curve in curves_of(rows):
        known = [(row.cell.shots, spread) for row in of_curve if (spread := getattr(row, value))]
        places = [(0 if number == 0 else shots.index(number), spread) for number, spread in known]
        points = sorted((place, spread.mean, spread.std) for place, spread in places)
        curves.append(Curve(name, tuple(points), level=all(row.cell.shots == 0 for row in of_curve)))
    return Figure(tuple(map(shots_name, shots)), tuple(curves))


def curves_of(rows: Sequence[SummaryRow]) -> list[tuple[str, list[SummaryRow]]]:
    """The lines of a figure or of a table: each a label, and the rows that differ in their number of shots only."""
    curves = grouped(rows, lambda row: replace(row.cell, shots=0))
    return [(label(cell, list(curves)), of_cell) for cell, of_cell in curves.items()]


def _shots(rows: Sequence[SummaryRow]) -> list[int | None]:
    """The numbers of train images per class, ascending; None, all of them, comes last, and 0 only where nothing else is."""
    shots = {row.cell.shots for row in rows} - {0}
    return sorted(shots, key=lambda number: math.inf if number is None else number) or [0]


def shots_name(shots: int | None) -> str:
    """A number of train images per class as a heading."""
    return "all" if shots is None else str(shots)


def table_of(rows: Sequence[SummaryRow], value: str = "top1") -> list[list[str]]:
    """A heading row, then a row for each method and variant: mean and deviation in % by the number of shots.

    A hand-written prompt, which takes no shots, has its level in every column.
    """
    shots = _shots(rows)
    table = [["shots", *map(shots_name, shots)]]
    for name, of_curve in curves_of(rows):
        by_shots = {row.cell.shots: getattr(row, value) for row in of_curve}
        table.append([name, *(str(by_shots.get(number, by_shots.get(0)) or "-") for number in shots)])
    return table


def costs_of(rows: Sequence[SummaryRow]) -> list[list[str]]:
    """A heading row, then for each method that learns: at how many shots, what it learns, how many numbers, how many seconds.

    Each at its most shots. The time is that of learning, with the features in the cache.
    """
    table = [["method", "shots", "learns", "numbers", "seconds"]]
    for name, of_curve in curves_of(rows):
        known = [row for row in of_curve if row.top1 and row.cell.shots != 0]
        if known:
            most = max(known, key=lambda row: math.inf if row.cell.shots is None else row.cell.shots)
            method = METHODS.get(most.cell.method)  # a results file may be of another version of coop
            learns = method.learns if method else "?"
            table.append([name, shots_name(most.cell.shots), learns, f"{most.parameters:,}", f"{most.seconds:.1f}"])
    return table


def markdown_of(rows: Sequence[SummaryRow]) -> str:
    """The tables of all accuracies that the rows hold, and of what each method costs, in Markdown."""
    tables = []
    for value, heading in VALUES.items():
        if any(getattr(row, value) for row in rows):
            first, *rest = table_of(rows, value)
            tables.append([[f"{heading}; {first[0]}", *first[1:]], *rest])
    if len(costs := costs_of(rows)) > 1:
        tables.append(costs)
    return "\n\n".join(map(_markdown, tables)) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([first, f"| {' | '.join(['---'] * len(rows[0]))} |", *rest])
