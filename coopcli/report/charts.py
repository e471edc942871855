"""Line charts as coordinates of an SVG, which the report's template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..experiments.plots import DASHES, LINE_COLOURS

# Units of the drawing. About the pixels of a phone's width, so that letters keep their size on it.
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 14, 8, 38  # margins
TICKS = 5  # steps on an axis, and at most one more at either end
MOST_POINTS = 400  # of a line: more than the eye tells apart


@dataclass(frozen=True)
class Series:
    """A named line of (x, y), with one deviation for each point or none.

    `smooth` averages each point with its neighbours, a twentieth of the line in all, and shows both. `level` draws the first
    y from end to end: it does not depend on x.
    """

    label: str
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()
    smooth: bool = False
    level: bool = False


@dataclass(frozen=True)
class DrawnLine:
    """A line to draw, as SVG writes it: its points, under them those before smoothing (`faint`), and the outline of its band.

    An absent part is an empty text. `dots` mark single points. `colour` is a place in LINE_COLOURS, `dash` a stroke-dasharray.
    """

    label: str
    colour: int
    dash: str
    points: str
    faint: str
    dots: list[tuple[float, float]]
    band: str
    level: bool


@dataclass(frozen=True)
class Chart:
    """All that the template draws. Ticks are (position, text)."""

    title: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[DrawnLine]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[Series],
    percent: bool = False,
    names: Sequence[str] | None = None,
    top: float = math.inf,
) -> Chart:
    """Draw these series; with `percent`, y are shares shown in %. With `names`, an x is a place among them.

    What lies above `top` is drawn at the upper edge. Long lines are thinned to MOST_POINTS points.
    """
    factor = 100.0 if percent else 1.0
    xs = [x for series in lines if not series.level for x, _ in series.points] or [0.0, 1.0]
    edges = [factor * min(y, top) for series in lines for y in (*_edge(series, 1), *_edge(series, -1))] or [0.0]
    y_ticks = ticks(max(0.0, min(edges)), min(100.0, max(edges))) if percent else ticks(min(0.0, *edges), max(edges))
    x_low, x_high = (-0.25, len(names) - 0.75) if names else (min(xs), max(xs))
    x_ticks = [float(place) for place in range(len(names))] if names else ticks(x_low, x_high, whole=True)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - RIGHT - LEFT)

    def down(y: float) -> float:
        share = (factor * y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)

    def line(number: int, series: Series) -> DrawnLine:
        places, level = [x for x, _ in series.points], series.level and bool(series.points)
        smoothed = running_mean(series.points) if series.smooth else list(series.points)
        points = [(x, series.points[0][1]) for x in (x_low, x_high)] if level else thinned(smoothed)
        faint = path(thinned(series.points)) if smoothed != list(series.points) else ""
        upper = list(zip(places, _edge(series, 1), strict=True))
        lower = list(zip(places, _edge(series, -1), strict=True))
        band = path([*upper, *reversed(lower)]) if series.deviations and not level else ""
        dots = [(across(x), down(y)) for x, y in points] if names and not level else []
        colour, dashes = number % len(LINE_COLOURS), DASHES[number // len(LINE_COLOURS) % len(DASHES)]
        dash = " ".join(str(2 * length) for length in dashes)  # at two units of line width
        return DrawnLine(series.label, colour, dash, path(points), faint, dots, band, level)

    return Chart(
        title,
        x_label,
        [(across(x), names[int(x)] if names else f"{x:g}") for x in x_ticks if x_low <= x <= x_high],
        [(down(y / factor), f"{y:g}") for y in y_ticks],
        [line(number, series) for number, series in enumerate(lines)],
    )


def _edge(series: Series, sign: int) -> list[float]:
    """The y of the line or, with deviations, of the upper (1) or lower (-1) edge of its band."""
    deviations = series.deviations or [0.0] * len(series.points)
    return [y + sign * deviation for (_, y), deviation in zip(series.points, deviations, strict=True)]


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from `low` or just below to `high` or just above, in about TICKS steps of 1, 2 or 5 times a power of 10."""
    size = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-6 * size else size  # equal values get a scale of their own size
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if span / step <= TICKS)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average each y with its neighbours on either side, a twentieth of the line in all."""
    reach = len(points) // 40
    ys = [y for _, y in points]
    parts = [ys[max(0, i - reach) : i + reach + 1] for i in range(len(ys))]
    return [(x, sum(part) / len(part)) for (x, _), part in zip(points, parts, strict=True)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep about MOST_POINTS of the points, evenly spaced, and the last."""
    step = -(-len(points) // MOST_POINTS) or 1
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
