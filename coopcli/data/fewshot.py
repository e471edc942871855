"""Few-shot draws, equal to the reference's lists (Dassl's `generate_fewshot_dataset`), and base and new classes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..choices import Classes
from ..errors import CoopError, UsageError
from .load import DataSet, ImageItem

VAL_SHOTS = 4  # the reference draws min(k, 4) validation images per class


@dataclass(frozen=True)
class FewShot:
    """A few-shot draw from a data set: images to train on, to validate on (maybe none), and to test on.

    Labels index `class_names`; `folders` are the data's own names of these classes. The other fields describe the draw:
    the data set's name, shots (None: all), seed and half of the classes.
    """

    dataset: str
    shots: int | None
    seed: int
    classes: Classes
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    train: tuple[ImageItem, ...]
    val: tuple[ImageItem, ...]
    test: tuple[ImageItem, ...]

    @property
    def sha256(self) -> str:
        """The hash of the train list, one name a line: equal for two runs on the same images."""
        return hashlib.sha256("\n".join(item.name for item in self.train).encode()).hexdigest()


def short_classes(data: FewShot) -> list[int]:
    """The labels of the classes with fewer train images than shots (of all images: with none)."""
    counts = Counter(item.label for item in data.train)
    return [label for label in range(len(data.class_names)) if counts[label] < (1 if data.shots is None else data.shots)]


def few_images(data: FewShot) -> list[str]:
    """Warn when classes have fewer train images than shots, in one line or none."""
    short = short_classes(data)
    if not short:
        return []
    count = sum(item.label == short[0] for item in data.train)
    fewer = "no train image" if data.shots in (None, 1) else f"fewer than {data.shots} train images"
    first = f'(first: "{data.class_names[short[0]]}" with {count})'
    return [f"{len(short)} of {len(data.class_names)} classes have {fewer} {first}; all of theirs are used"]


def in_words(shots: int | None) -> str:
    """Put a number of shots into words."""
    return "all images" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def draw_few_shot(dataset: DataSet, shots: int | None, seed: int, classes: Classes = "all") -> FewShot:
    """Draw `shots` train images per class (None: all), then keep the classes of one half.

    The draw comes first, as in the reference: a class gets the same images whether the other half is used or not.
    Raises UsageError for fewer than one shot, CoopError for a half of one class.
    """
    if shots is not None and shots < 1:
        raise UsageError(f"shots must be 1 or more, or None for all images, not {shots}")
    test = test_items(dataset)
    val = () if test is dataset.splits.get("val") else dataset.splits.get("val", ())
    train, val_drawn = few_shot_lists(dataset.split("train", "all"), val, shots, seed)
    drawn = {item.name for item in train}
    kept = half(dataset, classes)
    labels = label_range(len(dataset.class_names), classes)
    left = tuple(item for item in test if item.name not in drawn)
    return FewShot(
        dataset.name, shots, seed, classes, kept.class_names, kept.folders,
        with_labels(train, labels), with_labels(val_drawn, labels), with_labels(left, labels),
    )  # fmt: skip


def test_items(dataset: DataSet) -> tuple[ImageItem, ...]:
    """Return the images to test on: the test split, or all images of data without splits, or else the val split.

    Without splits they include those that a few-shot draw trains on.
    """
    return dataset.split("test", "all", "val", "train")


def half(dataset: DataSet, classes: Classes) -> DataSet:
    """Keep the base classes only, the first ceil(K/2), or the new ones, the rest, labelled from 0.

    Source: CoCoOp, Section 4.1; `subsample_classes` of the reference's datasets. Raises CoopError for a half of one class.
    """
    kept = label_range(len(dataset.class_names), classes)
    if len(kept) < 2:
        raise CoopError(
            f"{dataset.name} has {len(dataset.class_names)} classes, {len(kept)} of them {classes}; two or more are needed"
        )
    part = slice(kept.start, kept.stop)
    splits = {split: with_labels(items, kept) for split, items in dataset.splits.items()}
    return replace(dataset, class_names=dataset.class_names[part], folders=dataset.folders[part], splits=splits)


def label_range(n_classes: int, classes: Classes) -> range:
    """Return the labels of a half of K classes."""
    middle = (n_classes + 1) // 2
    return {"all": range(n_classes), "base": range(middle), "new": range(middle, n_classes)}[classes]


def with_labels(items: Sequence[ImageItem], labels: range) -> tuple[ImageItem, ...]:
    """Return the items with these labels, relabelled from 0."""
    return tuple(replace(item, label=item.label - labels.start) for item in items if item.label in labels)


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
    for candidates in by_class.values():
        drawn += rng.sample(candidates, shots) if len(candidates) >= shots else candidates
    return drawn
