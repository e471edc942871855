"""The folder of a sweep: the result of each experiment and the results of all, written and read back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CoopError
from ..files import CELLS_FOLDER, RESULT_FILE, RESULTS_FILE, csv_of, write_atomically, write_json
from ..machine import pick_device
from . import plots
from .claims import holder
from .grid import Cell, Result, Variant
from .run_folder import check_tables, checked_share, provenance
from .summary import VALUES, Figure, Spread, SummaryRow, figure_of, markdown_of, summary

ACCURACIES = ("top1", "macro", "new", "harmonic")


@dataclass(frozen=True)
class Sweep:
    """What the folder of `coop sweep` holds: a summary over the seeds, and each result."""

    folder: Path
    rows: list[SummaryRow]
    results: list[dict[str, Any]]
    settings: dict[str, Any]
    about: dict[str, Any]


def read_sweep(folder: Path) -> Sweep:
    """Read the results.json of a sweep. Raises CoopError for one that is damaged."""
    path = folder / RESULTS_FILE
    try:
        about = check_tables(json.loads(path.read_text("utf-8")))
        rows, results, settings = about.pop("summary"), about.pop("results"), about.pop("settings")
        return Sweep(
            folder, [_summary_row(entry) for entry in rows], [_result_row(row) for row in results], dict(settings), about
        )
    except OSError as error:
        raise CoopError(f'"{path}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(f'"{path}" is not what `coop sweep` wrote') from error


def _result_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of results.json. Raises ValueError for numbers that no experiment gives."""
    for name in ACCURACIES:
        if row[name] is not None:
            checked_share(row[name])
    if type(row["seconds"]) not in (int, float) or not 0 <= row["seconds"] < math.inf:
        raise ValueError("seconds are a number from 0 up")
    return dict(row)


def _summary_row(entry: dict[str, Any]) -> SummaryRow:
    """The summary row that an entry of results.json was made of."""

    def spread(name: str) -> Spread | None:
        if entry[name] is None:
            return None
        return Spread(checked_share(entry[name]), checked_share(entry[f"{name}_std"]), int(entry[f"{name}_seeds"]))

    variant = (
        None
        if entry["position"] is None
        else Variant(**{part.name: entry[part.name] for part in fields(Variant) if part.name in entry})
    )
    shots = None if entry["shots"] == "all" else int(entry["shots"])
    cell = Cell(str(entry["method"]), str(entry["model"]), shots, 0, variant)
    spreads = {name: spread(name) for name in ACCURACIES}
    return SummaryRow(
        cell, int(entry["seeds"]), seconds=float(entry["seconds"]), parameters=int(entry["parameters"]), **spreads
    )


def cell_folder(folder: Path, cell: Cell) -> Path:
    """The folder of one experiment within its sweep's."""
    return folder / CELLS_FOLDER / cell.folder


def write_result(folder: Path, result: Result) -> None:
    """Keep the result of one experiment. Raises CoopError when it cannot be written."""
    write_json(cell_folder(folder, result.cell) / RESULT_FILE, asdict(result) | {"cell": result.cell.as_dict()})


