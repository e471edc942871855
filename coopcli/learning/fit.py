"""Fitting a prompt from start to end: few-shot lists -> features -> context -> accuracy."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..choices import Classes, OnError
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.image_features import readable_features, view_features
from ..clip.prompts import ContextSettings, PromptTokens, context_prompts, random_context, word_context
from ..clip.templates import DEFAULT_TEMPLATE
from ..clip.text_encoder import TextEncoder
from ..data.checks import count_traps, leak_traps, warn
from ..data.fewshot import FewShot, draw_few_shot
from ..data.load import DataSet
from ..errors import CoopError, UsageError
from ..learned.classifier import learned_features
from ..learned.prompt import LearnedPrompt
from ..learned.scores import Evaluation, evaluate_logits
from ..version import __version__
from .checkpoint import load_checkpoint, save_checkpoint
from .recipe import Recipe, paper_recipe
from .training import EpochFeatures, EpochLog, TrainingState, drawn_views, train_context

logger = logging.getLogger(__name__)

RUNAWAY = 100  # so many times the longest token embedding: no context that works is as long


@dataclass(frozen=True)
class Learned:
    """A learned prompt with the log of its epochs; `seconds` says where the time went."""

    prompt: LearnedPrompt
    log: tuple[EpochLog, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Fit(Learned):
    """A learned prompt and how it came about.

    `test` and `hand_written` are absent where no image was left to test on; `skipped` images could not be read.
    """

    data: FewShot
    test: Evaluation | None
    hand_written: Evaluation | None
    skipped: int = 0


@dataclass(frozen=True)
class Watch:
    """Who is told how far a fit has come: images of a named step, that training begins, and epochs."""

    on_images: Callable[[str, int, int], None] = lambda step, done, total: None
    on_training: Callable[[], None] = lambda: None
    on_epoch: Callable[[EpochLog], None] = lambda log: None


def fit(
    backbone: Backbone,
    dataset: DataSet,
    recipe: Recipe | None = None,
    settings: ContextSettings | None = None,
    shots: int | None = 16,
    seed: int = 1,
    init: str | Tensor | None = None,
    template: str = DEFAULT_TEMPLATE,
    classes: Classes = "all",
    cache: FeatureCache | None = None,
    class_chunk: int | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
    on_error: OnError = "fail",
) -> Fit:
    """Learn a prompt from `shots` images per class (None: all) and compare it with a hand-written template.

    The recipe is by default the paper's. The accuracy is that on the test split, or, where the data knows no splits, on the
    images not trained on. With `on_error` "skip", images that cannot be read are left out of both. For the other arguments
    and what is raised see `learn_prompt`.
    """
    cache, watch = cache or FeatureCache(None), watch or Watch()
    data = draw_few_shot(dataset, shots, seed, classes)
    hand_written = hand_written_features(backbone, [template], data.class_names, cache)
    recipe = recipe or paper_recipe(shots, len(data.class_names))
    settings = settings or ContextSettings()
    _initial_context(backbone, settings, len(data.class_names), init, seed)  # what contradicts is refused first
    _warn_of_small_classes(data)
    if data.test:
        warn([*count_traps(data.class_names, data.test, "test images"), *leak_traps(data.train, data.test)])
    drawn = len(data.train) + len(data.test)
    if on_error == "skip":
        data = replace(data, train=readable_features(backbone, data.train, cache)[0])
    learned = learn_prompt(backbone, data, recipe, settings, init, cache, class_chunk, watch, checkpoint)

    started = time.perf_counter()
    names, learned_test, hand_written_test = data.class_names, None, None
    if data.test:
        test, images = readable_features(backbone, data.test, cache, on_error, lambda *n: watch.on_images("test images", *n))
        learned_test, hand_written_test = (
            evaluate_logits(backbone.logit_scale * images @ class_features.T, names, test)
            for class_features in (learned_features(backbone, learned.prompt, names), hand_written)
        )
    else:
        logger.warning("no image is left to test on: every one was used for training")
    seconds = learned.seconds | {"evaluation": time.perf_counter() - started}
    read = len(data.train) + (learned_test.metrics.n if learned_test else 0)
    return Fit(learned.prompt, learned.log, seconds, data, learned_test, hand_written_test, drawn - read)


def learn_prompt(
    backbone: Backbone,
    data: FewShot,
    recipe: Recipe,
    settings: ContextSettings | None = None,
    init: str | Tensor | None = None,
    cache: FeatureCache | None = None,
    class_chunk: int | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
) -> Learned:
    """Learn a prompt from the train images of a few-shot draw, whose seed also draws the first context and the batches.

    `init` is words to start from, or a context [M, d] or [K, M, d], instead of a random one.
    `class_chunk` classes are encoded at a time (0: all; None: as free memory demands). With a `checkpoint` file, written
    after every epoch, a fit of the same images and settings goes on where an earlier one was stopped.
    Raises UsageError for an `init` that contradicts the settings, CoopError for data that cannot be used.
    """
    settings, cache, watch = settings or ContextSettings(), cache or FeatureCache(None), watch or Watch()
    encoder, names = backbone.text_encoder, data.class_names
    context = _initial_context(backbone, settings, len(names), init, data.seed)
    prompts = context_prompts(backbone.tokenizer, settings, names, encoder.max_length)

    started = time.perf_counter()
    task = _task(backbone, data, recipe, prompts, context)
    if recipe.views:
        views = view_features(backbone, data.train, range(recipe.views), cache, lambda *n: watch.on_images("train images", *n))
        features = drawn_views(views, data.seed)
        task.update(views.numpy().tobytes())
    else:

        def features(epoch: int) -> Tensor:
            return view_features(backbone, data.train, [epoch], FeatureCache(None))[:, 0]

    featured = time.perf_counter()
    start = TrainingState(context, class_chunk=encoder.fitting_chunk(prompts) if class_chunk is None else class_chunk)
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
    labels = torch.tensor([item.label for item in data.train])
    end = _train(encoder, prompts, start, features, labels, backbone.logit_scale, recipe, data.seed, on_epoch)
    prompt = LearnedPrompt(
        context=end.context,
        settings=settings,
        class_names=names,
        folders=data.folders,
        model=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        training={
            "data": data.dataset,
            "classes": data.classes,
            "shots": data.shots,
            "seed": data.seed,
            "init": "a given context" if isinstance(init, Tensor) else init,
            "images": len(data.train),
            "few_shot_sha256": data.sha256,
            "recipe": asdict(recipe),
            "class_chunk": end.class_chunk,
            "dtype": backbone.dtype,
            "device": backbone.device.type,
            "torch": torch.__version__,
        },
    )
    seconds = {"features": featured - started, "training": time.perf_counter() - featured}
    return Learned(prompt, end.log, seconds)


def _initial_context(
    backbone: Backbone, settings: ContextSettings, n_classes: int, init: str | Tensor | None, seed: int
) -> Tensor:
    """The context that training begins with; see `learn_prompt`."""
    encoder = backbone.text_encoder
    if init is None:
        return random_context(settings, n_classes, encoder.width, seed)
    if isinstance(init, Tensor):
        shape = settings.shape(n_classes, encoder.width)
        if tuple(init.shape) != shape:
            raise UsageError(f"the given context is {list(init.shape)}; these settings need {list(shape)}")
        return init.detach().float().cpu()
    context = word_context(backbone.tokenizer, encoder.token_embedding, init, n_classes, settings.csc)
    if context.shape[-2] != settings.n_ctx:
        raise UsageError(f'--init "{init}" is {context.shape[-2]} tokens; --context-length {settings.n_ctx} contradicts it')
    return context


def _task(backbone: Backbone, data: FewShot, recipe: Recipe, prompts: Sequence[PromptTokens], context: Tensor) -> hashlib._Hash:
    """A digest of all that a training run depends on: only a checkpoint of the same is gone on with."""
    task = hashlib.sha256()
    labels = [item.label for item in data.train]
    for part in (__version__, backbone.model_key, recipe, data.seed, prompts, labels, data.sha256):
        task.update(repr(part).encode())
    task.update(context.numpy().tobytes())
    return task


def _train(
    encoder: TextEncoder,
    prompts: Sequence[PromptTokens],
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


def _warn_of_small_classes(data: FewShot) -> None:
    counts = Counter(item.label for item in data.train)
    for label, name in enumerate(data.class_names):
        n = counts[label]
        if not n:
            logger.warning('class "%s" has no train image; it takes part without any', name)
        elif data.shots and n < data.shots:
            logger.warning('class "%s" has %d train images; all of them are used for %d shots', name, n, data.shots)
