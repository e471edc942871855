"""The one way out for text: data on stdout, talk and progress on stderr, names that others made always escaped.

Class names, folders and messages come from files that anyone may have made. No other module of the command line prints.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ..learning.recipe import FAST_STEPS
from ..parallel import launched

if TYPE_CHECKING:
    from ..learned.scores import Evaluation
    from ..learning.training import EpochLog

# Under NO_COLOR rich leaves out colours only, not bold.
STYLES = None if os.environ.get("NO_COLOR") else "auto"
# A notebook runs `!coop` in a terminal that shows neither cursor movements nor bars, and asks for colours all the same.
TERMINAL = False if "JPY_PARENT_PID" in os.environ else None
out = Console(highlight=False, color_system=STYLES, force_terminal=TERMINAL)  # type: ignore[arg-type]
talk = Console(stderr=True, highlight=False, color_system=STYLES, force_terminal=TERMINAL)  # type: ignore[arg-type]
FOLDED = 8  # letters that a column keeps that may break
WIDEST_ROW = 10_000  # letters of a table's row in a file or pipe
CONFUSION_CLASSES = 12  # beyond these, a confusion table is no longer read
LONG_TABLE, SHOWN_CLASSES = 2000, 100  # of more classes than the first, tables show the second; --json gives all
LARGEST_CONFUSIONS = 20  # that are then shown
QUIET, NORMAL, VERBOSE = range(3)
level = NORMAL
# Without a terminal, progress is a plain line: the first after this many seconds, then every tenth or every minute.
FIRST_LINE, NEXT_LINE = 10, 60
# How long a step takes is foretold, once, when this much of it has been measured and more than this is left.
MEASURED, LONG = 5, 300
JSON_PIECES = 1 << 14  # words, signs and spaces of JSON that are joined at a time
STEP_EVERY = 0.5  # seconds between two looks at an epoch that is not done
# What moves the cursor, breaks the line or turns the reading direction, and the halves of letters, which nothing prints.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    """Escape what would do more than show: control characters, line breaks, changes of the reading direction."""
    return UNPRINTABLE.sub(lambda letter: letter[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning of `most` characters and that it goes on."""
    return text if len(text) <= most else f"{text[:most]}..."


def shown(text: str) -> Text:
    """Wrap a text for rich as it stands: control characters, markup such as [red] and :smile: take no effect."""
    return Text("\n".join(map(printable, text.split("\n"))))


# What stays in one line: a command in backticks or at the end of a line, and a word; each with the spaces before it.
PIECES = re.compile(r"\s*(?:(?<=: )coop .*$|(?:`[^`]*`|\S)+)")


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Break lines that are wider than a terminal between words, and commands, which people copy, nowhere.

    A terminal would break them within a word. What goes on in a new line begins with `indent`.
    """
    rows = []
    for whole in text.split("\n"):
        row = ""
        for piece in PIECES.findall(whole):
            if row.strip() and cell_len(row + piece) > width:
                rows.append(row)
                row = indent + piece.lstrip()
            else:
                row += piece
        rows.append(row)
    return "\n".join(rows)


def fitted(text: str, console: Console, indent: str = "", taken: int = 0) -> str:
    """Lines as they fit a terminal, of whose width some is `taken`; a file or pipe has them whole."""
    return wrapped(text, console.width - taken, indent) if console.is_terminal else text


def set_level(wanted: int) -> None:
    """Choose how much is said on stderr, by this and every command that it runs."""
    global level
    level = QUIET if launched().rank else wanted  # of many processes the first alone speaks


def say(text: str) -> None:
    """Print lines of talk on stderr, unless --quiet."""
    if level > QUIET:
        talk.print(shown(fitted(text, talk)), soft_wrap=True)


def detail(text: str) -> None:
    """Print lines on stderr that only --verbose asks for."""
    if level >= VERBOSE:
        say(text)


def status(text: str) -> Status:
    """Show on a terminal what is being done while it lasts: `with status("loading"): ...`."""
    return (talk if level > QUIET else Console(file=io.StringIO())).status(shown(text))


def line(text: str = "", style: str | None = None, indent: str = "") -> None:
    """Print a line of data on stdout; what a terminal is too narrow for goes on below it, after `indent`."""
    out.print(Text(fitted(printable(text), out, indent)), style=style, soft_wrap=True)


def rendered(lines: Iterable[Text]) -> str:
    """What lines look like on stdout, with its styles."""
    with out.capture() as captured:
        for one in lines:
            out.print(one, soft_wrap=True)
    return captured.get()


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Sequence[int] = (0,),
    fold: Sequence[int] = (),
    dim: Sequence[bool] = (),
) -> None:
    """Print a table on stdout: columns in `left` hold words, the others numbers; those in `fold` may break.

    `dim` says which rows stand back. Nothing is cut: on a terminal that is too narrow, each row is a paragraph; a file or
    pipe has each row in one line.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    styles = ["dim" if any(dim[number : number + 1]) else "" for number in range(len(cells))]
    if out.is_terminal and _narrowest(headings, cells, fold) > out.width:
        for row, style in zip(cells, styles, strict=True):
            _paragraph(headings, row, style)
        return
    grid = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        side: JustifyMethod = "left" if number in left else "right"
        grid.add_column(shown(heading), justify=side, overflow="fold", no_wrap=number not in fold)
    for row, style in zip(cells, styles, strict=True):
        grid.add_row(*map(Text, row), style=style)
    if out.is_terminal:
        out.print(grid)
        return
    width = max(out.width, out.measure(grid, options=out.options.update(max_width=WIDEST_ROW)).maximum)
    Console(file=out.file, highlight=False, color_system=STYLES, force_terminal=TERMINAL, width=width).print(grid)  # type: ignore[arg-type]


