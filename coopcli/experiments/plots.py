"""Figures of plain numbers, as PNG and SVG files. matplotlib comes with the extra `plots`."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CoopError
from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a figure's lines, each on a light and on a dark ground; the report takes them from here. The first eight are near Okabe and
# Ito's, which the colour-blind tell apart. Where there are more lines than colours, dashes tell those of one colour apart.
LINE_COLOURS = (
    ("#0072b2", "#58b2ea"), ("#d55e00", "#ff8f4a"), ("#008f68", "#3fcf9e"), ("#b4568c", "#e596c4"), ("#b07d00", "#ebbc45"),
    ("#3d9bd1", "#a8d8fa"), ("#1c2128", "#f2f4f6"), ("#85898f", "#8f979f"), ("#7a4fbf", "#b79cf0"), ("#8a5a2b", "#cf9f6e"),
    ("#c2185b", "#ff7aa8"), ("#5f7300", "#b5cc4e"),
)  # fmt: skip
NUMBERED = 40  # classes up to which a confusion has its numbers
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2))  # lengths of strokes and gaps, in line widths
MARKERS = "osD^vPXhp<>d"
Points = Sequence[tuple[int, float, float]]  # x, mean and standard deviation
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "coop",  # equal figures are equal bytes
}


def curves(path: Path, title: str, shots: Sequence[str], lines: Sequence[tuple[str, Points, bool]]) -> None:
    """The paper's figure: accuracy over shots, a line for each method with one standard deviation on either side.

    `lines` are (label, points, level): the x of a point is a place in `shots`; a level, the accuracy of what takes no shots, is
    a star at 0 shots and a dashed line across. Lines without points are left out. Writes `path` with the endings .png and .svg.
    Raises CoopError without matplotlib.
    """
    levels = any(level and points for _, points, level in lines)
    with _figure(path) as (figure, axes):
        for number, (label, points, level) in enumerate(lines):
            if not points:
                continue
            places, means, deviations = zip(*points, strict=True)
            middle = [100 * mean for mean in means]
            low = [100 * (mean - deviation) for mean, deviation in zip(means, deviations, strict=True)]
            high = [100 * (mean + deviation) for mean, deviation in zip(means, deviations, strict=True)]
            colour, dashes, marker = line_style(number)
            if level:
                axes.axhline(middle[0], color=colour, linestyle="--", linewidth=1, alpha=0.7)
                axes.plot(-1, middle[0], marker="*", markersize=11, color=colour, linestyle="none", label=_plain(label))
                continue
            axes.plot(
                places, middle, marker=marker, color=colour, linestyle=(0, dashes) if dashes else "-", label=_plain(label)
            )
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(range(-levels, len(shots)), ["0"] * levels + list(shots))
        axes.set_xlabel("labelled train images per class")
        axes.set_ylabel("top-1 accuracy in %")
        axes.set_title(_plain(title))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)


def line_style(number: int) -> tuple[str, tuple[int, ...], str]:
    """Colour on a light ground, dashes and marker of a figure's line; no two of the first 48 lines look alike."""
    colour = LINE_COLOURS[number % len(LINE_COLOURS)][0]
    return colour, DASHES[number // len(LINE_COLOURS) % len(DASHES)], MARKERS[number % len(MARKERS)]


def bars(path: Path, title: str, rows: Sequence[tuple[str, float, float]], unit: str = "top-1 accuracy in %") -> None:
    """One bar for each (label, mean, standard deviation), both shares in [0, 1]."""
    with _figure(path, height=1.2 + 0.35 * len(rows)) as (_, axes):
        labels, means, deviations = zip(*reversed(rows), strict=True)
        places = range(len(rows))
        axes.barh(places, [100 * m for m in means], xerr=[100 * d for d in deviations], color=LINE_COLOURS[0][0], height=0.65)
        for place, mean, deviation in zip(places, means, deviations, strict=True):
            axes.text(100 * (mean + deviation) + 1, place, f"{100 * mean:.1f}", va="center")
        axes.set_yticks(places, map(_plain, labels))
        axes.set_xlim(0, 108)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        axes.set_title(_plain(title))


def grouped_bars(
    path: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[tuple[float, float] | None]]
) -> None:
    """A group of bars for each name in `groups`, in it one for each of the `series`: mean and deviation, or None for no bar."""
    with _figure(path, width=3.5 + max(4.0, 0.3 * len(groups) * len(series))) as (figure, axes):
        width = 0.8 / len(series)
        for number, (label, values) in enumerate(series.items()):
            bars = [(place + (number + 0.5) * width - 0.4, *value) for place, value in enumerate(values) if value]
            colour, dashes, _ = line_style(number)
            axes.bar(
                [place for place, _, _ in bars],
                [100 * mean for _, mean, _ in bars],
                width,
                yerr=[100 * deviation for *_, deviation in bars],
                color=colour,
                hatch="//" if dashes else None,
                label=_plain(label),
                error_kw={"linewidth": 1},
            )
        axes.set_xticks(range(len(groups)), map(_plain, groups))
        axes.set_ylim(0, 104)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("top-1 accuracy in %")
        axes.set_title(_plain(title))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)


