"""k-shot sampling, the very lists of the reference (Dassl's `generate_fewshot_dataset`)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .images import ImageItem

VAL_SHOTS = 4  # the reference draws min(k, 4) validation images per class


def few_shot_lists(
    train: Sequence[ImageItem], val: Sequence[ImageItem], shots: int | None, seed: int
) -> tuple[list[ImageItem], list[ImageItem]]:
    """Draw `shots` train images per class, then min(shots, 4) validation images; `None` takes all of both.

    Classes come in order of first appearance; a class with fewer images gives all it has.
    """
    if shots is None:
        return list(train), list(val)
    rng = random.Random(seed)
    return _draw(train, shots, rng), _draw(val, min(shots, VAL_SHOTS), rng)


def _draw(items: Sequence[ImageItem], shots: int, rng: random.Random) -> list[ImageItem]:
    by_class: dict[int, list[ImageItem]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    drawn: list[ImageItem] = []
    for of_class in by_class.values():
        drawn += rng.sample(of_class, shots) if len(of_class) >= shots else of_class
    return drawn
