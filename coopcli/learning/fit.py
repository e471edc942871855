"""Fit a prompt from start to end: few-shot lists -> features -> context -> accuracy.

Longer than most modules, so that the whole path of a fit reads in one place.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..choices import Classes, OnError
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.image_features import readable_features, readable_views, view_features
from ..clip.pixels import Views
from ..clip.prompts import ContextSettings, context_prompts, random_context, word_context
from ..clip.templates import DEFAULT_TEMPLATE
from ..clip.text_encoder import TextEncoder
from ..data.checks import count_traps, leak_traps, warn
from ..data.encoded import check_views
from ..data.fewshot import FewShot, draw_few_shot, few_images
from ..data.load import DataSet
from ..errors import CoopError, UsageError
from ..learned.applied import learned_features
from ..learned.prompt import LearnedPrompt
from ..learned.safefile import MAX_FILE, MAX_HEADER
from ..learned.scores import Evaluation, by_class_features, evaluate_features
from ..parallel import gather, share, world
from ..version import __version__
from .checkpoint import load_checkpoint, save_checkpoint
from .recipe import Recipe, paper_recipe
from .shards import ClassShards
from .training import EpochLog, TrainingState, TrainingTask, drawn_views, train_context

logger = logging.getLogger(__name__)

RUNAWAY = 100  # times the longest token embedding: no context that works is as long


@dataclass(frozen=True)
class LearningSettings:
    """How a prompt is learned: by which recipe, in which form, and from which start.

    `init` is words to start from, or a context [M, d] or [K, M, d]; None: a random context. `class_chunk` classes are encoded
    at a time (0: all; None: a number fixed by the size of the task). With `on_error` "skip", images that cannot be read are
    left out. `template` is the hand-written prompt to which `recipe.keep_close` keeps the class features near.
    """

    recipe: Recipe
    context: ContextSettings
    init: str | Tensor | None = None
    class_chunk: int | None = None
    on_error: OnError = "fail"
    template: str = DEFAULT_TEMPLATE


@dataclass(frozen=True)
class Learned:
    """A learned prompt with the images it was learned from, the log of its epochs, and the seconds of each part."""

    prompt: LearnedPrompt
    log: tuple[EpochLog, ...]
    seconds: dict[str, float]
    data: FewShot


@dataclass(frozen=True)
class Fit(Learned):
    """A learned prompt with its accuracy.

    `test` and `hand_written` are None where no image was left to test on; `skipped` images could not be read.
    """

    test: Evaluation | None
    hand_written: Evaluation | None
    skipped: int = 0


@dataclass(frozen=True)
class Watch:
    """Progress callbacks of a fit: images of a named step (step, done, total), the start of training, epochs, steps."""

    on_images: Callable[[str, int, int], None] = lambda step, done, total: None
    on_training: Callable[[], None] = lambda: None
    on_epoch: Callable[[EpochLog], None] = lambda log: None
    on_step: Callable[[int, int, int, int], None] = lambda epoch, epochs, step, steps: None


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

    The recipe is by default the paper's. The accuracy is that on the test split or, in data without splits, on the images
    not trained on. With a `checkpoint` file, written after every epoch, a fit of the same images and settings resumes where
    an earlier one was stopped. For the other arguments see `LearningSettings`.
    Raises UsageError for an `init` that contradicts the settings, CoopError for data that cannot be used.
    """
    cache, watch = cache or FeatureCache(None), watch or Watch()
    data = draw_few_shot(dataset, shots, seed, classes)
    names = data.class_names
    recipe = recipe or paper_recipe(shots, len(names))
    how = LearningSettings(recipe, settings or ContextSettings(), init, class_chunk, on_error, template)
    check_before_training(backbone, data, how)
    hand_written = hand_written_features(backbone, [template], names, cache)
    warn(few_images(data))
    if data.test:
        warn(count_traps(names, data.test, "test images"))
        if world().rank == 0:  # the one that warns
            warn(leak_traps(data.train, data.test))
    else:
        logger.warning("no image is left to test on: all of them are used for training")
    learned = learn_prompt(backbone, data, how, cache, watch, checkpoint)

    started = time.perf_counter()
    learned_test = hand_written_test = None
    if data.test:
        test, images = readable_features(backbone, data.test, cache, on_error, lambda *n: watch.on_images("test images", *n))

        def scored(class_features: Tensor) -> Evaluation:
            return evaluate_features(by_class_features(backbone.logit_scale, class_features), images, names, test)

        learned_test = scored(learned_features(backbone, learned.prompt, names))
        hand_written_test = scored(hand_written)
    read = len(learned.data.train) + (learned_test.metrics.n if learned_test else 0)
    return Fit(
        prompt=learned.prompt,
        log=learned.log,
        seconds=learned.seconds | {"evaluation": time.perf_counter() - started},
        data=learned.data,
        test=learned_test,
        hand_written=hand_written_test,
        skipped=len(data.train) + len(data.test) - read,
    )


