import builtins
import io

import numpy as np
import pytest
from PIL import Image

from coopcli.errors import CoopError
from coopcli.experiments import plots

LINES = [
    ("zeroshot", [(0, 0.3, 0.0)], True),
    ("coop $x_{$", [(0, 0.4, 0.05), (2, 0.9, 0.05)], False),
    ("none", [], False),
    ("all images", [(2, 0.6, 0.0)], False),
]


def picture(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(int)


def near(pixels, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels - wanted).max(-1) < 8).sum()


def test_curves_show_every_line_and_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        plots.curves(tmp_path / name, "toy", ["1", "16", "all"], LINES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    pixels = picture(tmp_path / "a.png")
    zeroshot, coop, none, all_images = (near(pixels, colour) for colour, _ in plots.LINE_COLOURS[:4])
    assert zeroshot > 100 and coop > 300 and all_images > 30
    assert none == 0  # a line without results
    svg = (tmp_path / "a.svg").read_text()
    assert [f"<!-- {tick} -->" in svg for tick in ("0", "1", "16", "all")] == [True] * 4


def test_no_two_lines_look_alike():
    assert len({plots.line_style(number) for number in range(48)}) == 48
    assert len({colour for pair in plots.LINE_COLOURS for colour in pair}) == 2 * len(plots.LINE_COLOURS) >= 20


def test_bars_are_as_long_as_their_values(tmp_path):
    plots.bars(tmp_path / "bars", "toy", [("half", 0.5, 0.0), ("whole", 1.0, 0.0)])
    pixels = picture(tmp_path / "bars.png")
    wide = (np.abs(pixels - [0, 114, 178]).max(-1) < 8).sum(1)
    lengths = sorted({int(n) for n in wide if n > 50})
    assert lengths[-1] == pytest.approx(2 * lengths[0], rel=0.05)


def test_groups_and_confusion(tmp_path):
    plots.grouped_bars(tmp_path / "groups", "toy", ["a$", "b"], {"x": [(0.5, 0.1), None], "y": [None, (1, 0)]})
    assert near(picture(tmp_path / "groups.png"), plots.LINE_COLOURS[1][0]) > 1000
    plots.confusion(tmp_path / "confusion", "toy", ["$", "中", "c"], [[3, 0, 0], [0, 0, 0], [1, 1, 0]])
    assert (tmp_path / "confusion.svg").stat().st_size > 1000


def test_full_similarity_is_darkest(tmp_path):
    plots.similarity(tmp_path / "similarity", "toy", ["a", "b"], [[0.9, -0.2], [0.1, 0.9]])
    darkest, palest = (8, 48, 107), (247, 251, 255)  # of the colour map
    pixels = picture(tmp_path / "similarity.png")
    plots.similarity(tmp_path / "other", "toy", ["a", "b"], [[1.0, -0.2], [-0.2, 1.0]])
    other = picture(tmp_path / "other.png")
    dark, pale = (lambda of, c=colour: (np.abs(of - c).max(-1) < 3).sum() for colour in (darkest, palest))
    assert dark(other) > 10 * dark(pixels) > 0  # full similarity is darkest, and here on the scale only
    assert pale(other) > 1.8 * pale(pixels) > 0


def test_a_confusion_has_its_numbers_where_they_are_readable(tmp_path):
    for name, n in (("few", 3), ("many", plots.NUMBERED + 1)):
        counts = [[17 * (k == j) + 0 for j in range(n)] for k in range(n)]
        plots.confusion(tmp_path / name, "toy", [f"c{k}" for k in range(n)], counts)
    few, many = ((tmp_path / f"{name}.svg").read_text() for name in ("few", "many"))
    assert few.count("<!-- 17 -->") == 3 and "<!-- 17 -->" not in many and "<!-- 0 -->" not in few


def test_the_loss_axis_is_not_set_by_the_first_epochs(tmp_path):
    """A first loss of 100 leaves the later ones, of 1, visible: their line has some height."""
    epochs = [(epoch, 100.0 if epoch < 3 else 1 + epoch % 2, 0.5) for epoch in range(1, 101)]
    plots.learning_curve(tmp_path / "learning", "toy", epochs, [("test, learned", 0.7)])
    rows = np.flatnonzero((np.abs(picture(tmp_path / "learning.png") - [0, 114, 178]).max(-1) < 8).sum(1) > 20)
    assert rows[-1] - rows[0] > 100 and near(picture(tmp_path / "learning.png"), plots.LINE_COLOURS[1][0]) > 100


def test_a_mosaic_shows_its_images(tmp_path):
    tiles = [
        (Image.new("RGB", (20, 20), colour), "x 90 %", right) for colour, right in (((255, 0, 0), True), ((0, 0, 255), False))
    ]
    plots.mosaic(tmp_path / "mosaic", "toy", [("hits", tiles), ("mistakes", tiles[:1])])
    pixels = picture(tmp_path / "mosaic.png")
    assert near(pixels, "#ff0000") == pytest.approx(2 * near(pixels, "#0000ff"), rel=0.05) and near(pixels, "#0000ff") > 5000


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    true = builtins.__import__

    def fails(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return true(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fails)
    with pytest.raises(CoopError, match=r"pip install 'coopcli\[plots\]'"):
        plots.bars(tmp_path / "bars", "toy", [("a", 0.5, 0.0)])


@pytest.mark.parametrize("share", range(0, 101, 5))
def test_digits_are_readable_on_every_shade(share):
    """At least 4.5 to 1, by WCAG's formula written out once more."""
    import matplotlib

    colour = matplotlib.colormaps["Blues"](share / 100)[:3]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    light = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    contrast = {"white": 1.05 / (light + 0.05), "black": (light + 0.05) / 0.05}
    assert contrast[plots._ink(*colour)] == max(contrast.values()) >= 4.5
