"""The images that all experiments of a grid are tested on."""

from __future__ import annotations

from collections.abc import Sequence

from ..choices import Classes
from ..data.fewshot import draw_few_shot, label_range, test_items
from ..data.load import DataSet, ImageItem
from .grid import Cell


def common_test(
    dataset: DataSet, cells: Sequence[Cell], classes: Classes
) -> tuple[tuple[ImageItem, ...], dict[int | None, str]]:
    """The test images that no cell trains on, and by shots why a cell is left out.

    Without a test split, the cells train on images that are tested on, too. Of those that together would leave most classes
    without a test image, the ones of the most shots are left out. Raises CoopError for a half of one class.
    """
    test = test_items(dataset)
    labels = label_range(len(dataset.class_names), classes)
    tested = {item.label for item in test if item.label in labels}
    draws: dict[int | None, set[int]] = {}
    for cell in cells:
        if cell.shots != 0:
            draws.setdefault(cell.shots, set()).add(cell.seed)
    drawn: set[str] = set()
    left_out: dict[int | None, str] = {}
    for shots in sorted(draws, key=lambda shots: float("inf") if shots is None else shots):
        names = {item.name for seed in draws[shots] for item in draw_few_shot(dataset, shots, seed, classes).train}
        left = {item.label for item in test if item.label in labels and item.name not in drawn | names}
        if 2 * len(left) <= len(tested):
            number = "all" if shots is None else f"up to {shots}"
            left_out[shots] = (
                f"no image is left to test on for {len(tested) - len(left)} of {len(tested)} classes: the experiments with "
                f"{number} images per class train on them; ask for fewer shots or seeds, or give a test split"
            )
        else:
            drawn |= names
    return tuple(item for item in test if item.name not in drawn), left_out
