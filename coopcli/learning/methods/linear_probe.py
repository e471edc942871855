"""Linear probe: logistic regression on image features, with the inverse regularisation C chosen by accuracy.

min over W, b of  |W|^2 / 2 + C * sum_i CE(W x_i + b, y_i)  by scikit-learn's lbfgs, C as in CLIP, Appendix A.3, and
CoOp's lpclip/linear_probe.py: the best of a coarse grid, then a binary search in log space around it, on the few-shot
validation images. The reference does not normalise features (`coop sweep --no-normalize`); with normalised ones C and
accuracy differ, by how much is in benchmarks/README.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import CoopError
from ...learned.head import Head
from .task import FewShotTask

GRID = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # log10 of the C tried first
STEPS = 8  # of the binary search, which starts one decade to either side of the grid's best
MAX_ITERATIONS = 1000
LONGER = 10  # times the longest train feature: that of no other image is as long
FOLDS = 4  # of the cross-validation that stands in for absent validation images

Array = NDArray[np.float64]


def learn(task: FewShotTask) -> Head:
    """Fit the probe; without validation images, C comes from cross-validation, or is 1 when a class has one image only.

    Raises CoopError when the train images are all of one class.
    """
    images, labels = task.train.double().numpy(), task.labels.numpy()
    present = task.counts[task.counts > 0]
    fewest = int(present.min())
    if len(present) < 2:
        raise CoopError("the linear probe needs train images of two classes or more")
    if len(task.val_labels):
        val, val_labels = task.val.double().numpy(), task.val_labels.numpy()
        chosen_on = "validation images"
        exponent = best_exponent(lambda e: score(images, labels, val, val_labels, 10.0**e))
    elif fewest >= 2:
        chosen_on = f"{min(FOLDS, fewest)}-fold cross-validation of the train images"
        exponent = best_exponent(lambda e: cross_validate(images, labels, min(FOLDS, fewest), task.seed, 10.0**e))
    else:
        chosen_on, exponent = "nothing: there are no validation images, and a class has one train image only", 0.0
    weights, bias = fit(images, labels, 10.0**exponent, len(task.class_names))
    return task.head(
        "linear-probe",
        torch.from_numpy(weights),
        weights.size + bias.size,
        {"trains": "weights and bias of a linear classifier", "C": 10.0**exponent, "C_chosen_on": chosen_on},
        bias=torch.from_numpy(bias).float(),
        raw=task.raw,
    )


def best_exponent(accuracy: Callable[[float], float]) -> float:
    """log10 of the C that the reference's search ends on, for an accuracy as a function of log10 C."""
    accuracy = cache(accuracy)
    peak = max(GRID, key=accuracy)  # the first of several: the largest C
    left, right, chosen = peak - 1, peak + 1, peak
    for _ in range(STEPS):
        middle = (left + right) / 2
        if accuracy(left) < accuracy(right):
            chosen, left = right, middle
        else:
            chosen, right = left, middle
    return chosen


def fit(images: Array, labels: NDArray[np.int64], c: float, n_classes: int) -> tuple[Array, Array]:
    """Weights [K, p] and bias [K]. A class without images gets a bias so low that it is never the answer."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with a large C it stops at MAX_ITERATIONS, as in the reference
        model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(images, labels)
    seen_weights, seen_bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one logit, that of the second class over the first
        seen_weights, seen_bias = np.vstack([0 * seen_weights, seen_weights]), np.append(0.0, seen_bias)
    length = np.linalg.norm(images, axis=1).max()
    longest = 1.0 if length <= 1 + 1e-6 else LONGER * length  # of any image: normalised features have length 1
    never = seen_bias.min() - 2 * np.linalg.norm(seen_weights, axis=1).max() * longest - 1  # |w x| <= |w| |x|
    weights, bias = np.zeros((n_classes, images.shape[1])), np.full(n_classes, never)
    weights[model.classes_], bias[model.classes_] = seen_weights, seen_bias
    return weights, bias


def score(images: Array, labels: NDArray[np.int64], val: Array, val_labels: NDArray[np.int64], c: float) -> float:
    """Accuracy on validation images of the probe that this C gives."""
    weights, bias = fit(images, labels, c, 1 + int(max(labels.max(), val_labels.max())))
    return float(((val @ weights.T + bias).argmax(1) == val_labels).mean())


def cross_validate(images: Array, labels: NDArray[np.int64], folds: int, seed: int, c: float) -> float:
    """Mean accuracy over folds, each of which has its share of every class."""
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(images, labels)
    return float(np.mean([score(images[a], labels[a], images[b], labels[b], c) for a, b in parts]))
