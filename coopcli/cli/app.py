"""The `coop` application: its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from . import (
    cache,
    data,
    demo,
    encode,
    evaluate,
    export,
    fit,
    import_prompt,
    interpret,
    list_runs,
    predict,
    push,
    report,
    sweep,
    transfer,
    zeroshot,
)
from .command import Command, Group
from .console import NORMAL, line, set_level, show_warnings

app = typer.Typer(
    name="coop",
    cls=Group,
    help="Learn prompts for CLIP from a few labelled images (CoOp, Zhou et al., IJCV 2022).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        line(f"coop {__version__}")
        raise typer.Exit


@app.callback()
def _coop(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    set_level(NORMAL)
    show_warnings()


app.command("fit", cls=Command)(fit.fit)
app.command("encode", cls=Command)(encode.encode)
app.command("eval", cls=Command)(evaluate.evaluate)
app.command("predict", cls=Command)(predict.predict)
app.command("zeroshot", cls=Command)(zeroshot.zeroshot)
app.command("ensemble", cls=Command)(zeroshot.ensemble)
app.command("interpret", cls=Command)(interpret.interpret)
app.command("list", cls=Command)(list_runs.list_runs)
app.command("report", cls=Command)(report.report)
app.command("export", cls=Command)(export.export)
app.command("push", cls=Command)(push.push)
app.command("import", cls=Command)(import_prompt.import_prompt)
app.command("sweep", cls=Command)(sweep.sweep)
app.command("transfer", cls=Command)(transfer.transfer)
app.command("data", cls=Command)(data.data)
app.command("demo", cls=Command)(demo.demo)
app.command("cache", cls=Command)(cache.cache)
