"""Gradient descent on the train images, for the methods that learn no prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CoopError
from ..recipe import Recipe, learning_rate
from ..training import drawn_views
from .task import FewShotTask

Logits = Callable[[Tensor], Tensor]  # the inputs of a batch of B images -> logits [B, K]
Rate = Callable[[float], float]  # epochs done, 0 to T -> learning rate
Batches = Callable[[int, Sequence[Tensor]], Iterable[Tensor]]  # an epoch, each batch's image numbers -> each batch's inputs


def descend(
    inputs: Batches,
    labels: Tensor,
    logits: Logits,
    optimizer: torch.optim.Optimizer,
    rate: Rate,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Minimise cross-entropy over shuffled batches of the train images, whose classes are `labels` [n].

    As in prompt learning, an epoch's short last batch is left out if there is a full one. Raises CoopError when the loss
    stops being a number.
    """
    n, size = len(labels), min(batch_size, len(labels))
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        batches = torch.randperm(n, generator=order)[: n // size * size].view(-1, size)
        for number, (batch, images) in enumerate(zip(batches, inputs(epoch, list(batches)), strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch + number / len(batches))
            predicted = logits(images)
            loss = F.cross_entropy(predicted, labels[batch].to(predicted.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not loss.isfinite():
            raise CoopError(f"training diverged: the loss is not finite in epoch {epoch + 1} of {epochs}")


def descend_on_views(
    task: FewShotTask, logits: Logits, optimizer: torch.optim.Optimizer, rate: Rate, epochs: int, batch_size: int
) -> None:
    """Descend on image features: in each epoch, those of one newly drawn view of each image."""
    drawn = drawn_views(task.views, task.seed)

    def inputs(epoch: int, batches: Sequence[Tensor]) -> Iterable[Tensor]:
        features = drawn(epoch)
        return (features[batch] for batch in batches)

    with task.threads():
        descend(inputs, task.labels, logits, optimizer, rate, epochs, batch_size, task.seed)


def descend_as_paper(task: FewShotTask, logits: Logits, learned: torch.nn.Parameter, recipe: Recipe) -> None:
    """Descend on image features by the SGD that CoOp trains its context with."""
    optimizer = torch.optim.SGD([learned], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    descend_on_views(task, logits, optimizer, lambda epoch: learning_rate(recipe, int(epoch)), recipe.epochs, recipe.batch_size)
