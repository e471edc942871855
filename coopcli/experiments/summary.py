"""Results of a grid: means over seeds, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..learning.methods import METHODS
from ..names import short_name
from .grid import Cell, Result

# What the accuracies of a line are; the latter two only where the base classes are learned.
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
class Line:
    """Cells that differ in their seed only, and their accuracies over the seeds, where there are any."""

    cell: Cell
    seeds: int
    top1: Spread | None
    macro: Spread | None
    new: Spread | None
    harmonic: Spread | None
    seconds: float
    parameters: int


def summary(results: Sequence[Result]) -> list[Line]:
    """The results over their seeds, in the order of their first cells."""
    groups: dict[Cell, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.cell, seed=0), []).append(result)
    return [
        Line(
            cell,
            seeds=len(group),
            top1=spread_of([result.top1 for result in group]),
            macro=spread_of([result.macro for result in group]),
            new=spread_of([result.new for result in group]),
            harmonic=spread_of([result.harmonic for result in group]),
            seconds=statistics.mean(result.seconds for result in group),
            parameters=max(result.parameters for result in group),
        )
        for cell, group in groups.items()
    ]


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Over the values that there are; the deviation of one is 0."""
    there = [value for value in values if value is not None]
    return Spread(statistics.mean(there), statistics.stdev(there) if len(there) > 1 else 0.0, len(there)) if there else None


def label(cell: Cell, cells: Sequence[Cell]) -> str:
    """What tells a cell's line from those of the others: its method, and of model and variant what is not the same in all."""
    words = [cell.method]
    if len({other.model for other in cells}) > 1:
        words.append(short_name(cell.model))
    if cell.variant:
        variants = [other.variant for other in cells if other.variant]
        shown = {"n_ctx": "M = {}", "position": "{}", "csc": "{}", "init": '"{}"', "recipe": "{}"}
        for name, form in shown.items():
            if len({getattr(variant, name) for variant in variants}) > 1:
                value = getattr(cell.variant, name)
                value = ("class-specific" if value else "unified") if name == "csc" else value
                words.append(form.format(value) if value is not None else {"init": "random"}.get(name, "M = 16"))
    return ", ".join(words)


def curves_of(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """The lines of a figure or the rows of a table: labels with what differs in the number of shots only."""
    curves: dict[Cell, list[Line]] = {}
    for line in lines:
        curves.setdefault(replace(line.cell, shots=0), []).append(line)
    cells = list(curves)
    return [(label(cell, cells), of_cell) for cell, of_cell in curves.items()]


def table_of(lines: Sequence[Line], value: str = "top1") -> list[list[str]]:
    """A heading row, then a row for each method and variant: mean and deviation in % by the number of shots.

    A hand-written prompt, which takes no shots, has its level in every column.
    """
    shots = list(dict.fromkeys(line.cell.shots for line in lines if line.cell.shots != 0)) or [0]
    rows = [["shots", *("all" if number is None else str(number) for number in shots)]]
    for name, of_curve in curves_of(lines):
        by_shots = {line.cell.shots: getattr(line, value) for line in of_curve}
        rows.append([name, *(str(by_shots.get(number, by_shots.get(0)) or "-") for number in shots)])
    return rows


def costs_of(lines: Sequence[Line]) -> list[list[str]]:
    """A heading row, then for each that learns: at how many shots, what it learns, how many numbers, in how many seconds.

    Each at its most shots. The time is that of learning, with the features in the cache.
    """
    rows = [["method", "shots", "learns", "numbers", "seconds"]]
    for name, of_curve in curves_of(lines):
        there = [line for line in of_curve if line.top1 and line.cell.shots != 0]
        if there:
            most = max(there, key=lambda line: math.inf if line.cell.shots is None else line.cell.shots)
            shots = "all" if most.cell.shots is None else str(most.cell.shots)
            learns = METHODS[most.cell.method].learns
            rows.append([name, shots, learns, f"{most.parameters:,}", f"{most.seconds:.1f}"])
    return rows


def markdown_of(lines: Sequence[Line]) -> str:
    """The tables of the values that there are, and of what each method costs, in Markdown."""
    tables = []
    for value, heading in VALUES.items():
        if any(getattr(line, value) for line in lines):
            first, *rows = table_of(lines, value)
            tables.append([[f"{heading}; {first[0]}", *first[1:]], *rows])
    if len(costs := costs_of(lines)) > 1:
        tables.append(costs)
    return "\n\n".join(map(_markdown, tables)) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([first, f"| {' | '.join(['---'] * len(rows[0]))} |", *rest])
