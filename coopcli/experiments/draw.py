"""The figures of a run, in its folder: learning curve, confusion, mosaic of test images, similarity of class features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.decoders import Submit, decoders
from ..clip.image_features import readable_features
from ..clip.pixels import open_image
from ..data.dataset import ImageItem
from ..errors import CoopError
from ..learned.applied import learned_features
from ..learned.scores import MATRIX_CLASSES, Evaluation, by_class_features, evaluate_features
from ..learning.fit import Fit
from . import plots
from .run_folder import Run

TILES = 6  # images in a row of the mosaic
SIDE = 160  # pixels of an image in it
LETTERS = 24  # of a class name above it

logger = logging.getLogger(__name__)


def draw_run(
    folder: Path, run: Fit | Run, backbone: Backbone, template: str, cache: FeatureCache, test_items: Sequence[ImageItem] = ()
) -> list[Path]:
    """Draw a run's figures into its folder and return their PNG files.

    A run that was read from its folder has no single predictions: its mosaic is drawn of `test_items`, classified again.
    Squares of more than MATRIX_CLASSES classes are not drawn, with a note: no one could read squares as small, and their
    number would fill the memory.
    """
    names, title = run.prompt.class_names, str(run.prompt.training.get("data"))
    test = run.test if isinstance(run, Fit) else run.learned
    by_hand = run.hand_written
    levels = [
        (label, found.metrics.top1) for label, found in (("test, learned", test), ("test, hand-written", by_hand)) if found
    ]
    drawn = [folder / "learning"]
    plots.learning_curve(drawn[0], title, [(log.epoch + 1, log.loss, log.accuracy) for log in run.log], levels)
    learned = learned_features(backbone, run.prompt, names, cache)
    if test and not test.items and test_items:
        readable, images = readable_features(backbone, test_items, cache, "skip")
        test = evaluate_features(by_class_features(backbone.logit_scale, learned), images, names, readable)
    if test and test.items and (rows := mosaic_rows(test, run.prompt.exif)):
        drawn.append(folder / "mosaic")
        plots.mosaic(drawn[-1], f"{title}: test images", rows)
    if len(names) > MATRIX_CLASSES:
        logger.warning("no squares are drawn for %d classes; they are drawn for up to %d", len(names), MATRIX_CLASSES)
    else:
        if test and test.metrics.confusion is not None:
            drawn.append(folder / "confusion")
            plots.confusion(drawn[-1], f"{title}: learned prompt", names, test.metrics.confusion)
        cosines = learned @ hand_written_features(backbone, [template], names, cache).T
        drawn.append(folder / "similarity")
        plots.similarity(drawn[-1], f"{title}: class features", names, cosines.tolist())
    return [path.with_name(f"{path.name}.png") for path in drawn]


def mosaic_rows(test: Evaluation, turn: bool = False) -> list[tuple[str, list[plots.Tile]]]:
    """The surest hits in one row and the surest mistakes in up to two, each image with what it was taken for.

    Images that can no longer be read are left out.
    """
    order = sorted(range(len(test.items)), key=lambda number: -test.probability[number])
    hits = [number for number in order if test.items[number].label == test.predicted[number]]
    misses = [number for number in order if test.items[number].label != test.predicted[number]]
    groups = [("the surest hits", hits[:TILES]), ("the worst mistakes: true class → taken for", misses[:TILES]),
              ("", misses[TILES : 2 * TILES])]  # fmt: skip
    with decoders(many=False) as submit:
        rows = [
            (heading, [tile for number in numbers if (tile := _tile(test, number, turn, submit))])
            for heading, numbers in groups
        ]
    return [(heading, tiles) for heading, tiles in rows if tiles]


def _tile(test: Evaluation, number: int, turn: bool, submit: Submit) -> plots.Tile | None:
    item, names = test.items[number], test.class_names
    try:
        content = item.read()
        image = submit(content, open_image, content, item.name, turn).result()
    except CoopError:
        return None
    image.thumbnail((SIDE, SIDE))
    right = item.label == test.predicted[number]
    lines = [names[test.predicted[number]]] if right else [names[item.label], f"→ {names[test.predicted[number]]}"]
    return image, "\n".join([*map(_short, lines), f"{100 * test.probability[number]:.0f} %"]), right


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
