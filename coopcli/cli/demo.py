"""`coop demo`: the whole story on satellite photographs and drawn images, each step a command to type."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import Bars, line, percent, progress, say, table

SHOTS = 16
Coop = Callable[..., Any]  # runs a command line of the application


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to draw the images and write the runs.")] = Path(
        "coop-demo"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the fits.")] = 1,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Run zeroshot, ensemble, fit, eval and interpret on satellite photographs and on small drawn data sets.

    Takes about a minute, needs no network, and ends on one table: hand-written, ensemble, learned, gain.
    """
    from ..demo import satellites
    from ..demo.tasks import TASKS, TEST, TRAIN, draw_demo

    coop: Coop = context.find_root().command.main
    with progress() as live:
        bars = Bars(live)
        draw_demo(folder, lambda done: bars.update("drawing data sets", done, len(TASKS)))

    rows: list[tuple[str, ...]] = []

    def compare(row: str, hand_written: float, ensemble: float, learned: float) -> None:
        gain = f"{100 * (learned - hand_written):+.1f}"
        rows.append((row, percent(hand_written), percent(ensemble), percent(learned), gain))

    def learn(name: str, *template: str) -> tuple[float, float, float]:
        """Top-1 of the hand-written prompt, the ensemble and the learned prompt on a data set's test images."""
        data, run = str(folder / name), str(folder / "runs" / name)
        fit = ["fit", data, *template, "--shots", str(SHOTS), "--recipe", "fast", "--views", "4"]
        fit += ["--model", "mini", "--seed", str(seed), "--output", run]
        return (
            _run(coop, ["zeroshot", data, *template, "--model", "mini"])["top1"],
            _run(coop, ["ensemble", data, "--model", "mini"])["top1"],
            _run(coop, fit)["top1"],
        )

    say(f"\nsatellites: land use from space; 10 classes, {satellites.TRAIN} train and {satellites.TEST} test photographs each")
    satellites.unpack_satellites(folder / "satellites")
    compare("satellites", *learn("satellites", "--template", satellites.TEMPLATE))
    for name, task in TASKS.items():
        say(f"\n{name}: {task.story}; {len(task.classes)} classes, {TRAIN} train and {TEST} test images each")
        compare(name, *learn(name))
        shifted, run = str(folder / f"{name}-shifted"), str(folder / "runs" / name)
        compare(
            f"{name}, drawn otherwise",
            _run(coop, ["zeroshot", shifted, "--model", "mini"])["top1"],
            _run(coop, ["ensemble", shifted, "--model", "mini"])["top1"],
            _run(coop, ["eval", run, shifted])["top1"],
        )
    first = str(folder / "runs" / "satellites")
    _run(coop, ["interpret", first, "--top", "3"], quiet=False)
    line("top-1 accuracy in %")
    table(("task", "hand-written", "ensemble", "learned", "gain"), rows)
    say(f"\nThe images and runs are in {folder}. Next: coop fit on a folder of your own, one folder of images per class.")


def _run(coop: Coop, arguments: list[str], quiet: bool = True) -> dict[str, Any]:
    """Show a command line and run it. When quiet, read its metrics as JSON, say their top-1, and return them."""
    say(f"$ coop {shlex.join(arguments)}")
    if not quiet:
        coop(arguments, standalone_mode=False)
        return {}
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        code = coop([*arguments, "--json"], standalone_mode=False)
    if code:
        raise typer.Exit(code)
    content = json.loads(captured.getvalue())
    result: dict[str, Any] = content.get("learned", content)
    say(f"  top-1 {percent(result['top1'])} %")
    return result
