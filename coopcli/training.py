"""The one thing that learns: the context, by SGD on cross-entropy over frozen features (CoOp, Sections 3.2 and 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import CoopError
from .prompts import Prompt
from .text_encoder import TextEncoder

# Numbers in one activation below which a step gains nothing from a second thread, and loses much where the cores are busy.
TINY = 1 << 14


@dataclass(frozen=True)
class Recipe:
    """How the context is trained. The defaults are the paper's, as in the reference's configs/trainers/CoOp."""

    epochs: int = 200
    lr: float = 0.002
    batch_size: int = 32
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    views: int = 16  # augmented views encoded of each image; an epoch draws one of them


@dataclass(frozen=True)
class EpochLog:
    """One finished epoch: mean loss and accuracy over its batches, as they were while it ran."""

    epoch: int
    epochs: int
    lr: float
    loss: float
    accuracy: float


def paper_epochs(shots: int | None, n_classes: int) -> int:
    """Epochs of the paper: 50 for 1 shot, 100 for 2 and 4, 200 for more; with 1000 classes (ImageNet) always 50."""
    if n_classes >= 1000 or shots == 1:
        return 50
    return 100 if shots is not None and shots <= 4 else 200


def paper_recipe(shots: int | None, n_classes: int) -> Recipe:
    """The paper's recipe for so many shots (None: all) and classes."""
    return Recipe(epochs=paper_epochs(shots, n_classes))


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of epoch 0..T-1: constant while warming up, then a cosine that starts at the full rate.

    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / recipe.epochs)) / 2


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch's CPU kernels run on the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_context(
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    context: Tensor,
    features: Tensor,
    labels: Tensor,
    logit_scale: float,
    recipe: Recipe,
    seed: int,
    class_chunk: int = 0,
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> Tensor:
    """Learn a context from its initial value; returns that of the last epoch, float32 on the CPU.

    `context` is [M, d] or [K, M, d], `features` [n, views, p] L2-normalised, `labels` [n] in 0..K-1.
    With at least one full batch of images, an epoch's short last batch is dropped, as in the reference.
    Raises CoopError when the loss stops being a number.
    """
    device = encoder.token_embedding.device
    layouts = encoder.lay_out(prompts, class_chunk)
    features, labels = features.to(device), labels.to(device)
    learned = torch.nn.Parameter(context.detach().to(device, torch.float32, copy=True))
    optimizer = torch.optim.SGD(
        [learned], lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=False
    )
    generator = torch.Generator().manual_seed(seed)
    n_images, n_views = features.shape[:2]
    used = n_images - n_images % recipe.batch_size if n_images >= recipe.batch_size else n_images

    largest = max(layout.tree.n_nodes for layout in layouts) * encoder.width
    with one_thread() if largest < TINY else nullcontext():
        for epoch in range(recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch)
            order = torch.randperm(n_images, generator=generator)[:used].to(device)
            drawn = torch.randint(n_views, (n_images,), generator=generator).to(device)
            losses, correct = [], []
            for batch in order.split(recipe.batch_size):
                text = encoder.encode_layouts(layouts, learned)
                logits = logit_scale * features[batch, drawn[batch]] @ text.T
                loss = F.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                correct.append((logits.detach().argmax(-1) == labels[batch]).float().mean())
            loss_of_epoch, accuracy = torch.stack([torch.stack(losses), torch.stack(correct)]).mean(dim=1).tolist()
            log = EpochLog(epoch, recipe.epochs, learning_rate(recipe, epoch), loss_of_epoch, accuracy)
            if not math.isfinite(log.loss):
                raise CoopError(
                    f"the loss is no longer a number in epoch {epoch + 1} of {recipe.epochs}; "
                    "try a smaller --lr, or --dtype float32"
                )
            if on_epoch:
                on_epoch(log)
    return learned.detach().cpu()
