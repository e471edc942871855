"""The one thing that learns: the context, by SGD on cross-entropy over frozen features (CoOp, Sections 3.2 and 4)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..clip.prompts import PromptTokens
from ..clip.text_encoder import TextEncoder
from ..errors import CoopError
from .recipe import Recipe, learning_rate

EpochFeatures = Callable[[int], Tensor]  # an epoch's image features [n, p]

# Numbers in one activation below which a step gains nothing from a second thread, and loses much where the cores are busy.
TINY = 1 << 14


@dataclass(frozen=True)
class EpochLog:
    """One finished epoch: mean loss and accuracy over its batches, as they were while it ran."""

    epoch: int
    epochs: int
    lr: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class TrainingState:
    """Where training stands after the epochs in `log`: with the seed, all that the next epoch depends on.

    `context` and the optimizer's tensors lie on the CPU. `class_chunk` classes are encoded at a time, 0: all.
    """

    context: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    log: tuple[EpochLog, ...] = ()
    class_chunk: int = 0


def drawn_views(features: Tensor, seed: int) -> EpochFeatures:
    """Features [n, p] of one view of each image, drawn anew for every epoch from `features` [n, views, p]."""

    def of_epoch(epoch: int) -> Tensor:
        n, views, _ = features.shape
        return features[torch.arange(n), torch.randint(views, (n,), generator=_generator(seed, epoch, draw=1))]

    return of_epoch


def epoch_order(n_images: int, seed: int, epoch: int) -> Tensor:
    """The order [n] in which an epoch goes through the images."""
    return torch.randperm(n_images, generator=_generator(seed, epoch, draw=0))


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
    """On a GPU, sums in a fixed order, so that the same command gives the same bytes.

    An operation that PyTorch knows no such order for runs all the same. Of attention only the plain kernel has one in
    backward unless that is an error.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", message=".*determinis")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def train_context(
    encoder: TextEncoder,
    prompts: Sequence[PromptTokens],
    start: TrainingState,
    features: EpochFeatures,
    labels: Tensor,
    logit_scale: float,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[TrainingState], None] = lambda state: None,
) -> TrainingState:
    """Learn a context from its initial value, or from where an earlier run stood; returns where the last epoch leaves it.

    The context is [M, d] or [K, M, d]; `features` gives an epoch's image features, L2-normalised [n, p]; `labels` [n] are
    in 0..K-1. With at least one full batch of images, an epoch's short last batch is dropped, as in the reference.
    Raises CoopError when the loss stops being a number; `on_epoch` has been told of the good epochs before.
    """
    device = encoder.token_embedding.device
    layouts = encoder.lay_out(prompts, start.class_chunk)
    learned = torch.nn.Parameter(start.context.detach().to(device, torch.float32, copy=True))
    rate = torch.zeros((), device=device)
    optimizer = _optimizer(recipe, learned, rate)
    n_images = len(labels)
    batch_size = min(recipe.batch_size or n_images, n_images)
    n_batches = n_images // batch_size

    # What a step reads and writes stays in place, so that on a GPU it can be recorded once and replayed.
    images = torch.empty(n_images, encoder.feature_width, device=device)
    labels = labels.to(device)
    order = torch.zeros(n_batches, batch_size, dtype=torch.long, device=device)
    batch_number = torch.zeros(1, dtype=torch.long, device=device)
    losses, accuracies = torch.zeros(2, n_batches, device=device)

    def step() -> None:
        batch = order[batch_number][0]
        text = encoder.encode_layouts(layouts, learned)
        logits = logit_scale * images[batch] @ text.T
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[batch_number] = loss.detach()
        accuracies[batch_number] = (logits.detach().argmax(-1) == labels[batch]).float().mean()
        batch_number.add_(1)

    state = start
    largest = max(layout.tree.n_nodes for layout in layouts) * encoder.width
    with one_thread() if largest < TINY else nullcontext(), deterministic(device):
        run = _recorded(step, optimizer, learned, batch_number) if can_record(device) else step
        _restore(optimizer, learned, start.optimizer)
        for epoch in range(len(start.log), recipe.epochs):
            rate.fill_(learning_rate(recipe, epoch))
            images.copy_(features(epoch))
            order.copy_(epoch_order(n_images, seed, epoch)[: n_batches * batch_size].view(n_batches, batch_size))
            batch_number.zero_()
            for _ in range(n_batches):
                run()
            _check_losses(losses, epoch, recipe)
            log = EpochLog(epoch, recipe.epochs, learning_rate(recipe, epoch), float(losses.mean()), float(accuracies.mean()))
            kept = {name: value.detach().clone().cpu() for name, value in optimizer.state[learned].items()}
            state = TrainingState(learned.detach().clone().cpu(), kept, (*state.log, log), start.class_chunk)
            on_epoch(state)
    return state


def _check_losses(losses: Tensor, epoch: int, recipe: Recipe) -> None:
    wrong = (~losses.isfinite()).nonzero()[:, 0].tolist()
    if wrong:
        raise CoopError(
            f"the loss is no longer a number in step {wrong[0] + 1} of epoch {epoch + 1} of {recipe.epochs}: the rate is too "
            "high, or image features hold no numbers; try a smaller --lr, or --dtype float32"
        )


def _optimizer(recipe: Recipe, learned: torch.nn.Parameter, rate: Tensor) -> torch.optim.Optimizer:
    """The recipe's optimizer; its rate is read from a tensor, and no step needs the host."""
    cuda = learned.device.type == "cuda"
    if recipe.optimizer == "adam":
        betas, decay = (recipe.momentum, 0.999), recipe.weight_decay
        return torch.optim.Adam([learned], lr=rate, betas=betas, weight_decay=decay, foreach=False, capturable=cuda)
    return torch.optim.SGD(
        [learned], lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=False, fused=cuda
    )


def _restore(optimizer: torch.optim.Optimizer, learned: torch.nn.Parameter, kept: dict[str, Tensor]) -> None:
    """Put back an optimizer's tensors: in place where a recorded step reads them."""
    present = optimizer.state[learned]
    for name, value in kept.items():
        if name in present:
            present[name].copy_(value)
        else:
            present[name] = value.clone()


def can_record(device: torch.device) -> bool:
    """Whether steps on this device can be recorded once and replayed."""
    return device.type == "cuda"


def _recorded(
    step: Callable[[], None], optimizer: torch.optim.Optimizer, learned: torch.nn.Parameter, batch_number: Tensor
) -> Callable[[], None]:
    """The step as a CUDA graph: replayed without a call from the host to each of its thousands of kernels."""
    before = learned.detach().clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a few plain steps first: kernels are chosen, the optimizer makes its state
        for _ in range(3):
            batch_number.zero_()
            step()
    torch.cuda.current_stream().wait_stream(side)
    batch_number.zero_()
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():  # as if none of these had been taken
        learned.copy_(before)
        for state in optimizer.state[learned].values():
            state.zero_()
    return graph.replay
