"""What the user sees: data on stdout, talk and progress on stderr."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..learned.scores import Evaluation
    from ..learning.training import EpochLog

# Under NO_COLOR rich leaves out colours only, not bold.
STYLES = None if os.environ.get("NO_COLOR") else "auto"
out = Console(highlight=False, color_system=STYLES)  # type: ignore[arg-type]
talk = Console(stderr=True, highlight=False, color_system=STYLES)  # type: ignore[arg-type]
CONFUSION_CLASSES = 12  # beyond these, a confusion table is no longer read
# What moves the cursor, breaks the line or turns the reading direction, and the halves of letters, which nothing prints.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """One line that only shows: names come from files and folders that anyone may have made. Escapes what does more."""
    return UNPRINTABLE.sub(lambda letter: letter[0].encode("unicode_escape").decode(), text)


def shown(text: str) -> str:
    """The text for rich, as it stands: neither control characters nor markup take effect."""
    return escape(printable(text))


def say(text: str) -> None:
    """Lines of talk on stderr."""
    talk.print("\n".join(map(shown, text.split("\n"))), soft_wrap=True)


def print_json(content: Any, indent: int | None = 2) -> None:
    """A JSON object on stdout, of which most commands print one: JSON in whatever encoding that has."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    try:
        if not UNPRINTABLE.search(text.replace("\n", "")):
            text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")  # a StringIO has none, nor has a closed stdout
            print(text)
            return
    except UnicodeEncodeError:
        pass
    print(json.dumps(content, indent=indent))


def show_warnings() -> None:
    """Let the core's warnings come out as single lines on stderr, and no other library's."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"note: {printable(record.getMessage())}")

    logger = logging.getLogger("coopcli")
    logger.handlers = [Lines()]
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in image files; what cannot be read is an error
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it is not imported yet, and would undo a level set now


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Live progress on stderr; silent when quiet and where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    silent = quiet or not talk.is_terminal
    # Data stays on stdout: redirected, it would go where the progress goes.
    with Progress(*columns, console=talk, transient=True, redirect_stdout=False, disable=silent) as live:
        yield live


class Bars:
    """Progress bars by name, made when their first step is reported."""

    def __init__(self, live: Progress) -> None:
        self.live = live
        self.tasks: dict[str, TaskID] = {}

    def counter(self, step: str) -> Callable[[int, int], None]:
        """A callback for (done, in all) of a step."""
        return lambda done, total: self.update(step, done, total)

    def update(self, step: str, done: int, total: int, note: str | None = None) -> None:
        """Show how far a step is, with a note or else how many a second."""
        if step not in self.tasks:
            self.tasks[step] = self.live.add_task(step, total=total, note="")
        speed = self.live.tasks[self.tasks[step]].speed
        note = note or (f"{speed:.0f}/s" if speed else "")
        self.live.update(self.tasks[step], completed=done, total=total, note=note)

    def epoch(self, log: EpochLog) -> None:
        """Show a finished epoch."""
        note = f"loss {log.loss:.3f}  accuracy {log.accuracy:.1%}"
        self.update("epochs", log.epoch + 1, log.epochs, note)


def percent(share: float | None) -> str:
    """A share as people read it; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """Top-1, macro average, per class and confusion, as tables on stdout."""
    metrics, names = evaluation.metrics, evaluation.class_names
    out.print(f"[bold]{shown(title)}[/bold]")
    out.print(f"top-1 {percent(metrics.top1)} %   macro average {percent(metrics.macro)} %   images {metrics.n}")
    counts, worst = metrics.counts(), dict[int, tuple[int, int]]()
    for true, taken, count in metrics.confusions(len(names) ** 2):
        worst.setdefault(true, (taken, count))
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("class", "left"), ("images", "right"), ("accuracy %", "right"), ("most often taken for", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for k, name in enumerate(names):
        taken_for = f"{names[worst[k][0]]} ({worst[k][1]})" if k in worst else ""
        table.add_row(shown(name), str(counts[k]), percent(metrics.per_class[k]), shown(taken_for))
    out.print(table)
    if metrics.confusion is not None and len(names) <= CONFUSION_CLASSES:
        out.print("\nconfusion: true class in rows, predicted class in columns")
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for k in range(len(names)):
            table.add_column(str(k + 1), justify="right")
        for k, name in enumerate(names):
            table.add_row(f"{k + 1} {shown(name)}", *(str(count or ".") for count in metrics.confusion[k]))
        out.print(table)


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Every image as a CSV row: image, true class, predicted class, its probability, whether it is right."""
    from ..files import write_atomically

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "label", "prediction", "probability", "correct"])
    names = evaluation.class_names
    for item, predicted, probability in zip(evaluation.items, evaluation.predicted, evaluation.probability, strict=True):
        rows.writerow([item.name, names[item.label], names[predicted], f"{probability:.6f}", int(item.label == predicted)])
    write_atomically(path, text.getvalue().encode())
