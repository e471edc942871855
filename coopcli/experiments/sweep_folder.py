"""The folder of a sweep: its results, written and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CoopError
from ..files import RESULTS_FILE, csv_of, write_atomically, write_json
from ..machine import pick_device
from . import plots
from .grid import Cell, Result, Variant
from .run_folder import check_tables, provenance
from .summary import VALUES, Line, Spread, curves_of, markdown_of, summary


@dataclass(frozen=True)
class Sweep:
    """What the folder of `coop sweep` holds: lines over the seeds, and each result."""

    folder: Path
    lines: list[Line]
    results: list[dict[str, Any]]
    settings: dict[str, Any]
    about: dict[str, Any]


def read_sweep(folder: Path) -> Sweep:
    """Read the results.json of a sweep. Raises CoopError for one that is damaged."""
    path = folder / RESULTS_FILE
    try:
        about = check_tables(json.loads(path.read_text("utf-8")))
        lines, results, settings = (about.pop(key) for key in ("summary", "results", "settings"))
        return Sweep(folder, [_line(row) for row in lines], [dict(row) for row in results], dict(settings), about)
    except OSError as error:
        raise CoopError(f'"{path}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(f'"{path}" is not what `coop sweep` wrote') from error


def _line(row: dict[str, Any]) -> Line:
    """The line that a row of results.json's summary was made of."""

    def spread(name: str) -> Spread | None:
        return None if row[name] is None else Spread(float(row[name]), float(row[f"{name}_std"]), int(row[f"{name}_seeds"]))

    variant = None if row["position"] is None else Variant(**{entry.name: row[entry.name] for entry in fields(Variant)})
    cell = Cell(str(row["method"]), str(row["model"]), None if row["shots"] == "all" else int(row["shots"]), 0, variant)
    spreads = {name: spread(name) for name in ("top1", "macro", "new", "harmonic")}
    return Line(cell, int(row["seeds"]), seconds=float(row["seconds"]), parameters=int(row["parameters"]), **spreads)


def write_results(folder: Path, title: str, settings: dict[str, Any], results: Sequence[Result], plot: bool) -> dict[str, Any]:
    """Write results.csv, .json and .md and, if wanted, the figures; returns what results.json holds.

    Raises CoopError when they cannot be written.
    """
    rows, lines = [flat_row(result) for result in results], summary(results)
    content = {
        **provenance(pick_device(settings.get("device", "cpu"))),
        "settings": settings,
        "summary": [_summary_row(line) for line in lines],
        "results": [{**row, "versions": result.versions} for row, result in zip(rows, results, strict=True)],
    }
    write_atomically(folder / "results.csv", csv_of(rows).encode())
    write_json(folder / RESULTS_FILE, content)
    write_atomically(folder / "results.md", markdown_of(lines).encode())
    if plot and any(line.top1 for line in lines):
        for value in VALUES:
            if not any(getattr(line, value) for line in lines):
                continue
            name = folder / ("accuracy" if value == "top1" else f"accuracy-{value}")
            _draw(name, title if value == "top1" else f"{title}, {value}", lines, value)
    return content


def _summary_row(line: Line) -> dict[str, Any]:
    cell = {key: value for key, value in _flat_cell(line.cell).items() if key != "seed"}
    row: dict[str, Any] = {**cell, "seeds": line.seeds}
    for name in ("top1", "macro", "new", "harmonic"):
        spread: Spread | None = getattr(line, name)
        row |= {name: spread and spread.mean, f"{name}_std": spread and spread.std, f"{name}_seeds": spread and spread.n}
    return {**row, "seconds": line.seconds, "parameters": line.parameters}


def flat_row(result: Result) -> dict[str, Any]:
    """A result as one row of a table, variant and all."""
    own = {key: value for key, value in vars(result).items() if key not in ("cell", "versions")}
    return {**_flat_cell(result.cell), **own}


def _flat_cell(cell: Cell) -> dict[str, Any]:
    variant = vars(cell.variant) if cell.variant else dict.fromkeys(vars(Variant()))
    shots = "all" if cell.shots is None else cell.shots
    return {"method": cell.method, "model": cell.model, "shots": shots, "seed": cell.seed, **variant}


def _draw(path: Path, title: str, lines: Sequence[Line], value: str) -> None:
    """Curves over shots, or bars where there is one number of shots only."""
    curves = curves_of(lines)
    learned = {line.cell.shots for line in lines if line.cell.shots != 0}
    if len(learned) > 1:
        plots.curves(path, title, curves, value)
    else:
        there = [(name, getattr(rows[0], value)) for name, rows in curves]
        plots.bars(path, title, [(name, of.mean, of.std) for name, of in there if of])
