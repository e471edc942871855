"""Help screens: names beside their explanations, or above them where the terminal is narrow; no default is cut."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from .console import out, rendered

WIDEST, NARROW = 100, 64  # columns of a terminal; in a narrow one explanations stand below the names
NAMES = 26  # columns for the names of options
INDENT = 6  # of an explanation below its name
TYPES = {"<int>": "N", "<int range>": "N", "<float>": "X", "<float range>": "X", "<str>": "TEXT", "<path>": "PATH"}
MARKED = re.compile(r"`([^`]*)`|(  \[[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*\]$)")  # code, and the remark on default and range


def write_help(command: Any, context: Any) -> str:
    """Lay out the help of a command or of the whole program for the width of the terminal."""
    return rendered(_lines(command, context, min(out.width, WIDEST)))


def _lines(command: Any, context: Any, width: int) -> Iterable[Text]:
    pieces = [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in command.collect_usage_pieces(context)]
    usage = re.sub(r"\.{4,}", "...", " ".join(["Usage:", context.command_path, *pieces]))
    yield Text("\n".join(textwrap.wrap(usage, width, subsequent_indent=" " * 7)))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield Text()
        yield from _wrapped(_styled(" ".join(paragraph.split())), width - 1)
    for title, rows in _panels(command, context):
        yield Text()
        yield Text(title, style="bold")
        for name, explanation in rows:
            yield from _entry(name, explanation, width)


def _wrapped(text: Text, width: int) -> list[Text]:
    lines = list(text.wrap(out, width))
    for line in lines:
        line.rstrip()
    return lines


def _panels(command: Any, context: Any) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """The sections with their rows: arguments, options without a panel, then the panels in the order of their first option."""
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    commands = [(name, command.get_command(context, name)) for name in names]
    summaries = [(name, inspect.cleandoc(one.help or "").split("\n\n")[0]) for name, one in commands]
    panels: dict[str, list[tuple[str, str]]] = {"Commands": summaries, "Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            title = "Arguments" if parameter.param_type_name == "argument" else parameter.rich_help_panel or "Options"
            panels.setdefault(title, []).append((_name(parameter, record[0]), record[1]))
    return [(title, rows) for title, rows in panels.items() if rows]


def _name(parameter: Any, record: str) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or record.split()[0])
    name, _, kind = record.partition(" <")
    kind = TYPES.get(f"<{kind}", kind.removesuffix(">"))
    return f"{name} {kind}".rstrip()


def _entry(name: str, explanation: str, width: int) -> Iterable[Text]:
    explanation = re.sub(r"default: \((.*?)\)(?=[;\]])", r"default: \1", explanation)
    text = _styled(" ".join(explanation.replace("  [", "\0[").split()).replace("\0", "  "))
    beside = width >= NARROW
    indent = NAMES + 2 if beside else INDENT
    lines = _wrapped(text, width - indent - 1)
    head = Text.assemble((f"  {name}", "cyan"))
    if beside and len(name) + 2 < indent and lines:
        head.append(" " * (indent - len(head))).append_text(lines.pop(0))
    yield head
    for line in lines:
        yield Text(" " * indent).append_text(line)


def _styled(text: str) -> Text:
    """Show code without its backticks, and the remark at the end dimmed."""
    styled, at = Text(), 0
    for part in MARKED.finditer(text):
        styled.append(text[at : part.start()])
        styled.append(part[1] or part[2][1:], style="bold" if part[1] else "dim")
        at = part.end()
    return styled.append(text[at:])