def confusion(path: Path, title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Shares of each true class (row) by predicted class (column), as squares, with the numbers of images in them."""
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    _squares(path, title, names, shares, (0, 1), ("true", "predicted"), "share of the true class", counts)


def similarity(path: Path, title: str, names: Sequence[str], cosines: Sequence[Sequence[float]]) -> None:
    """Cosines of learned class features (rows) and hand-written ones (columns), as squares."""
    lowest = min(min(row) for row in cosines)
    _squares(path, title, names, cosines, (min(lowest, 1 - 1e-6), 1), ("learned", "hand-written"), "cosine similarity")


def learning_curve(
    path: Path, title: str, epochs: Sequence[tuple[int, float, float]], levels: Sequence[tuple[str, float]]
) -> None:
    """Loss and train accuracy of each (epoch, loss, accuracy), above each other; `levels` are test accuracies, dashed."""
    numbers, losses, accuracies = zip(*epochs, strict=True)
    with _figure(path, rows=2) as (figure, (above, below)):
        above.plot(numbers, losses, color=LINE_COLOURS[0][0])
        # The first epochs, before the context has moved, would flatten all that follows.
        above.set_ylim(0, 1.1 * max(losses[len(losses) // 20 :]))
        above.set_ylabel("train loss")
        above.set_title(_plain(title))
        below.plot(numbers, [100 * share for share in accuracies], color=LINE_COLOURS[0][0], label="train views")
        for number, (label, share) in enumerate(levels, 1):
            below.axhline(100 * share, color=LINE_COLOURS[number][0], linestyle="--", linewidth=1.2, label=_plain(label))
        below.set_ylim(0, 104)
        below.set_ylabel("top-1 accuracy in %")
        below.set_xlabel("epoch")
        for axes in (above, below):
            axes.set_xlim(0, max(numbers) + 1)
        figure.legend(*below.get_legend_handles_labels(), loc="outside right upper", frameon=False)


Tile = tuple[Any, str, bool]  # an image, what stands above it, whether it is right


def mosaic(path: Path, title: str, rows: Sequence[tuple[str, Sequence[Tile]]]) -> None:
    """Images in rows, each row under its heading; the texts above right ones are green, above wrong ones red."""
    columns = max(len(tiles) for _, tiles in rows)
    with _figure(path, width=1.75 * columns, height=0.4 + 2.5 * len(rows), rows=len(rows), columns=columns) as (figure, grid):
        figure.suptitle(_plain(title))
        for (heading, tiles), line in zip(rows, grid, strict=True):
            for place, axes in enumerate(line):
                axes.set_axis_off()
                if place < len(tiles):
                    image, text, right = tiles[place]
                    axes.imshow(image)
                    room = " \n" if heading else ""
                    axes.set_title(room + _plain(text), fontsize=8, color=LINE_COLOURS[2 if right else 1][0])
            lines = max(text.count("\n") for _, text, _ in tiles) + 1
            place_above = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
            above = line[0].annotate(_plain(heading), xytext=(0, 10 + 10 * lines), fontweight="bold", **place_above)
            above.set_in_layout(False)  # or the first column would be as wide as the heading


def _squares(
    path: Path,
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    limits: tuple[float, float],
    axis_labels: tuple[str, str],
    unit: str,
    numbers: Sequence[Sequence[int]] = (),
) -> None:
    """A square for each value, rows down and columns across, the darker the larger; with numbers where they are readable."""
    side = min(14.0, 3 + 0.35 * len(names))
    with _figure(path, width=side + 1, height=side) as (figure, axes):
        image = axes.imshow(values, cmap="Blues", vmin=limits[0], vmax=limits[1])
        plain = [_plain(name) for name in names]
        size = max(3.0, 9 - len(names) / 20)
        axes.set_xticks(range(len(names)), plain, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), plain, fontsize=size)
        for row, line in enumerate(numbers if len(names) <= NUMBERED else ()):
            for column, number in enumerate(line):
                if number:
                    ink = _ink(*image.cmap(image.norm(values[row][column]))[:3])
                    axes.text(column, row, str(number), ha="center", va="center", color=ink, fontsize=size)
        axes.grid(visible=False)
        axes.set_ylabel(axis_labels[0])
        axes.set_xlabel(axis_labels[1])
        axes.set_title(_plain(title))
        figure.colorbar(image, shrink=0.8, label=unit)


def _ink(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the greater contrast on a colour of shares of sRGB (WCAG's relative luminance)."""
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def check_matplotlib() -> None:
    """Check before the work, not after it, that figures can be drawn.

    Raises CoopError without matplotlib, and where it finds no folder to write to.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of a home that it cannot write to, and draws
    try:
        import matplotlib as mpl

        mpl.get_cachedir()
    except ImportError as error:
        raise CoopError("figures need matplotlib: pip install 'coopcli[plots]'") from error
    except OSError as error:
        raise CoopError("matplotlib finds no folder that it can write to; set MPLCONFIGDIR to one") from error


def _plain(text: str) -> str:
    """Escape dollar signs, between which matplotlib reads formulas."""
    return text.replace("$", r"\$")


@contextmanager
def _figure(
    path: Path, width: float = 7.5, height: float = 4.5, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure to draw on, afterwards saved as `path` with the endings .png and .svg.

    With it come its Axes: one, a row of several, or for several columns rows of them.
    """
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks is drawn as boxes
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=columns == 1)
        for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=form, metadata=metadata)
            write_atomically(path.with_name(f"{path.name}.{form}"), content.getvalue())
