"""The one thing that learns: the context, by SGD on cross-entropy over frozen features (CoOp, Sections 3.2 and 4)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import CoopError
from .prompts import Prompt
from .text_encoder import TextEncoder

EpochFeatures = Callable[[int], Tensor]  # an epoch's image features [n, p]

# Numbers in one activation below which a step gains nothing from a second thread, and loses much where the cores are busy.
TINY = 1 << 14


@dataclass(frozen=True)
class Recipe:
    """How the context is trained. The defaults are the paper's, as in the reference's configs/trainers/CoOp."""

    epochs: int = 200
    lr: float = 0.002
    batch_size: int = 32  # 0: all images in every step
    warmup_epochs: int = 1
    warmup_lr: float | None = 1e-5  # None: a ramp up to lr
    momentum: float = 0.9  # SGD's; Adam's first beta
    weight_decay: float = 5e-4
    views: int = 16  # augmented views encoded of each image, an epoch draws one of them; 0: new views in every epoch
    optimizer: Literal["sgd", "adam"] = "sgd"


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


def fast_recipe() -> Recipe:
    """200 steps of Adam, each over one view of all images: a step costs the same for 10 images as for 1000."""
    return Recipe(epochs=200, lr=0.01, batch_size=0, warmup_epochs=40, warmup_lr=None, weight_decay=0.0, optimizer="adam")


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of epoch 0..T-1: constant while warming up (or a ramp), then a cosine that starts at the full rate.

    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1) / recipe.warmup_epochs if recipe.warmup_lr is None else recipe.warmup_lr
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / recipe.epochs)) / 2


def drawn_views(features: Tensor, seed: int) -> EpochFeatures:
    """Features [n, p] of one view of each image, drawn anew for every epoch from `features` [n, views, p]."""

    def of_epoch(epoch: int) -> Tensor:
        n, views, _ = features.shape
        return features[torch.arange(n), torch.randint(views, (n,), generator=_generator(seed, epoch, draw=1))]

    return of_epoch


def _generator(seed: int, epoch: int, draw: int) -> torch.Generator:
    """Random numbers that depend on the epoch alone, not on what was drawn before it."""
    digest = hashlib.blake2b(f"{seed} {epoch} {draw}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch's CPU kernels run on the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, sums in a fixed order: the same command gives the same bytes."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(device.type == "cuda" or before[0], warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def train_context(
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    context: Tensor,
    features: EpochFeatures,
    labels: Tensor,
    logit_scale: float,
    recipe: Recipe,
    seed: int,
    class_chunk: int | None = None,
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> Tensor:
    """Learn a context from its initial value; returns that of the last epoch, float32 on the CPU.

    `context` is [M, d] or [K, M, d]; `features` gives an epoch's image features, L2-normalised [n, p]; `labels` [n] are
    in 0..K-1. With at least one full batch of images, an epoch's short last batch is dropped, as in the reference.
    `class_chunk` classes are encoded at a time (0: all; None: as memory demands).
    Raises CoopError when the loss stops being a number.
    """
    device = encoder.token_embedding.device
    chunk = encoder.fitting_chunk(prompts) if class_chunk is None else class_chunk
    layouts = encoder.lay_out(prompts, chunk)
    learned = torch.nn.Parameter(context.detach().to(device, torch.float32, copy=True))
    rate = torch.zeros((), device=device)
    optimizer = _optimizer(recipe, learned, rate)
    n_images = len(labels)
    batch_size = min(recipe.batch_size or n_images, n_images)

    # What a step reads and writes stays in place, so that on a GPU it can be recorded once and replayed.
    images = torch.empty(n_images, encoder.feature_width, device=device)
    labels = labels.to(device)
    batch = torch.zeros(batch_size, dtype=torch.long, device=device)
    totals = torch.zeros(2, device=device)  # loss and accuracy, summed over an epoch's batches

    def step() -> None:
        text = encoder.encode_layouts(layouts, learned)
        logits = logit_scale * images[batch] @ text.T
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.add_(torch.stack([loss.detach(), (logits.detach().argmax(-1) == labels[batch]).float().mean()]))

    largest = max(layout.tree.n_nodes for layout in layouts) * encoder.width
    with one_thread() if largest < TINY else nullcontext(), deterministic(device):
        run = _recorded(step, optimizer, learned) if device.type == "cuda" else step
        for epoch in range(recipe.epochs):
            rate.fill_(learning_rate(recipe, epoch))
            images.copy_(features(epoch))
            totals.zero_()
            order = torch.randperm(n_images, generator=_generator(seed, epoch, draw=0)).to(device)
            batches = order[: n_images - n_images % batch_size].view(-1, batch_size)
            for chosen in batches:
                batch.copy_(chosen)
                run()
            loss, accuracy = (totals / len(batches)).tolist()
            if not math.isfinite(loss):
                raise CoopError(
                    f"the loss is no longer a number in epoch {epoch + 1} of {recipe.epochs}; "
                    "try a smaller --lr, or --dtype float32"
                )
            if on_epoch:
                on_epoch(EpochLog(epoch, recipe.epochs, learning_rate(recipe, epoch), loss, accuracy))
    return learned.detach().cpu()


def _optimizer(recipe: Recipe, learned: torch.nn.Parameter, rate: Tensor) -> torch.optim.Optimizer:
    """The recipe's optimizer; its rate is read from a tensor, and no step needs the host."""
    cuda = learned.device.type == "cuda"
    if recipe.optimizer == "adam":
        betas, decay = (recipe.momentum, 0.999), recipe.weight_decay
        return torch.optim.Adam([learned], lr=rate, betas=betas, weight_decay=decay, foreach=False, capturable=cuda)
    return torch.optim.SGD(
        [learned], lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=False, fused=cuda
    )


def _recorded(step: Callable[[], None], optimizer: torch.optim.Optimizer, learned: torch.nn.Parameter) -> Callable[[], None]:
    """The step as a CUDA graph: replayed without a call from the host to each of its thousands of kernels."""
    before = learned.detach().clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a few plain steps first: kernels are chosen, the optimizer makes its state
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():  # as if none of these had been taken
        learned.copy_(before)
        for state in optimizer.state[learned].values():
            state.zero_()
    return graph.replay