def _narrowest(headings: Sequence[str], rows: Sequence[Sequence[str]], fold: Sequence[int]) -> int:
    """The columns of a terminal that a table needs where only what is in `fold` is broken."""
    needed = 2 * (len(headings) - 1)  # spaces between
    for number, heading in enumerate(headings):
        longest = max(cell_len(part) for text in (heading, *(row[number] for row in rows)) for part in text.split("\n"))
        needed += min(longest, FOLDED) if number in fold else longest
    return needed


def _paragraph(headings: Sequence[str], row: Sequence[str], style: str) -> None:
    """Print the first cell of a row, and below it the others, each after its heading."""
    heading, *others = (text.replace("\n", " ") for text in headings)
    line(f"{heading} {row[0]}" if row[0].isdecimal() else row[0], f"bold {style}")
    below = ""
    for item in (f"{name} {cell}" for name, cell in zip(others, row[1:], strict=True) if cell):
        if below and cell_len(f"{below}   {item}") > out.width:
            line(below, style, indent="    ")
            below = ""
        below = f"{below}   {item}" if below else f"  {item}"
    line(below, style, indent="    ")


def field(text: str) -> str:
    """A text for CSV on stdout: as it stands in a file or pipe, escaped on a terminal."""
    return printable(text) if on_terminal() else text


def relative(path: Path) -> Path:
    """The path as people would type it here: from the current folder, unless it is in another part of the disk."""
    if os.pardir in path.parts:  # through a link, `..` leads elsewhere than the text says
        return path
    try:
        short = Path(os.path.relpath(path))
    except ValueError:  # another drive
        return path
    return path.absolute() if short.parts[:3] == (os.pardir,) * 3 else short


def on_terminal() -> bool:
    """Whether people read stdout as it comes."""
    return bool(sys.stdout and sys.stdout.isatty())


def print_json(content: Any, indent: int | None = 2) -> None:
    """Print a JSON object on stdout, valid in any encoding: what that lacks, and what would not only show, is escaped.

    A dataclass in it is an object of its fields.
    """
    texts = _json_texts(content, indent, ensure_ascii=False)
    try:
        for text in texts:
            text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")  # a StringIO has none, nor has a closed stdout
        escaped = any(UNPRINTABLE.search(text.replace("\n", "")) for text in texts)
    except UnicodeEncodeError:
        escaped = True
    for text in _json_texts(content, indent, ensure_ascii=True) if escaped else texts:
        print(text, end="")
    print()


def _json_texts(content: Any, indent: int | None, ensure_ascii: bool) -> list[str]:
    """JSON in parts: of millions of numbers, all pieces at once would take ten times the memory of the text."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, default=asdict)
    if indent is None:
        return [encoder.encode(content)]
    pieces = encoder.iterencode(content)
    return list(iter(lambda: "".join(islice(pieces, JSON_PIECES)), ""))


def show_warnings() -> None:
    """Show the core's warnings as single lines on stderr, and no other library's."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"note: {printable(record.getMessage())}")

    logger = logging.getLogger("coopcli")
    logger.handlers = [Lines()]
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in image files; what cannot be read is an error
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it is not imported yet, and would undo a level set now


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Show live progress on stderr: bars on a terminal, else plain lines now and then; nothing when quiet."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    silent = quiet or level == QUIET or not talk.is_terminal
    # Data stays on stdout: redirected, it would go where the progress goes.
    with Progress(*columns, console=talk, transient=True, redirect_stdout=False, disable=silent) as live:
        yield live


