"""The runs and sweeps below a folder, done or not, one row each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CoopError, UsageError
from ..files import CELLS_FOLDER, CHECKPOINT_FILE, PROMPT_FILE, RESULT_FILE, RESULTS_FILE, SETTINGS_FILE
from ..learned.safefile import ENTRY
from ..names import short_name
from ..settings import read_settings
from .grid import Variant
from .run_folder import read_run
from .summary import Spread, curves_of, shots_name
from .sweep_folder import read_sweep

DONE = "done"


@dataclass(frozen=True)
class Listed:
    """A run or sweep: what it learned from, how well, when it was last written, and whether it is done.

    Accuracies are shares in [0, 1], None where there are none yet; of a sweep, that of its best row, which `variant` names.
    `gain` is the accuracy less that of the hand-written prompt on the same images. `date` is local time, ISO 8601.
    """

    folder: str
    command: str
    data: str
    model: str
    variant: str
    shots: str
    accuracy: float | None
    gain: float | None
    date: str
    state: str


def list_runs(folder: Path) -> list[Listed]:
    """The runs and sweeps in a folder and below it, the last written first. Raises UsageError for what is not a folder."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is not there"
        raise UsageError(f'"{folder}" {what}; give the folder that holds your runs: coop list FOLDER')
    rows = [_listed(place) for place in _run_folders(folder)]
    return sorted(rows, key=lambda row: (row.date, row.folder), reverse=True)


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        if SETTINGS_FILE in files:
            yield Path(place)
        below[:] = sorted(name for name in below if name != CELLS_FOLDER and not name.startswith("."))


def _listed(folder: Path) -> Listed:
    try:
        settings = read_settings(folder / SETTINGS_FILE)
    except CoopError:
        settings = {}
    is_sweep = "methods" in settings
    row = Listed(
        folder=str(folder),
        command="sweep" if is_sweep else "fit",
        data=str(settings.get("data", "?")),
        model=", ".join(short_name(name) for name in str(settings.get("model", "?")).split(",")),
        variant="?",
        shots=str(settings.get("shots", "?")),
        accuracy=None,
        gain=None,
        date=_last_written(folder),
        state="damaged settings",
    )
    if not settings:
        return row
    try:
        row = replace(row, variant=str(settings["methods"]) if is_sweep else _variant(settings))
    except (TypeError, ValueError):  # written by hand
        return row
    try:
        return replace(row, **(_sweep(folder) if is_sweep else _fit(folder)))
    except CoopError:
        return replace(row, state="damaged results")


def _fit(folder: Path) -> dict[str, Any]:
    if not (folder / PROMPT_FILE).exists():
        return {"state": _epoch_reached(folder / CHECKPOINT_FILE)}
    run = read_run(folder)
    top1 = run.learned and run.learned.metrics.top1
    return {"variant": run.variant.partition(", ")[2], "accuracy": top1, "gain": run.gain, "state": DONE}


def _sweep(folder: Path) -> dict[str, Any]:
    if not (folder / RESULTS_FILE).exists():
        done = len(list((folder / CELLS_FOLDER).glob(f"*/{RESULT_FILE}")))
        return {"state": f"{done} experiments done"}
    best: tuple[str, str, Spread] | None = None
    rows = read_sweep(folder).rows
    for label, of_curve in curves_of(rows):
        for row in of_curve:
            if row.top1 and row.cell.shots != 0 and (best is None or row.top1.mean > best[2].mean):
                best = label, shots_name(row.cell.shots), row.top1
    if not best:
        return {"state": DONE}
    by_hand = max((row.top1.mean for row in rows if row.cell.method == "zeroshot" and row.top1), default=None)
    gain = None if by_hand is None else best[2].mean - by_hand
    return {"variant": f"best: {best[0]}", "shots": best[1], "accuracy": best[2].mean, "gain": gain, "state": DONE}


def _variant(settings: dict[str, Any]) -> str:
    """How a prompt is to be learned, from the settings of a run that is not done."""
    words = Variant(
        settings.get("context-length"),
        settings.get("position", "end"),
        bool(settings.get("csc")),
        settings.get("init"),
        settings.get("recipe", "paper"),
        float(settings.get("keep-close") or 0),
    ).words()
    hidden = {
        field
        for field, default in (("csc", "unified"), ("init", "random"), ("keep_close", "keep-close 0"))
        if words[field] == default
    }
    return ", ".join(word for field, word in words.items() if field not in hidden)


def _epoch_reached(checkpoint: Path) -> str:
    """Where training stands: `epoch 166 of 400`."""
    if not checkpoint.exists():
        return "not trained yet"
    try:
        with safe_open(checkpoint, framework="np") as file:
            last = json.loads((file.metadata() or {})[ENTRY])["log"][-1]
        return f"epoch {int(last['epoch']) + 1} of {int(last['epochs'])}"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):
        return "damaged checkpoint"


def _last_written(folder: Path) -> str:
    names = (SETTINGS_FILE, PROMPT_FILE, CHECKPOINT_FILE, RESULTS_FILE)
    times = [path.stat().st_mtime for name in names if (path := folder / name).exists()]
    return datetime.fromtimestamp(max(times or [folder.stat().st_mtime])).isoformat(" ", "minutes")