def read_result(folder: Path, cell: Cell) -> Result | None:
    """The result of an experiment that is done; None for one that is not or was left out, and for a file that is damaged.

    Nothing in the file is believed that no experiment could have given.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        entry = json.loads((cell_folder(folder, cell) / RESULT_FILE).read_text("utf-8"))
        if entry.pop("cell") == json.loads(json.dumps(cell.as_dict())):
            return _checked(Result(cell, **entry))
    return None


def _checked(result: Result) -> Result:
    """Raises ValueError, TypeError for a result that no experiment could have given."""
    for name in ACCURACIES:
        if (share := getattr(result, name)) is not None:
            checked_share(share)
    counts = [result.images, result.train_images, result.parameters, result.peak_memory]
    texts = [result.note, *result.versions.keys(), *result.versions.values()]
    digests = [result.few_shot_sha256, result.fingerprint, result.learned_from, result.tested_on]
    if (
        result.top1 is None
        or result.macro is None
        or not all(type(count) is int and 0 <= count < 2**63 for count in counts)
        or type(result.seconds) not in (int, float)
        or not 0 <= result.seconds < math.inf
        or not all(isinstance(text, str) for text in texts)
        or not all(digest is None or isinstance(digest, str) for digest in digests)
    ):
        raise ValueError("no experiment gives this")
    hits = result.top1 * result.images
    if not result.images or abs(hits - round(hits)) > 1e-6 * result.images:
        raise ValueError("no number of images gives this accuracy")
    return result


def remove_sweep(folder: Path) -> None:
    """Remove what a sweep gave: the results of all first, then each experiment's.

    Raises CoopError when another process works there, or when it cannot be written.
    """
    for claim in (folder, *(folder / CELLS_FOLDER).glob("*")):
        if process := holder(claim):
            raise CoopError(f'"{folder}" is in use by {process}; wait until it ends, or use another --output')
    drawn = [f"accuracy{value}.{form}" for value in ("", "-new", "-harmonic") for form in ("png", "svg")]
    try:
        for name in (RESULTS_FILE, "results.csv", "results.md", "report.html", *drawn):
            (folder / name).unlink(missing_ok=True)
        if (folder / CELLS_FOLDER).exists():
            shutil.rmtree(folder / CELLS_FOLDER)
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error


def write_results(folder: Path, title: str, settings: dict[str, Any], results: Sequence[Result], plot: bool) -> dict[str, Any]:
    """Write results.csv, .json and .md and, if wanted, the figures; returns the content of results.json.

    Raises CoopError when they cannot be written.
    """
    table, rows = [flat_row(result) for result in results], summary(results)
    content = {
        **provenance(pick_device(settings.get("device", "cpu"))),
        "settings": settings,
        "summary": [_summary_entry(row) for row in rows],
        "results": [{**entry, "versions": result.versions} for entry, result in zip(table, results, strict=True)],
    }
    write_atomically(folder / "results.csv", csv_of(table).encode())
    write_json(folder / RESULTS_FILE, content)
    write_atomically(folder / "results.md", markdown_of(rows).encode())
    if plot and any(row.top1 for row in rows):
        for value in VALUES:
            if any(getattr(row, value) for row in rows):
                name = folder / ("accuracy" if value == "top1" else f"accuracy-{value}")
                _draw(name, title if value == "top1" else f"{title}, {value}", figure_of(rows, value))
    return content


def _summary_entry(row: SummaryRow) -> dict[str, Any]:
    cell = {key: value for key, value in _flat_cell(row.cell).items() if key != "seed"}
    entry: dict[str, Any] = {**cell, "seeds": row.seeds}
    for name in ACCURACIES:
        spread: Spread | None = getattr(row, name)
        entry |= {name: spread and spread.mean, f"{name}_std": spread and spread.std, f"{name}_seeds": spread and spread.n}
    return {**entry, "seconds": row.seconds, "parameters": row.parameters}


def flat_row(result: Result) -> dict[str, Any]:
    """A result as one row of a table, the variant's settings as columns."""
    own = {key: value for key, value in vars(result).items() if key not in ("cell", "versions", "learned_from", "tested_on")}
    return {**_flat_cell(result.cell), **own}


def _flat_cell(cell: Cell) -> dict[str, Any]:
    variant = vars(cell.variant) if cell.variant else dict.fromkeys(vars(Variant()))
    return {
        "method": cell.method,
        "model": cell.model,
        "shots": "all" if cell.shots is None else cell.shots,
        "seed": cell.seed,
    } | variant


def _draw(path: Path, title: str, figure: Figure) -> None:
    """Curves over shots, or bars where there is one number of shots only."""
    if len(figure.shots) > 1:
        plots.curves(path, title, figure.shots, figure.curves)
    else:
        plots.bars(path, title, [(label, *points[0][1:]) for label, points, _ in figure.curves if points])
