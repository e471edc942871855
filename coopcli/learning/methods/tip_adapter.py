"""Tip-Adapter: the few-shot images as keys of a cache beside the hand-written classifier (Zhang et al., ECCV 2022).

logits(x) = s * x . t + alpha * exp(-beta * (1 - x . keys)) onehot(labels), s the logit scale. A key is the mean of an
image's augmented views, normalised again. alpha and beta are chosen on the validation images; without any, on the train
images, leaving out each image's own key. Tip-Adapter-F trains the keys between two such choices.

Where this differs from the authors' code (gaopengcuhk/Tip-Adapter): one grid for all data sets, wide enough for each of
theirs, also gives the alpha and beta to train with, which they set by hand; of pairs with equal accuracy, the one with the
lowest cross-entropy is taken, not the first; the last epoch is kept, not the best on the test images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...learned.head import Head, cache_logits
from .descent import descend_on_views
from .task import FewShotTask, accuracy

ALPHA, BETA = 1.0, 5.5  # the paper's, where there is nothing to choose on
ALPHAS = [0.1 * 1000 ** (i / 30) for i in range(31)]  # 0.1 to 100
BETAS = [0.1 * 300 ** (i / 48) for i in range(49)]  # 0.1 to 30
LR, EPS, EPOCHS, BATCH_SIZE = 1e-3, 1e-4, 20, 256  # AdamW, its rate a cosine over all steps


@dataclass(frozen=True)
class Choice:
    """The alpha and beta that were chosen, and on which images."""

    alpha: float
    beta: float
    chosen_on: str


def learn(task: FewShotTask) -> Head:
    """Keep the train images as they are; choose only alpha and beta."""
    keys = mean_keys(task.views)
    return _head(task, "tip-adapter", keys, choose(task, keys), 0, {"trains": "nothing; alpha and beta are chosen"})


def learn_f(task: FewShotTask) -> Head:
    """Choose alpha and beta, train the keys with them, and with validation images choose again."""
    keys = torch.nn.Parameter(mean_keys(task.views))
    scale, n_classes = task.backbone.logit_scale, len(task.class_names)
    choice = choose(task, keys.detach())

    def logits(images: Tensor) -> Tensor:
        return scale * images @ task.text.T + choice.alpha * cache_logits(images, keys, task.labels, choice.beta, n_classes)

    def rate(epoch: float) -> float:
        return LR * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2

    descend_on_views(task, logits, torch.optim.AdamW([keys], LR, eps=EPS), rate, EPOCHS, BATCH_SIZE)
    trained = keys.detach()
    # Not on train images: the keys have been trained on them, so leaving out an image's own key hides it no longer.
    last = choose(task, trained) if len(task.val_labels) else choice
    training = {"trains": "the keys of the cache", "lr": LR, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
    return _head(task, "tip-adapter-f", trained, last, keys.numel(), training)


def mean_keys(views: Tensor) -> Tensor:
    """Keys [n, p]: the mean over views [n, V, p], normalised."""
    return F.normalize(views.mean(1), dim=-1)


def choose(task: FewShotTask, keys: Tensor) -> Choice:
    """The alpha and beta of the grids that classify most images right; among equals, those of the lowest cross-entropy."""
    has_val = len(task.val_labels) > 0
    if not has_val and bool((task.counts == 1).any()):
        return Choice(ALPHA, BETA, "nothing: there are no validation images, and a class has one train image only")
    images, labels = (task.val, task.val_labels) if has_val else (task.train, task.labels)
    clip = task.backbone.logit_scale * images @ task.text.T
    best, chosen = (-1.0, -math.inf), (ALPHA, BETA)
    for beta in BETAS:
        cached = cache_logits(images, keys, task.labels, beta, clip.shape[1])
        if not has_val:  # leave out what an image's own key adds
            own = (-beta * (1 - (images * keys).sum(-1))).exp()
            cached = cached.scatter_add(1, labels[:, None], -own[:, None])
        for alpha in ALPHAS:
            logits = clip + alpha * cached
            if (right := accuracy(logits, labels)) >= best[0]:
                best, chosen = max((best, chosen), ((right, -float(F.cross_entropy(logits, labels))), (alpha, beta)))
    return Choice(*chosen, "validation images" if has_val else "train images, each without its own key")


def _head(task: FewShotTask, method: str, keys: Tensor, choice: Choice, parameters: int, training: dict[str, Any]) -> Head:
    weights = task.backbone.logit_scale * task.text
    training = training | {"alpha": choice.alpha, "beta": choice.beta, "alpha_and_beta_chosen_on": choice.chosen_on}
    return task.head(method, weights, parameters, training, keys=keys, values=task.labels, alpha=choice.alpha, beta=choice.beta)
