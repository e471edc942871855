"""What all commands share: bounds that every value keeps, and usage errors in one line."""

from __future__ import annotations

import math
import os
import re
import tempfile
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..names import encodable
from ..parallel import join, launched
from .config import key_of
from .console import shortened, status
from .help import write_help

# Options that are texts; in the others, a name of a file may hold bytes that are not Unicode.
TEXTS = {
    "template", "init", "revision", "split", "image-column", "label-column", "wandb", "license", "message", "target", "methods",
    "model",
}  # fmt: skip
HELP = ["-h", "--help"]
LIGHT = {"cache", "data"}  # commands that need no PyTorch
LONGEST = 40  # characters of a value that a message repeats
# What the processes of a torchrun or srun do together, and what each does apart; the first alone does anything else.
TOGETHER, APART = {"fit", "eval", "zeroshot", "ensemble", "predict", "transfer"}, {"sweep", "encode"}
LARGEST = 2**63 - 1  # what seeds, counts and sizes may be: the integers of PyTorch and SQLite


class OwnHelp:
    """The names of the help option, and the layout of help screens."""

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """Both names, in the command reference too."""
        return HELP

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Lay out the help screen; see help.py."""
        formatter.write(write_help(self, ctx))


class Command(OwnHelp, TyperCommand):
    """A command whose numbers are finite and of a possible size, and whose texts can be names of files."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with the other processes where this is one of many.

        While PyTorch loads, which takes most of the time before anything happens, a terminal says so.
        """
        here = launched()
        if here.rank and self.name not in TOGETHER | APART:
            return None
        if self.name not in LIGHT:
            _name_temporary_folder()
            with status("loading PyTorch"):
                import_module("torch")
        if here.size > 1 and self.name in TOGETHER | APART:
            from ..machine import end_with_parent

            if "TORCHELASTIC_RUN_ID" in os.environ:  # a torchrun that was killed cannot end what it started
                end_with_parent(os.getppid(), by_main_thread=False)
            join(ctx.params.get("device", "auto"), self.name in TOGETHER)
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; raises BadParameter for a value that no option can mean."""
        left = super().parse_args(ctx, args)
        for parameter in self.params:
            values = ctx.params.get(parameter.name)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if problem := problem_of(value, key_of(parameter)):
                    raise typer.BadParameter(problem, ctx=ctx, param=parameter)  # type: ignore[arg-type]
        return left


def _name_temporary_folder() -> None:
    """Name a temporary folder where none can be written: libraries that PyTorch loads ask for its name, and write nothing."""
    try:
        tempfile.gettempdir()
    except OSError:
        tempfile.tempdir = os.devnull
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)  # one that is there already: what is missing it would make


class Group(OwnHelp, TyperGroup):
    """The program itself, whose help screen is laid out like those of its commands."""


def problem_of(value: Any, key: str = "") -> str | None:
    """Say what is wrong with a value, whichever option it is of; None when nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of {len(str(value)) if abs(value) < 10**4000 else 'over 4000'} digits is too large"
    if value is not None and "\0" in str(value):
        return f'"{value}" holds a null character'
    if key in TEXTS and value is not None and str(value) != encodable(str(value)):
        return f'"{value}" is not valid Unicode text'
    return None


def _given(error: Any) -> str | None:
    """The value that pydantic, by which typer checks numbers, did not take; None where it does not say."""
    try:
        return shortened(str(error.__cause__.errors()[0]["input"]), LONGEST)
    except (AttributeError, LookupError, TypeError):
        return None


def usage_line(error: Any) -> str:
    """Put a usage error of typer into one line that ends on where to look."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    hint = getattr(error, "param_hint", None) or (key_of(parameter) if parameter else None)
    name = hint if isinstance(hint, str) or hint is None else ", ".join(hint)
    if parameter and name == key_of(parameter) and parameter.param_type_name == "option":
        name = f"--{name}"
    message = str(getattr(error, "message", error)).removeprefix("Value error, ")
    message = re.sub(r"^Input should be (.*?)(, unable to .*)?$", r"must be \1", message)
    if message.startswith("must be ") and (given := _given(error)) is not None:
        message += f', not "{given}"'
    if isinstance(error, typer.BadParameter) and name and message:
        choice = re.fullmatch(r"'(.*)' is not one of (.*?)\.?", message, re.DOTALL)
        if choice:
            *others, last = re.findall(r"'([\w.-]+)'", choice[2])
            message = f'unknown {name.removeprefix("--")} "{choice[1]}"; choose {", ".join(others)} or {last}'
        else:
            message = f"{name}: {message}"
    else:
        message = error.format_message()
    message = " ".join(message.split()).removesuffix(".")
    message = message[:1].lower() + message[1:]
    return f"{message} (see {context.command_path} --help)" if context else message
