import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coopcli.report.charts import HEIGHT, MOST_POINTS, WIDTH, Series, line_chart, running_mean, thinned, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def places(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


@given(FINITE, st.floats(0, 1e6), st.booleans())
def test_ticks_are_round_and_span_the_values(low, width, whole):
    high = low + width
    found = ticks(low, high, whole)
    steps = [b - a for a, b in pairwise(found)]
    step = steps[0]
    assert found[0] <= low + 1e-6 * step and found[-1] >= high - 1e-6 * step
    assert 2 <= len(found) <= 8 and max(steps) == pytest.approx(step, rel=1e-3)
    if not whole and step > 1e-6:
        digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digit - round_number) for round_number in (1, 2, 5, 10)) < 1e-2


@given(st.lists(st.lists(st.floats(0, 1), max_size=9), max_size=4), st.booleans())
def test_lines_stay_within_the_drawing(lines, smooth):
    series = [Series(f"s{k}", list(enumerate(ys, 1)), [0.2] * len(ys), smooth, k == 3) for k, ys in enumerate(lines)]
    chart = line_chart("t", "epoch", series, percent=True)
    for line in chart.lines:
        for x, y in places(line.points) + places(line.faint) + places(line.band):
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert all(0 <= x <= WIDTH for x, _ in chart.x_ticks) and all(0 <= y <= HEIGHT for y, _ in chart.y_ticks)
    assert all(0 <= float(text) <= 100 for _, text in chart.y_ticks)


def test_a_line_goes_where_its_numbers_say():
    chart = line_chart("loss", "epoch", [Series("a", [(1, 2.0), (2, 0.0), (3, 1.0)])])
    (x0, top), (x1, bottom), (x2, middle) = places(chart.lines[0].points)
    assert (top, bottom) == (chart.top, chart.bottom) and middle == (top + bottom) / 2
    assert x1 - x0 == x2 - x1 and [text for _, text in chart.x_ticks] == ["1", "2", "3"]


def test_levels_reach_from_end_to_end_and_names_are_places():
    learned = Series("learned", [(0, 0.5), (1, 0.9)], [0.1, 0.1])
    chart = line_chart(
        "accuracy", "shots", [learned, Series("by hand", [(0, 0.7)], level=True)], percent=True, names=["1", "16"]
    )
    line, level = chart.lines
    assert not line.level and len(line.dots) == 2 and len(places(line.band)) == 4
    (left, height), (right, same) = places(level.points)
    assert level.level and height == same and right - left == chart.right - chart.left and not level.dots
    assert [text for _, text in chart.x_ticks] == ["1", "16"]
    alone = line_chart("accuracy", "shots", [Series("one", [(1, 0.9)], [0.1])], percent=True, names=["1", "16"]).lines[0]
    assert [x for x, _ in alone.dots] == [line.dots[1][0]] and not alone.level
    assert [round(x, 1) for x, _ in chart.x_ticks] == [x for x, _ in places(line.points)]


def test_running_mean_is_of_the_neighbours():
    points = [(i, float(i % 7)) for i in range(100)]
    smoothed = running_mean(points)
    for i, (x, y) in enumerate(smoothed):
        near = [points[j][1] for j in range(100) if abs(i - j) <= 2]
        assert x == i and y == pytest.approx(sum(near) / len(near))
    assert running_mean(points[:39]) == points[:39]
    assert line_chart("t", "e", [Series("a", points[:39], smooth=True)]).lines[0].faint == ""
    assert line_chart("t", "e", [Series("a", points, smooth=True)]).lines[0].faint


@given(st.integers(0, 5000))
def test_thinned_lines_keep_their_ends(n):
    points = [(float(i), 0.0) for i in range(n)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 1 and set(kept) <= set(points)
    assert not n or (kept[0], kept[-1]) == (points[0], points[-1])
