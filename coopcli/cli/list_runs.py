"""`coop list`: the runs and sweeps in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import percent, print_json, say, table


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look; folders below it count too.")] = Path(
        options.RUNS_FOLDER
    ),
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:
    """List runs and sweeps: data, model, variant, shots, accuracy, gain, date, and how far those are that are not done.

    The gain is in percentage points over the hand-written prompt. Of a sweep, its best row is shown. `coop fit --config
    RUN/settings.toml` resumes a run that is not done.
    """
    from ..experiments.listing import DONE
    from ..experiments.listing import list_runs as find_runs

    rows = find_runs(folder)
    if json:
        print_json({"command": "list", "folder": str(folder), "runs": [asdict(row) for row in rows]})
        return
    if not rows:
        say(f'note: no runs in "{folder}"; `coop fit DATA` makes one')
        return
    cells = []
    for row in rows:
        gain = "-" if row.gain is None else f"{100 * row.gain:+.1f}"
        place = Path(row.folder)
        name = place.relative_to(folder) if place != folder else place
        cells.append((str(name), row.data, row.model, row.variant, row.shots, percent(row.accuracy), gain, row.date, row.state))
    headings = ("run", "data", "model", "variant", "shots", "top-1 %", "gain", "date", "state")
    table(headings, cells, left=(0, 1, 2, 3, 8), dim=[row.state != DONE for row in rows])
