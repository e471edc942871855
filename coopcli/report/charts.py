"""Line charts as coordinates of an SVG, which the report's template draws in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Units of the drawing. About the pixels of a phone's width, so that letters keep their size there.
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 14, 8, 38  # margins
COLOURS = 10  # which the page knows
TICKS = 5  # steps on an axis, and at most one more at either end
MOST_POINTS = 400  # of a line: more than the eye tells apart


@dataclass(frozen=True)
class Series:
    """A named line of (x, y), with one deviation for each point or none.

    `smooth` averages each point with its neighbours, as many as make a twentieth of the line, and shows both. `level` draws
    the first y from end to end, as what does not depend on x.
    """

    label: str
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()
    smooth: bool = False
    level: bool = False


@dataclass(frozen=True)
class Line:
    """A line to draw, as SVG writes it: its points, below them those that were smoothed away, and its band's outline.

    Empty is what is not there. `dots` mark single points.
    """

    label: str
    colour: int
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
    lines: list[Line]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str, x_label: str, series: Sequence[Series], percent: bool = False, names: Sequence[str] | None = None
) -> Chart:
    """A chart of these series; shares are shown in `percent`. With `names`, an x is a place among them.

    Long lines are thinned to MOST_POINTS points.
    """
    factor = 100.0 if percent else 1.0
    xs = [x for one in series if not one.level for x, _ in one.points] or [0.0, 1.0]
    edges = [factor * y for one in series for y in (*_edge(one, 1), *_edge(one, -1))] or [0.0]
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

    def line(number: int, one: Series) -> Line:
        places, level = [x for x, _ in one.points], one.level and bool(one.points)
        smoothed = running_mean(one.points) if one.smooth else list(one.points)
        points = [(x, one.points[0][1]) for x in (x_low, x_high)] if level else thinned(smoothed)
        faint = path(thinned(one.points)) if smoothed != list(one.points) else ""
        upper, lower = (list(zip(places, _edge(one, sign), strict=True)) for sign in (1, -1))
        band = path([*upper, *reversed(lower)]) if one.deviations and not level else ""
        dots = [(across(x), down(y)) for x, y in points] if names and not level else []
        return Line(one.label, number % COLOURS, path(points), faint, dots, band, level)

    return Chart(
        title,
        x_label,
        [(across(x), names[int(x)] if names else f"{x:g}") for x in x_ticks if x_low <= x <= x_high],
        [(down(y / factor), f"{y:g}") for y in y_ticks],
        [line(number, one) for number, one in enumerate(series)],
    )


def _edge(one: Series, sign: int) -> list[float]:
    """The line, or where there are deviations its band's upper (1) or lower (-1) edge."""
    deviations = one.deviations or [0.0] * len(one.points)
    return [y + sign * deviation for (_, y), deviation in zip(one.points, deviations, strict=True)]


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from `low` or just below to `high` or just above, in about TICKS steps of 1, 2 or 5 times a power of 10."""
    size = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-6 * size else size  # of all alike, a scale for their size
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if span / step <= TICKS)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point's y averaged with those of as many neighbours on either side as make a twentieth of the line."""
    reach = len(points) // 40
    ys = [y for _, y in points]
    parts = [ys[max(0, i - reach) : i + reach + 1] for i in range(len(ys))]
    return [(x, sum(part) / len(part)) for (x, _), part in zip(points, parts, strict=True)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about MOST_POINTS of the points, evenly, with the last."""
    step = -(-len(points) // MOST_POINTS) or 1
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
