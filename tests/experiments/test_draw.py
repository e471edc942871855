"""The figures of a run: which are drawn, of what, and that a kept run gives the same."""

import json

import pytest
from conftest import ran

from coopcli.clip.cache import FeatureCache
from coopcli.data.load import load_data
from coopcli.experiments.draw import draw_run, mosaic_rows
from coopcli.learning.fit import fit
from coopcli.learning.recipe import Recipe

ALL = ["learning", "mosaic", "confusion", "similarity"]


@pytest.fixture
def result(mini, split_photos):
    return fit(mini, load_data(str(split_photos)), Recipe(epochs=2, views=1), shots=2)


def test_the_mosaic_has_the_surest_first(result, split_photos):
    test = result.test
    for heading, tiles in mosaic_rows(test):
        assert len(tiles) <= 6
        shares = [int(text.split()[-2]) for _, text, _ in tiles]
        assert shares == sorted(shares, reverse=True) and {right for *_, right in tiles} == {"hits" in heading}
    texts = [text for _, tiles in mosaic_rows(test) for _, text, _ in tiles]
    assert len(texts) == min(6, sum(i.label == p for i, p in zip(test.items, test.predicted, strict=True))) + sum(
        i.label != p for i, p in zip(test.items, test.predicted, strict=True)
    )
    (split_photos / test.items[0].name).write_bytes(b"no image")
    assert len([tile for _, tiles in mosaic_rows(test) for tile in tiles]) in (len(texts), len(texts) - 1)


def test_no_squares_are_drawn_of_very_many_classes(result, mini, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("coopcli.experiments.draw.MATRIX_CLASSES", 2)
    drawn = draw_run(tmp_path / "run", result, mini, "a {}.", FeatureCache(None))
    assert [path.stem for path in drawn] == ALL[:2] and "no squares are drawn for 3 classes" in caplog.text


def test_fit_prints_their_paths_and_a_kept_run_draws_the_same(coop, split_photos, tmp_path):
    command = ["fit", split_photos, "--model", "mini", "--shots", "2", "--epochs", "2", "--views", "1", "--plot", "-o", "run"]
    kept = []
    for _ in range(2):
        code, _, err = coop(*command)
        (line,) = [line for line in err.splitlines() if line.startswith("figures: ")]
        paths = line.removeprefix("figures: ").split(", ")
        assert code == 0 and paths == [f"run/{name}.png" for name in ALL]
        kept.append([(tmp_path / path).read_bytes() for path in paths])
        for path in paths:
            (tmp_path / path).unlink()
    assert kept[0] == kept[1]
    told = json.loads(ran(coop(*command, "--json")))
    assert told["figures"] == [f"run/{name}.png" for name in ALL]
