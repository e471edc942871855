"""LP++: a linear probe whose weights blend image prototypes with the text features (Huang et al., CVPR 2024).

logits_k(x) = x . (w_k + alpha_k t_k), with w [K, p] and alpha [K] learned by gradient descent over all images at once. The
first values and the step sizes come from the data, as in the authors' code (FereshteShakeri/FewShot-CLIP-Strong-Baseline):
    w_k     = sum of the class's features                  step  4 N / lambda_max(X'X), momentum 0.9, every iteration
    alpha_k = 250 * mean_k(mean over the class of x . t_k)  step  N / (4 max_k sum_i (x_i . t_k)^2), every tenth iteration,
              along the sum of the ten gradients since the last
Of 300 iterations, the best on the validation images is kept (of several, the last); without validation images, the last.
Unlike that code, this has no additive bias, as the paper's formula has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...learned.head import Head
from .task import FewShotTask, accuracy

ITERATIONS, ALPHA_EVERY, MOMENTUM, ALPHA_SCALE = 300, 10, 0.9, 250.0


def learn(task: FewShotTask) -> Head:
    """Learn w and alpha from the train images."""
    x, text, labels, n = task.train, task.text, task.labels, len(task.labels)
    similarity = x @ text.T
    w, alpha = first_values(x, text, labels, task.counts)
    w_step, alpha_step = steps(x, similarity)
    w_velocity, alpha_gradient = torch.zeros_like(w), torch.zeros_like(alpha)
    best, kept = -1.0, ITERATIONS
    truth = F.one_hot(labels, len(text)).float()
    with task.threads():
        for iteration in range(1, ITERATIONS + 1):
            # The gradient of the mean cross-entropy by the logits, [n, K].
            error = ((x @ w.T + alpha * similarity).softmax(-1) - truth) / n
            alpha_gradient += (error * similarity).sum(0)
            w_velocity = MOMENTUM * w_velocity + error.T @ x
            w = w - w_step * w_velocity
            if iteration % ALPHA_EVERY == 0:
                alpha = alpha - alpha_step * alpha_gradient
                alpha_gradient = torch.zeros_like(alpha)
            weights = w + alpha[:, None] * text
            if not len(task.val_labels):
                chosen = weights
            elif (right := accuracy(task.val @ weights.T, task.val_labels)) >= best:
                best, kept, chosen = right, iteration, weights
    training = {
        "trains": "class prototypes and one blending weight for each class",
        "iterations": kept,
        "iterations_chosen_on": "validation images" if len(task.val_labels) else "nothing: there are no validation images",
    }
    return task.head("lp++", chosen, w.numel() + alpha.numel(), training)


def first_values(x: Tensor, text: Tensor, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the first w [K, p], sums by class, and alpha [K], equal for every class; empty classes add nothing."""
    w = torch.zeros_like(text).index_add_(0, labels, x)
    means = (w * text).sum(-1)[counts > 0] / counts[counts > 0]
    return w, torch.full((len(text),), ALPHA_SCALE * float(means.mean()))


def steps(x: Tensor, similarity: Tensor) -> tuple[float, float]:
    """Compute the step sizes of w and alpha, inverses of (approximate) Lipschitz constants; `similarity` [n, K] is x . t_k."""
    n = len(x)
    return 4 * n / float(torch.linalg.matrix_norm(x, 2) ** 2), n / (4 * float(similarity.square().sum(0).max()))
