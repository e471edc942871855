"""Runs and sweeps as one HTML page, which fetches nothing and needs no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..experiments.describe import group_key, grouped
from ..experiments.plots import LINE_COLOURS
from ..experiments.run_folder import Run
from ..experiments.summary import Spread, costs_of, figure_of, spread_of, table_of
from ..experiments.sweep_folder import Sweep
from ..files import write_atomically
from ..learned.scores import Evaluation
from ..settings import RESOLVED
from .charts import Chart, Series, line_chart
from .look import Look, data_uri

CELLS = 30  # a confusion of up to so many classes is shown as a table
LISTED = 1000  # classes whose accuracies the page lists: the worst
RIGHT, WRONG = (20, 130, 205), (225, 90, 20)  # of a confusion's picture, readable on light and on dark


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, by their places among all, and their accuracies over the seeds."""

    title: str
    places: list[int]
    top1: Spread | None
    macro: Spread | None
    hand_written: Spread | None
    gain: Spread | None


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by all but their seed, in the order of their first ones; those of other test images are not averaged."""
    groups = grouped(range(len(runs)), lambda place: (group_key(runs[place].prompt), test_counts(runs[place])))
    return [_group([runs[place] for place in places], places) for places in groups.values()]


def test_counts(run: Run) -> tuple[int, ...]:
    """How many test images each class has."""
    return tuple(run.learned.metrics.counts()) if run.learned else ()


def _group(runs: Sequence[Run], places: list[int]) -> Group:
    prompt = runs[0].prompt
    return Group(
        f"{prompt.training.get('data')}, {prompt.model}: {runs[0].variant}, {sum(test_counts(runs[0])):,} test images",
        places,
        top1=spread_of([run.learned.metrics.top1 if run.learned else None for run in runs]),
        macro=spread_of([run.learned.metrics.macro if run.learned else None for run in runs]),
        hand_written=spread_of([run.hand_written.metrics.top1 if run.hand_written else None for run in runs]),
        gain=spread_of([run.gain for run in runs]),
    )


@dataclass(frozen=True)
class ClassRow:
    """A class: its images, its accuracy in each run (place of the run, share), their mean, and the hand-written prompt's."""

    name: str
    images: int
    shares: list[tuple[int, float]]
    mean: float
    hand_written: float | None


def class_rows(runs: Sequence[Run]) -> list[ClassRow]:
    """The classes that have test images, worst first; empty when the runs are of different classes or test images."""
    scored = [(place, run.learned, run.hand_written) for place, run in enumerate(runs) if run.learned]
    if len({(learned.class_names, test_counts(runs[place])) for place, learned, _ in scored}) != 1:
        return []
    rows, counts = [], test_counts(runs[scored[0][0]])
    for k, name in enumerate(scored[0][1].class_names):
        shares = [(place, share) for place, learned, _ in scored if (share := learned.metrics.per_class[k]) is not None]
        by_hand = [share for *_, written in scored if written and (share := written.metrics.per_class[k]) is not None]
        if shares:
            mean = sum(share for _, share in shares) / len(shares)
            images = counts[k]
            rows.append(ClassRow(name, images, shares, mean, sum(by_hand) / len(by_hand) if by_hand else None))
    return sorted(rows, key=lambda row: row.mean)


def confusions(evaluation: Evaluation, most: int) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true class, predicted class, images, share of the true class's images."""
    totals, names = evaluation.metrics.counts(), evaluation.class_names
    pairs = evaluation.metrics.confusions(most)
    return [(names[true], names[taken], count, count / totals[true]) for true, taken, count in pairs]


def confusion_picture(evaluation: Evaluation) -> str:
    """Draw a pixel for each true class (row) and predicted class (column), the larger its share the stronger; a data URI."""
    counts = np.array(evaluation.metrics.confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*counts.shape, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.eye(len(counts), dtype=bool), :3] = RIGHT
    pixels[..., 3] = np.round(255 * np.sqrt(shares))
    return data_uri(Image.fromarray(pixels), "png", optimize=True)


def training_charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Loss and accuracy on the train images by epoch, a line for each run."""

    def series(what: str) -> list[Series]:
        lines = []
        for run, name in zip(runs, names, strict=True):
            points = [(epoch.epoch + 1.0, float(getattr(epoch, what))) for epoch in run.log]
            lines.append(Series(name, [point for point in points if math.isfinite(point[1])], smooth=True))
        return lines

    losses = series("loss")
    # The first epochs, before anything is learned, would press the rest of the curve flat.
    later = [y for line in losses for _, y in line.points[len(line.points) // 20 + 1 :]]
    return [
        line_chart("Loss", "epoch", losses, top=max(later, default=math.inf)),
        line_chart("Accuracy on the train images, %", "epoch", series("accuracy"), percent=True),
    ]


def shots_chart(sweep: Sweep, value: str) -> Chart | None:
    """The paper's figure, an accuracy over shots; None where there is one number of shots only."""
    figure = figure_of(sweep.rows, value)
    if len(figure.shots) < 2:
        return None
    lines = [
        Series(label, [(place, mean) for place, mean, _ in points], [std for *_, std in points], level=level)
        for label, points, level in figure.curves
    ]
    return line_chart("Accuracy, %", "train images per class", lines, True, figure.shots)


def settings_rows(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """The options of a command and what they were resolved to, as one list."""
    own = {key: value for key, value in settings.items() if key != RESOLVED}
    resolved = settings.get(RESOLVED)
    return [*own.items(), *(resolved.items() if isinstance(resolved, dict) else ())]


# Functions that the template calls.
CALLED: tuple[Callable[..., Any], ...] = (
    class_rows, confusion_picture, confusions, costs_of, settings_rows, shots_chart, table_of, training_charts,
)  # fmt: skip


def render(runs: Sequence[Run], looks: Sequence[Look], sweeps: Sequence[Sweep] = ()) -> str:
    """Render the page. Texts from files are escaped: none of them acts as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "breakable": _breakable}
    short = [run.folder.resolve().name for run in runs]
    names = [str(run.folder) if short.count(name) > 1 else name for run, name in zip(runs, short, strict=True)]
    return environment.get_template("report.html").render(
        runs=list(zip(names, runs, looks, strict=True)),
        groups=groups_of(runs),
        rows=class_rows(runs),
        charts=training_charts(runs, names),
        sweeps=sweeps,
        cells=CELLS,
        listed=LISTED,
        colours=LINE_COLOURS,
        **{function.__name__: function for function in CALLED},
    )


def write_report(path: Path, runs: Sequence[Run], looks: Sequence[Look], sweeps: Sequence[Sweep] = ()) -> None:
    """Write the page. Raises CoopError when it cannot be written."""
    write_atomically(path, render(runs, looks, sweeps).encode())


def _shown(value: Any) -> Any:
    """Escape what moves the cursor or turns the reading direction in texts; None becomes an empty text."""
    if value is None:
        return ""
    if type(value) is not str:  # markup of the template's own is another type
        return value
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in value)


def _breakable(name: str) -> Any:
    """A name that may go on in a new line before each `_`."""
    from markupsafe import Markup

    return Markup("<wbr>_").join(str(_shown(name)).split("_"))


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _points(gain: float | None) -> str:
    """A gain in percentage points, with its sign."""
    return "–" if gain is None else f"{100 * gain:+.1f}".replace("-", "−")
