"""The `coop` application: its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from . import (
    cache,
    demo,
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
from .console import show_warnings

app = typer.Typer(
    name="coop",
    help="Learn prompts for CLIP from a few labelled images (CoOp, Zhou et al., IJCV 2022).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"coop {__version__}")
        raise typer.Exit


@app.callback()
def _coop(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    show_warnings()


app.command("fit")(fit.fit)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("zeroshot")(zeroshot.zeroshot)
app.command("ensemble")(zeroshot.ensemble)
app.command("interpret")(interpret.interpret)
app.command("list")(list_runs.list_runs)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("import")(import_prompt.import_prompt)
app.command("sweep")(sweep.sweep)
app.command("transfer")(transfer.transfer)
app.command("demo")(demo.demo)
app.command("cache")(cache.cache)
