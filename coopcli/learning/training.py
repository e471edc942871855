"""Train the context, the only thing that learns: SGD on cross-entropy over frozen features (CoOp, Sections 3.2 and 4)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..clip.prompts import PromptTokens
from ..clip.text_encoder import Recompute, TextEncoder
from ..errors import CoopError
from ..parallel import world
from .recipe import Recipe, learning_rate
from .shards import ClassShards

EpochFeatures = Callable[[int], Tensor]  # an epoch's image features [n, p]

# Numbers in one activation below which a step gains nothing from a second thread, and loses much where the cores are busy.
TINY = 1 << 14


@dataclass(frozen=True)
class EpochLog:
    """A finished epoch: mean loss and accuracy over its batches, measured while it ran."""

    epoch: int
    epochs: int
    lr: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class TrainingTask:
    """What a context is trained on, and how: with its first value, all that the result depends on.

    `features` gives an epoch's image features, L2-normalised [n, p]; `labels` [n] are in 0..K-1 for K prompts. Prompts are
    encoded in chunks of about `class_chunk` (0: all at once), which the processes of a job share (shards.py).
    `hand_written` are L2-normalised class features [K, p] to which `recipe.keep_close` keeps the learned ones near.
    """

    prompts: Sequence[PromptTokens]
    features: EpochFeatures
    labels: Tensor
    logit_scale: float
    recipe: Recipe
    seed: int
    class_chunk: int = 0
    hand_written: Tensor | None = None


@dataclass(frozen=True)
class TrainingState:
    """The state of training after the epochs in `log`: what the next epoch starts from. Its tensors are on the CPU."""

    context: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    log: tuple[EpochLog, ...] = ()


def drawn_views(features: Tensor, seed: int) -> EpochFeatures:
    """Draw one view of each image for every epoch, from `features` [n, views, p]: gives an epoch's features [n, p]."""

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
    """Sum in a fixed order on a GPU, so that the same command gives the same bytes.

    Operations for which PyTorch has no such order still run. For attention only the plain kernel has one in backward.
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
    task: TrainingTask,
    start: TrainingState,
    on_epoch: Callable[[TrainingState], None] = lambda state: None,
    recompute: Recompute = "nothing",
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
) -> TrainingState:
    """Learn a context from its initial value, or resume from the state of an earlier run; returns the state at the end.

    The context is float32 [M, d] or [K, M, d]. With at least one full batch of images, an epoch's short last batch is
    dropped, as in the reference. `recompute` saves memory and changes no bit. Raises CoopError when the loss or the context
    stops being finite; `on_epoch` has been called for the good epochs before.
    `on_step` is called after each step, with its epoch, how many steps of that are done, and how many it has.
    """
    recipe, labels = task.recipe, task.labels
    device = encoder.token_embedding.device
    classes = ClassShards(encoder, task.prompts, task.class_chunk, start.context)
    learned = torch.nn.Parameter(classes.own(start.context.detach()).to(device, torch.float32, copy=True))
    rate = torch.zeros((), device=device)
    optimizer = _optimizer(recipe, learned, rate)
    n_images = len(labels)
    batch_size = min(recipe.batch_size or n_images, n_images)
    n_batches = n_images // batch_size

    # What a step reads and writes stays in place, so that on a GPU it can be recorded once and replayed.
    images = torch.empty(n_images, encoder.feature_width, device=device)
    labels = labels.to(device)
    near = None if task.hand_written is None else (task.hand_written.to(device), recipe.keep_close)
    order = torch.zeros(n_batches, batch_size, dtype=torch.long, device=device)
    batch_number = torch.zeros(1, dtype=torch.long, device=device)
    losses, accuracies = torch.zeros(2, n_batches, device=device)

    def step() -> None:
        batch = order[batch_number][0]
        optimizer.zero_grad()
        loss, right = classes.backward(learned, task.logit_scale * images[batch], labels[batch], recompute, near)
        optimizer.step()
        losses[batch_number] = loss
        accuracies[batch_number] = right
        batch_number.add_(1)

    state = start
    largest = classes.most_rows * encoder.width
    with one_thread() if largest < TINY else nullcontext(), deterministic(device):
        run = _recorded(step, optimizer, learned, batch_number) if can_record(device) else step
        _restore(optimizer, learned, {name: classes.own(value) for name, value in start.optimizer.items()})
        for epoch in range(len(start.log), recipe.epochs):
            rate.fill_(learning_rate(recipe, epoch))
            images.copy_(task.features(epoch))
            order.copy_(epoch_order(n_images, task.seed, epoch)[: n_batches * batch_size].view(n_batches, batch_size))
            batch_number.zero_()
            for number in range(n_batches):
                run()
                on_step(epoch, number + 1, n_batches)
            context = classes.whole(learned)
            _check(losses, context, epoch, recipe)
            log = EpochLog(epoch, recipe.epochs, learning_rate(recipe, epoch), float(losses.mean()), float(accuracies.mean()))
            kept = {name: classes.whole(value) for name, value in optimizer.state[learned].items()}
            state = TrainingState(context, kept, (*state.log, log))
            on_epoch(state)
    return state


def _check(losses: Tensor, context: Tensor, epoch: int, recipe: Recipe) -> None:
    wrong = (~losses.isfinite()).nonzero()[:, 0].tolist()
    advice = "the learning rate may be too high; try a smaller --lr, or --dtype float32"
    if wrong:
        raise CoopError(
            f"the loss is not finite in step {wrong[0] + 1} of epoch {epoch + 1} of {recipe.epochs}: {advice}. If it is not, "
            "look for damaged images"
        )
    if not context.isfinite().all():
        raise CoopError(f"the context is not finite after epoch {epoch + 1} of {recipe.epochs}: {advice}")


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
    """Restore an optimizer's tensors: in place, where a recorded step reads them."""
    present = optimizer.state[learned]
    for name, value in kept.items():
        if name in present:
            present[name].copy_(value)
        else:
            present[name] = value.clone()


def can_record(device: torch.device) -> bool:
    """Whether steps on this device can be recorded once and replayed.

    Not those of several processes: a replay with NCCL inside has not been tried on several GPUs.
    """
    return device.type == "cuda" and world().size == 1


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