class Bars:
    """Progress of named steps, each begun when it is first reported."""

    def __init__(self, live: Progress) -> None:
        self.live = live
        self.tasks: dict[str, TaskID] = {}
        self.lines: dict[str, Lines] = {}
        self.stepped = time.monotonic()

    def counter(self, step: str) -> Callable[[int, int], None]:
        """Make a callback for (done, in all) of a step."""
        return lambda done, total: self.update(step, done, total)

    def update(self, step: str, done: float, total: int, note: str | None = None, advice: str = "") -> None:
        """Show how far a step is, with a note or else how many a second; say once, with the advice, if it will take long."""
        if step not in self.tasks:
            self.tasks[step] = self.live.add_task(printable(step), total=total, note="")
            self.lines[step] = Lines(step, time.monotonic(), done / max(total, 1))
        speed = self.live.tasks[self.tasks[step]].speed
        note = note if note is not None else (f"{speed:.0f}/s" if speed else "")
        self.live.update(self.tasks[step], completed=done, total=total, note=note)
        self.lines[step].foretell(done, total, time.monotonic(), advice)
        if not talk.is_terminal:
            self.lines[step].update(done, total, time.monotonic())

    def epoch(self, log: EpochLog) -> None:
        """Show a finished epoch."""
        note = f"loss {log.loss:.3f}  accuracy {log.accuracy:.1%}"
        self.update("epochs", log.epoch + 1, log.epochs, note)

    def training_step(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Show how far training is within an epoch: `step` of its `steps` are done."""
        now = time.monotonic()
        if now - self.stepped >= STEP_EVERY:  # a step may take a millisecond
            self.stepped = now
            in_all = epochs * steps
            advice = f"; --recipe fast takes {FAST_STEPS} steps instead of {in_all}" if in_all > FAST_STEPS else ""
            self.update("epochs", epoch + step / steps, epochs, f"step {step} of {steps}", advice)


class Lines:
    """How long one step takes, and its progress as plain lines for a log file: none for what is soon done."""

    def __init__(self, step: str, now: float, share: float) -> None:
        self.step, self.began, self.share = step, now, share  # a resumed step begins at a share
        self.said_at, self.tenths = now, int(10 * share)
        self.foretold = False

    def foretell(self, done: float, total: int, now: float, advice: str) -> None:
        """Say once how long the step will take, by its pace so far, if that is long."""
        if self.foretold or now - self.began < MEASURED or (left := self.left(done, total, now)) < LONG:
            return
        self.foretold = True
        say(f"note: {self.step}: about {duration(left)} to go{advice}")

    def left(self, done: float, total: int, now: float) -> float:
        """Seconds left at the pace so far; 0 where that is unknown."""
        share = done / max(total, 1)
        return (now - self.began) * (1 - share) / (share - self.share) if share > self.share else 0.0

    def update(self, done: float, total: int, now: float) -> None:
        """Say how far the step is when a tenth more is done, or a minute has passed."""
        share = done / max(total, 1)
        due = int(10 * share) > self.tenths or now - self.said_at >= NEXT_LINE
        if not due or now - self.began < FIRST_LINE or done >= total:
            return
        self.said_at, self.tenths = now, int(10 * share)
        seconds = self.left(done, total, now)
        left = f", about {duration(seconds)} left" if seconds else ""
        say(f"{self.step}: {int(done)} of {total} ({100 * share:.0f} %){left}")


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None) -> str:
    """A share as people read it; a dash where it is missing."""
    return "-" if share is None else f"{100 * share:.1f}"


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """Print top-1, macro average, per class and confusion as tables on stdout; of very many classes the worst alone."""
    metrics, names = evaluation.metrics, evaluation.class_names
    line(title, "bold")
    line(f"top-1 {percent(metrics.top1)} %   macro average {percent(metrics.macro)} %   images {metrics.n}")
    if len(names) > LONG_TABLE:
        _show_worst(evaluation)
        return
    counts, worst = metrics.counts(), dict[int, tuple[int, int]]()
    for true, taken, count in metrics.confusions(len(names) ** 2):
        worst.setdefault(true, (taken, count))
    rows = []
    for k, name in enumerate(names):
        taken_for = f"{names[worst[k][0]]} ({worst[k][1]})" if k in worst else ""
        rows.append((name, str(counts[k]), percent(metrics.per_class[k]), taken_for))
    table(("class", "images", "accuracy %", "most often taken for"), rows, left=(0, 3))
    if metrics.confusion is not None and len(names) <= CONFUSION_CLASSES:
        line()
        line("confusion: true class in rows, predicted class in columns")
        confusion = [[str(count or ".") for count in row] for row in metrics.confusion]
        rows_of = [(f"{k + 1} {names[k]}", *row) for k, row in enumerate(confusion)]
        table(["", *(str(k + 1) for k in range(len(names)))], rows_of, fold=(0,))


def _show_worst(evaluation: Evaluation) -> None:
    metrics, names = evaluation.metrics, evaluation.class_names
    counts = metrics.counts()
    scored = [(accuracy, -counts[k], k) for k, accuracy in enumerate(metrics.per_class) if accuracy is not None]
    worst = sorted(scored)[:SHOWN_CLASSES]
    line(f"the {len(worst)} worst of {len(scored):,} classes with images; --json gives all {len(names):,}", "dim")
    rows = [(names[k], str(counts[k]), percent(accuracy)) for accuracy, _, k in worst]
    table(("class", "images", "accuracy %"), rows)
    if pairs := metrics.confusions(LARGEST_CONFUSIONS):
        line()
        table(("true class", "taken for", "images"), [(names[k], names[j], str(n)) for k, j, n in pairs], left=(0, 1))


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Write a CSV row for every image: image, true class, predicted class, its probability, whether it is right."""
    from ..files import write_atomically

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "label", "prediction", "probability", "correct"])
    names = evaluation.class_names
    for item, predicted, probability in zip(evaluation.items, evaluation.predicted, evaluation.probability, strict=True):
        rows.writerow([item.name, names[item.label], names[predicted], f"{probability:.6f}", int(item.label == predicted)])
    write_atomically(path, text.getvalue().encode())
