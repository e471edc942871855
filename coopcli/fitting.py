"""Fitting a prompt from start to end: few-shot lists -> features -> context -> accuracy."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .artifact import LearnedPrompt
from .backbone import Backbone
from .cache import FeatureCache
from .checkpoint import load_checkpoint, save_checkpoint
from .errors import CoopError, UsageError
from .evaluation import Evaluation, evaluate, hand_written_features, learned_features
from .features import image_features, view_features
from .fewshot import few_shot_lists
from .images import DataSet, ImageItem
from .prompts import ContextSettings, Prompt, context_prompts, random_context, word_context
from .templates import DEFAULT_TEMPLATE
from .text_encoder import TextEncoder
from .training import EpochFeatures, EpochLog, Recipe, TrainingState, drawn_views, train_context
from .version import __version__

logger = logging.getLogger(__name__)

RUNAWAY = 100  # so many times the longest token embedding: no context that works is as long


@dataclass(frozen=True)
class Fit:
    """A learned prompt and how it came about.

    `test` and `hand_written` are absent where no image was left to test on; `seconds` says where the time went.
    """

    prompt: LearnedPrompt
    log: list[EpochLog]
    train_items: list[ImageItem]
    val_items: list[ImageItem]
    test: Evaluation | None
    hand_written: Evaluation | None
    seconds: dict[str, float]


@dataclass
class Watch:
    """Who is told how far a fit has come: images of a named step, that training begins, and epochs."""

    on_images: Callable[[str, int, int], None] = lambda step, done, total: None
    on_training: Callable[[], None] = lambda: None
    on_epoch: Callable[[EpochLog], None] = lambda log: None
    seconds: dict[str, float] = field(default_factory=dict)


def fit(
    backbone: Backbone,
    dataset: DataSet,
    recipe: Recipe,
    settings: ContextSettings | None = None,
    shots: int | None = 16,
    seed: int = 1,
    init: str | None = None,
    template: str = DEFAULT_TEMPLATE,
    cache: FeatureCache | None = None,
    class_chunk: int | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
) -> Fit:
    """Learn a prompt from `shots` images per class (None: all) and compare it with a hand-written template.

    The accuracy is that on the test split, or, where the data knows no splits, on the images not trained on.
    `class_chunk` classes are encoded at a time (0: all; None: as free memory demands). With a `checkpoint` file, written
    after every epoch, a fit of the same images and settings goes on where an earlier one was stopped.
    Raises UsageError for words in `init` that contradict the context length, CoopError for data that cannot be used.
    """
    settings, cache, watch = settings or ContextSettings(), cache or FeatureCache(None), watch or Watch()
    encoder, names = backbone.text_encoder, dataset.class_names
    if init is None:
        context = random_context(settings, len(names), encoder.width, seed)
    else:
        context = word_context(backbone.tokenizer, encoder.token_embedding, init, len(names), settings.csc)
        if context.shape[-2] != settings.n_ctx:
            raise UsageError(f'--init "{init}" is {context.shape[-2]} tokens; --context-length {settings.n_ctx} contradicts it')
    prompts = context_prompts(backbone.tokenizer, settings, names, encoder.max_length)
    hand_written = hand_written_features(backbone, [template], names, cache)

    train, val = few_shot_lists(dataset.split("train", "all"), dataset.splits.get("val", ()), shots, seed)
    _warn_of_small_classes(train, dataset, shots)
    used = {item.name for item in train}
    test = [item for item in dataset.split("test", "all", "train") if item.name not in used]

    _warn_of_leaks(train, test)

    started = time.perf_counter()
    if recipe.views:
        views = view_features(backbone, train, range(recipe.views), cache, lambda *n: watch.on_images("train images", *n))
        features = drawn_views(views, seed)
    else:

        def features(epoch: int) -> Tensor:
            return view_features(backbone, train, [epoch], FeatureCache(None))[:, 0]

    featured = time.perf_counter()
    labels = torch.tensor([item.label for item in train])
    start = TrainingState(context, class_chunk=encoder.fitting_chunk(prompts) if class_chunk is None else class_chunk)
    task = hashlib.sha256()
    for part in (
        __version__,
        backbone.model_key,
        recipe,
        seed,
        prompts,
        context.tolist(),
        labels.tolist(),
        few_shot_hash(train),
    ):
        task.update(repr(part).encode())
    if recipe.views:
        task.update(views.numpy().tobytes())
    if checkpoint and (kept := load_checkpoint(checkpoint, task.hexdigest())):
        start = kept
        logger.warning("going on after epoch %d of %d", len(kept.log), recipe.epochs)
    longest, warned = float(encoder.token_embedding.float().norm(dim=-1).max()), False

    def on_epoch(state: TrainingState) -> None:
        nonlocal warned
        if checkpoint:
            save_checkpoint(checkpoint, state, task.hexdigest())
        length = float(state.context.norm(dim=-1).max())
        if length > RUNAWAY * longest and not warned:
            warned = True
            logger.warning(
                "the context runs away: a vector of length %.3g, no token has over %.3g; try a smaller --lr", length, longest
            )
        watch.on_epoch(state.log[-1])

    watch.on_training()
    end = _train(encoder, prompts, start, features, labels, backbone.logit_scale, recipe, seed, on_epoch)
    trained = time.perf_counter()
    prompt = LearnedPrompt(
        context=end.context,
        settings=settings,
        class_names=names,
        folders=dataset.folders,
        model=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        training={
            "data": dataset.name,
            "shots": shots,
            "seed": seed,
            "init": init,
            "images": len(train),
            "few_shot_sha256": few_shot_hash(train),
            "recipe": asdict(recipe),
            "class_chunk": end.class_chunk,
            "dtype": backbone.dtype,
            "device": backbone.device.type,
            "torch": torch.__version__,
        },
    )
    learned_test = hand_written_test = None
    if test:
        images = image_features(backbone, test, cache, lambda *n: watch.on_images("test images", *n))
        learned_test, hand_written_test = (
            evaluate(images, class_features, backbone.logit_scale, names, test)
            for class_features in (learned_features(backbone, prompt, names), hand_written)
        )
    else:
        logger.warning("no image is left to test on: every one was used for training")
    tested = time.perf_counter()
    seconds = {"features": featured - started, "training": trained - featured, "evaluation": tested - trained}
    return Fit(prompt, list(end.log), train, val, learned_test, hand_written_test, seconds)


def _train(
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    start: TrainingState,
    features: EpochFeatures,
    labels: Tensor,
    logit_scale: float,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[TrainingState], None],
) -> TrainingState:
    """Train; when a GPU's memory is full, go on from the last epoch with half as many classes at a time."""
    state = start

    def keep(reached: TrainingState) -> None:
        nonlocal state
        state = reached
        on_epoch(reached)

    while True:
        try:
            return train_context(encoder, prompts, state, features, labels, logit_scale, recipe, seed, keep)
        except torch.OutOfMemoryError as error:
            chunk = (state.class_chunk or len(prompts)) // 2
            if chunk < 1:
                raise CoopError("the GPU's memory does not hold one class; use --dtype bfloat16 or --device cpu") from error
        torch.cuda.empty_cache()
        logger.warning("the GPU's memory is full; going on with %d classes at a time (--class-chunk %d)", chunk, chunk)
        state = replace(state, class_chunk=chunk)


