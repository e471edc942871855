"""`coop report`: runs and sweeps as one HTML page."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..choices import Dtype
from ..files import RESULTS_FILE
from . import options
from .console import Bars, print_json, progress, relative, say

if TYPE_CHECKING:
    from ..clip.backbone import Backbone
    from ..experiments.run_folder import Run


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of `coop fit`, side by side, and folders of `coop sweep`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html",
                     show_default="report.html in the run folder, or in the folder that holds all",
                     help="Page to write."),
    ] = None,
    model: options.SameModelOption = None,
    device: options.DeviceOption = "auto",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Write one HTML page about runs: accuracy and gain, curves, confusion, worst mistakes, nearest tokens, settings.

    The page holds all that it shows, runs no script and fetches nothing: send it as it is. Of several runs with the same
    settings it shows mean and standard deviation over the seeds. The worst mistakes are found by classifying the test
    images again; if these or the model are gone, the page is made without them and says so.
    """
    from ..experiments.run_folder import read_run
    from ..experiments.sweep_folder import read_sweep
    from ..report.look import look_at
    from ..report.page import write_report
    from .finding import check_prompt
    from .setup import open_backbone, open_cache

    for folder in runs:
        if not (folder / RESULTS_FILE).is_file():
            check_prompt(str(folder))
    sweeps = [read_sweep(folder) for folder in runs if (folder / RESULTS_FILE).is_file()]
    fits = [read_run(folder) for folder in runs if not (folder / RESULTS_FILE).is_file()]

    cache = open_cache(no_cache)

    @lru_cache
    def open_model(name: str, revision: str | None, dtype: Dtype) -> Backbone:
        return open_backbone(name, revision, device, dtype, pickles, cache)

    def model_of(run: Run) -> Backbone:
        dtype: Dtype = "bfloat16" if run.prompt.training.get("dtype") == "bfloat16" else "float32"
        return open_model(model or run.prompt.model, None if model else run.prompt.revision, dtype)

    looks = []
    if fits:
        with progress() as live:
            bars = Bars(live)
            looks = [look_at(run, model_of, cache, bars.counter(f"images of {run.folder.name}")) for run in fits]
    path = output or default_page(runs)
    write_report(path, fits, looks, sweeps)
    notes = [f"{run.folder}: {note}" for run, look in zip(fits, looks, strict=True) for note in look.notes]
    if json:
        print_json({"command": "report", "report": str(relative(path)), "runs": list(map(str, runs)), "notes": notes})
    for note in notes:
        say(f"note: {note}")
    say(f"report: {relative(path)}")


def default_page(runs: list[Path]) -> Path:
    """`report.html` in the run folder, or in the folder that holds all of several."""
    folder = runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.absolute() for run in runs]))
    return folder / "report.html"
