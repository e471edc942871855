"""Class features, predictions and metrics; hand-written and learned prompts alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.load import ImageItem
from ..errors import CoopError
from ..names import distinct


@dataclass(frozen=True)
class Metrics:
    """How well n images were classified. Accuracies are shares in [0, 1].

    `macro` is the mean over the classes that have images; `per_class` holds None for one that has none;
    `confusion` counts images by true class (row) and predicted class (column).
    """

    n: int
    top1: float
    macro: float
    per_class: list[float | None]
    confusion: list[list[int]]


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
        per_class = dict(zip(distinct(self.class_names), self.metrics.per_class, strict=True))
        return {"class_names": list(self.class_names), **asdict(self.metrics), "per_class": per_class}


def evaluate_logits(logits: Tensor, class_names: Sequence[str], items: Sequence[ImageItem]) -> Evaluation:
    """Classify images by their logits [n, K], and score against the labels of `items`. Raises CoopError without images.

    p(y=k|x) = softmax_k(logits); CoOp, Equation 1, with logits `logit_scale * images @ class_features.T`.
    """
    if not items:
        raise CoopError("there are no images to evaluate on")
    best = logits.softmax(dim=-1).max(dim=-1)
    labels = torch.tensor([item.label for item in items])
    metrics = score(labels, best.indices, len(class_names))
    return Evaluation(tuple(class_names), tuple(items), best.indices.tolist(), best.values.tolist(), metrics)


def score(labels: Tensor, predicted: Tensor, n_classes: int) -> Metrics:
    """Metrics of predictions [n] against labels [n], both in 0..K-1."""
    confusion = torch.bincount(labels * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)
    counts, hits = confusion.sum(1).tolist(), confusion.diag().tolist()
    per_class = [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
    present = [accuracy for accuracy in per_class if accuracy is not None]
    return Metrics(len(labels), sum(hits) / len(labels), sum(present) / len(present), per_class, confusion.tolist())