def few_shot_hash(items: Sequence[ImageItem]) -> str:
    """SHA-256 of the few-shot list, one name a line: two runs used the same images when it is equal."""
    return hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()


def _warn_of_leaks(train: Sequence[ImageItem], test: Sequence[ImageItem]) -> None:
    """Say when test images are among those trained on, whatever their names."""
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(lambda item: hashlib.sha256(item.read()).digest(), [*train, *test]))
    trained_on = dict(zip(digests, train, strict=False))
    leaks = [(item, trained_on[key]) for item, key in zip(test, digests[len(train) :], strict=True) if key in trained_on]
    if leaks:
        item, twin = leaks[0]
        logger.warning(
            "%d of %d test images are also trained on, to the byte (first: %s is %s); the accuracy is too good by that",
            len(leaks), len(test), item.name, twin.name,
        )  # fmt: skip


def _warn_of_small_classes(train: Sequence[ImageItem], dataset: DataSet, shots: int | None) -> None:
    counts = Counter(item.label for item in train)
    for label, name in enumerate(dataset.class_names):
        if not counts[label]:
            logger.warning('class "%s" has no train image; it takes part without any', name)
        elif shots and counts[label] < shots:
            logger.warning('class "%s" has %d train images; all of them are used for %d shots', name, counts[label], shots)