def learn_prompt(
    backbone: Backbone,
    data: FewShot,
    how: LearningSettings,
    cache: FeatureCache | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
) -> Learned:
    """Learn a prompt from the train images of a few-shot draw, whose seed also draws the first context and the batches.

    See `fit` for the checkpoint and what is raised.
    """
    cache, watch = cache or FeatureCache(None), watch or Watch()
    check_before_training(backbone, data, how)
    encoder, recipe = backbone.text_encoder, how.recipe
    start = TrainingState(initial_context(backbone, data, how))
    prompts = context_prompts(backbone.tokenizer, how.context, data.class_names, encoder.max_length)

    started = time.perf_counter()
    # Online views are not kept; those of the first epoch tell which images can be read.
    views: Views
    views, kept_in = (range(recipe.views), cache) if recipe.views else ([0], FeatureCache(None))
    if check_views(data.train, recipe.views):
        views = [None]
    train, encoded = data.train, None
    if recipe.views or how.on_error == "skip":
        train, encoded = readable_views(
            backbone, data.train, views, kept_in, how.on_error, lambda *n: watch.on_images("train images", *n)
        )
    data = replace(data, train=train)

    def online(epoch: int) -> Tensor:
        return view_features(backbone, train, [epoch], FeatureCache(None))[:, 0]

    near = hand_written_features(backbone, [how.template], data.class_names, cache) if recipe.keep_close else None
    task = TrainingTask(
        prompts=prompts,
        features=drawn_views(encoded, data.seed) if encoded is not None and recipe.views else online,
        labels=torch.tensor([item.label for item in train]),
        logit_scale=backbone.logit_scale,
        recipe=recipe,
        seed=data.seed,
        class_chunk=encoder.fixed_chunk(prompts) if how.class_chunk is None else how.class_chunk,
        hand_written=near,
    )
    identity = _identity(backbone, data, task, start.context, encoded if recipe.views else None)
    featured = time.perf_counter()
    if checkpoint and (reached := _reached(checkpoint, identity, start, recipe.epochs)):
        start = reached
        logger.warning("resuming after epoch %d of %d", len(reached.log), recipe.epochs)
    longest, warned = float(encoder.token_embedding.float().norm(dim=-1).max()), False

    def on_epoch(state: TrainingState) -> None:
        nonlocal warned
        if checkpoint and world().rank == 0:
            save_checkpoint(checkpoint, state, identity)
        length = float(state.context.norm(dim=-1).max())
        if length > RUNAWAY * longest and not warned:
            warned = True
            logger.warning(
                "the context diverges: one of its vectors has length %.3g and no token more than %.3g; try a smaller --lr",
                length, longest,
            )  # fmt: skip
        watch.on_epoch(state.log[-1])

    watch.on_training()

    def on_step(epoch: int, step: int, steps: int) -> None:
        watch.on_step(epoch, recipe.epochs, step, steps)

    end = _train(encoder, task, start, on_epoch, on_step)
    prompt = _prompt(backbone, data, how, end.context, task.class_chunk)
    seconds = {"features": featured - started, "training": time.perf_counter() - featured}
    return Learned(prompt, end.log, seconds, data)


def _reached(checkpoint: Path, identity: str, start: TrainingState, epochs: int) -> TrainingState | None:
    """The state in the checkpoint, where the first process finds one. Raises CoopError where another process reads no such."""
    reached = load_checkpoint(checkpoint, identity, start, epochs) if world().rank == 0 else None
    log = share(reached and reached.log)
    if log and world().rank:
        reached = load_checkpoint(checkpoint, identity, start, epochs)
    if any(gather((reached and reached.log) != log)):
        raise CoopError(
            f'not every process of this job sees "{checkpoint}" as the first one does; '
            "use an --output in a folder that all hosts share"
        )
    return reached


