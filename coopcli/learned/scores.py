"""Predictions and metrics, a block of images at a time: memory grows neither with images x classes nor with classes squared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.load import ImageItem
from ..errors import CoopError
from ..names import distinct

BLOCK = 2**24  # logits in memory at a time: 64 MB
MATRIX_CLASSES = 2000  # beyond these, no confusion matrix is kept: 4 million numbers, 8 MB of metrics.json
LARGEST = 100  # confusions that are kept instead

Classify = Callable[[Tensor], Tensor]  # image features [n, p] -> logits [n, K]
Confusion = tuple[int, int, int]  # true class, predicted class, number of images


@dataclass(frozen=True)
class Metrics:
    """How well n images were classified among K classes. Accuracies are shares in [0, 1].

    `macro` is the mean over the classes that have images; `per_class` holds None for one that has none;
    `confusion` counts images by true class (row) and predicted class (column). Beyond MATRIX_CLASSES it is None, and
    `images` by class, `hits` by class and the `largest` confusions stand in for it.
    """

    n: int
    top1: float
    macro: float
    per_class: list[float | None]
    confusion: list[list[int]] | None
    images: list[int] | None = None
    hits: list[int] | None = None
    largest: list[Confusion] | None = None

    def counts(self) -> list[int]:
        """Count the images of each class."""
        return [sum(row) for row in self.confusion] if self.confusion is not None else list(self.images or [])

    def confusions(self, most: int = LARGEST) -> list[Confusion]:
        """List the most frequent confusions of one class with another, largest first."""
        if self.confusion is None:
            return list(self.largest or [])[:most]
        pairs = [(k, j, n) for k, row in enumerate(self.confusion) for j, n in enumerate(row) if n and j != k]
        return sorted(pairs, key=lambda pair: -pair[2])[:most]


@dataclass(frozen=True)
class Evaluation:
    """Predictions for labelled images among some classes: `predicted` [n] and its probability [n]."""

    class_names: tuple[str, ...]
    items: tuple[ImageItem, ...]
    predicted: list[int]
    probability: list[float]
    metrics: Metrics

    def as_dict(self) -> dict[str, Any]:
        """The metrics for `--json` and metrics.json."""
        metrics, names = self.metrics, distinct(self.class_names)
        summary: dict[str, Any] = {"class_names": list(self.class_names), "n": metrics.n, "top1": metrics.top1}
        summary |= {"macro": metrics.macro, "per_class": dict(zip(names, metrics.per_class, strict=True))}
        if metrics.confusion is not None:
            return summary | {"confusion": metrics.confusion}
        confusions = [{"true": names[k], "predicted": names[j], "images": n} for k, j, n in metrics.confusions()]
        by_class = {
            key: dict(zip(names, counts or [], strict=True))
            for key, counts in (("images", metrics.images), ("hits", metrics.hits))
        }
        return summary | by_class | {"largest_confusions": confusions}


def by_class_features(logit_scale: float, class_features: Tensor) -> Classify:
    """Classify by class features [K, p]: CoOp, Equation 1."""
    return lambda images: logit_scale * images @ class_features.T


def evaluate_features(classify: Classify, images: Tensor, class_names: Sequence[str], items: Sequence[ImageItem]) -> Evaluation:
    """Classify images by their features [n, p], and score against the labels of `items`. Raises CoopError without images.

    `classify` gives the logits [b, K] of a block of features [b, p]; p(y=k|x) = softmax_k(logits), as in CoOp, Equation 1.
    """
    if not items:
        raise CoopError("there are no images to evaluate on")
    predicted, probability = [], []
    for block in images.split(max(1, BLOCK // len(class_names))):
        best = classify(block).softmax(dim=-1).max(dim=-1)
        predicted.append(best.indices)
        probability.append(best.values)
    labels, chosen = torch.tensor([item.label for item in items]), torch.cat(predicted)
    metrics = score(labels, chosen, len(class_names))
    return Evaluation(tuple(class_names), tuple(items), chosen.tolist(), torch.cat(probability).tolist(), metrics)


def evaluate_logits(logits: Tensor, class_names: Sequence[str], items: Sequence[ImageItem]) -> Evaluation:
    """Score logits [n, K] against the labels of `items`. Raises CoopError without images."""
    return evaluate_features(lambda block: block, logits, class_names, items)


def score(labels: Tensor, predicted: Tensor, n_classes: int) -> Metrics:
    """Score predictions [n] against labels [n], both in 0..K-1."""
    images, right = labels.bincount(minlength=n_classes).tolist(), labels[labels == predicted]
    hits = right.bincount(minlength=n_classes).tolist()
    per_class = [hit / count if count else None for hit, count in zip(hits, images, strict=True)]
    present = [accuracy for accuracy in per_class if accuracy is not None]
    given = (len(labels), sum(hits) / len(labels), sum(present) / len(present), per_class)
    pairs = labels * n_classes + predicted
    if n_classes <= MATRIX_CLASSES:
        return Metrics(*given, pairs.bincount(minlength=n_classes**2).view(n_classes, n_classes).tolist())
    wrong, counts = pairs[labels != predicted].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:LARGEST]
    largest = [
        (pair // n_classes, pair % n_classes, n) for pair, n in zip(wrong[order].tolist(), counts[order].tolist(), strict=True)
    ]
    return Metrics(*given, None, images, hits, largest)
