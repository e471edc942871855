"""Gradient descent on drawn views of the train images, for the methods that learn in feature space."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..recipe import Recipe, learning_rate
from ..training import drawn_views
from .task import Task

Logits = Callable[[Tensor], Tensor]  # of image features [n, p], as [n, K], with what learns in it


def descend(
    task: Task, logits: Logits, optimizer: torch.optim.Optimizer, rate: Callable[[float], float], epochs: int, batch_size: int
) -> None:
    """Minimise cross-entropy over shuffled batches of one view of each image per epoch, the rate by epochs gone (0 to T).

    As in prompt learning, an epoch's short last batch is left out where there is a full one.
    """
    features, n = drawn_views(task.views, task.seed), len(task.labels)
    size = min(batch_size, n)
    order = torch.Generator().manual_seed(task.seed)
    with task.threads():
        for epoch in range(epochs):
            images, batches = features(epoch), torch.randperm(n, generator=order)[: n // size * size].view(-1, size)
            for number, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch + number / len(batches))
                loss = F.cross_entropy(logits(images[batch]), task.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def descend_as_paper(task: Task, logits: Logits, learned: torch.nn.Parameter, recipe: Recipe) -> None:
    """The same by the SGD that CoOp trains its context with."""
    optimizer = torch.optim.SGD([learned], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    descend(task, logits, optimizer, lambda epoch: learning_rate(recipe, int(epoch)), recipe.epochs, recipe.batch_size)