def check_before_training(backbone: Backbone, data: FewShot, how: LearningSettings) -> None:
    """Refuse what could not be trained or not be saved.

    Raises UsageError for a seed or an initial context that cannot be, CoopError for names that no file can hold.
    """
    if not 0 <= data.seed < 2**63:
        raise UsageError("a seed must be a whole number from 0 to 2^63 - 1")
    context = initial_context(backbone, data, how)
    if (size := context.nbytes) > MAX_FILE - MAX_HEADER:
        raise CoopError(
            f"a prompt of {size / 1e9:.1f} GB cannot be saved; {MAX_FILE / 1e9:.1f} GB is the most: give a smaller "
            "--context-length, or leave out --csc"
        )
    _prompt(backbone, data, how, context[..., :1], 0).content()  # of width 1: what is checked is the header


def _prompt(backbone: Backbone, data: FewShot, how: LearningSettings, context: Tensor, class_chunk: int) -> LearnedPrompt:
    return LearnedPrompt(
        context=context,
        settings=how.context,
        class_names=data.class_names,
        folders=data.folders,
        model=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        exif=backbone.exif,
        training={
            "data": data.dataset,
            "classes": data.classes,
            "shots": data.shots,
            "seed": data.seed,
            "init": "a given context" if isinstance(how.init, Tensor) else how.init,
            "images": len(data.train),
            "few_shot_sha256": data.sha256,
            "recipe": how.recipe.as_dict() | ({"close_to": how.template} if how.recipe.keep_close else {}),
            "class_chunk": class_chunk,
            "dtype": backbone.dtype,
            "device": backbone.device.type,
            "torch": torch.__version__,
            **({"augmented": False} if any(item.encoded for item in data.train) else {}),
        },
    )


def initial_context(backbone: Backbone, data: FewShot, how: LearningSettings) -> Tensor:
    """The context that training begins with, float32 on the CPU. Raises UsageError for an `init` of another shape."""
    encoder, settings, init, n_classes = backbone.text_encoder, how.context, how.init, len(data.class_names)
    if init is None:
        return random_context(settings, n_classes, encoder.width, data.seed)
    if isinstance(init, Tensor):
        shape = settings.shape(n_classes, encoder.width)
        if tuple(init.shape) != shape:
            raise UsageError(f"the given context is {list(init.shape)}; these settings need {list(shape)}")
        return init.detach().float().cpu()
    context = word_context(backbone.tokenizer, encoder.token_embedding, init, n_classes, settings.csc)
    if context.shape[-2] != settings.n_ctx:
        raise UsageError(f'--init "{init}" is {context.shape[-2]} tokens; --context-length {settings.n_ctx} contradicts it')
    return context


def _identity(backbone: Backbone, data: FewShot, task: TrainingTask, context: Tensor, views: Tensor | None) -> str:
    """A digest of all that a training run depends on: only a checkpoint of the same is resumed."""
    digest = hashlib.sha256()
    labels = task.labels.tolist()
    for part in (
        __version__, backbone.model_key, backbone.exif, task.recipe, task.seed, task.class_chunk, task.prompts, labels,
        data.sha256,
    ):  # fmt: skip
        digest.update(repr(part).encode())
    for numbers in (context, views, task.hand_written):
        if numbers is not None:
            digest.update(numbers.flatten().numpy().data)  # without a copy: views of many images are large
    return digest.hexdigest()


def _train(
    encoder: TextEncoder,
    task: TrainingTask,
    start: TrainingState,
    on_epoch: Callable[[TrainingState], None],
    on_step: Callable[[int, int, int], None],
) -> TrainingState:
    """Train; when a GPU's memory is full, resume after the last epoch and keep less in memory, for the same result."""
    state = start

    def keep(reached: TrainingState) -> None:
        nonlocal state
        state = reached
        on_epoch(reached)

    shards = ClassShards(encoder, task.prompts, task.class_chunk, start.context)
    recompute, several = encoder.fitting_recomputation(shards.layouts), shards.shared
    if (size := world().size) > shards.n_chunks:
        logger.warning(
            "only %d of %d processes will train: each takes whole chunks of the classes; --class-chunk N makes more chunks "
            "(and changes the last bits of the result)",
            shards.n_chunks, size,
        )  # fmt: skip
    del shards
    while True:
        try:
            return train_context(encoder, task, state, keep, recompute, on_step)
        except torch.OutOfMemoryError as error:
            if recompute == "layers" or world().size > 1:  # of several processes none can begin again alone
                size = task.class_chunk or len(task.prompts)
                raise CoopError(
                    f"the GPU's memory cannot hold {size} classes at a time; try --class-chunk {max(1, size // 2)}, "
                    "--dtype bfloat16 or --device cpu"
                ) from error
        recompute = "chunks" if recompute == "nothing" and several else "layers"
        torch.cuda.empty_cache()
        logger.warning(
            "the GPU's memory is full; continuing with more recomputation, which is slower but gives the same result"
        )
