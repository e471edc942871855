"""Fitting a prompt from start to end: few-shot lists -> features -> context -> accuracy, and the run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifact import LearnedPrompt, write_atomically
from .backbone import Backbone
from .cache import FeatureCache
from .errors import UsageError
from .evaluation import Evaluation, evaluate, hand_written_features, learned_features
from .features import image_features, view_features
from .fewshot import few_shot_lists
from .images import DataSet, ImageItem
from .prompts import ContextSettings, context_prompts, random_context, word_context
from .templates import DEFAULT_TEMPLATE
from .training import EpochLog, Recipe, drawn_views, train_context
from .version import __version__

logger = logging.getLogger(__name__)


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
    """Who is told how far a fit has come: images of a named step, and epochs."""

    on_images: Callable[[str, int, int], None] = lambda step, done, total: None
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
) -> Fit:
    """Learn a prompt from `shots` images per class (None: all) and compare it with a hand-written template.

    The accuracy is that on the test split, or, where the data knows no splits, on the images not trained on.
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

    started = time.perf_counter()
    if recipe.views:
        views = view_features(backbone, train, range(recipe.views), cache, lambda *n: watch.on_images("train images", *n))
        features = drawn_views(views, seed)
    else:

        def features(epoch: int) -> Tensor:
            return view_features(backbone, train, [epoch], FeatureCache(None))[:, 0]

    featured = time.perf_counter()
    log: list[EpochLog] = []

    def on_epoch(epoch: EpochLog) -> None:
        log.append(epoch)
        watch.on_epoch(epoch)

    labels = torch.tensor([item.label for item in train])
    learned = train_context(
        encoder, prompts, context, features, labels, backbone.logit_scale, recipe, seed, class_chunk, on_epoch
    )
    trained = time.perf_counter()
    prompt = LearnedPrompt(
        context=learned,
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
    return Fit(prompt, log, train, val, learned_test, hand_written_test, seconds)


def few_shot_hash(items: Sequence[ImageItem]) -> str:
    """SHA-256 of the few-shot list, one name a line: two runs used the same images when it is equal."""
    return hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()


def _warn_of_small_classes(train: Sequence[ImageItem], dataset: DataSet, shots: int | None) -> None:
    counts = Counter(item.label for item in train)
    for label, name in enumerate(dataset.class_names):
        if not counts[label]:
            logger.warning('class "%s" has no train image; it takes part without any', name)
        elif shots and counts[label] < shots:
            logger.warning('class "%s" has %d train images; all of them are used for %d shots', name, counts[label], shots)


def write_run(folder: Path, result: Fit, settings: dict[str, Any]) -> None:
    """Write the run folder: metrics.json, log.jsonl, fewshot.json, settings.json, and last prompt.safetensors.

    Raises CoopError when it cannot be written.
    """
    metrics: dict[str, Any] = {
        "learned": result.test.as_dict() if result.test else None,
        "hand_written": result.hand_written.as_dict() if result.hand_written else None,
        "seconds": result.seconds,
        "few_shot_sha256": result.prompt.training["few_shot_sha256"],
        "fingerprint": result.prompt.fingerprint,
        "versions": {"coop": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    few_shot = {
        "train": [item.name for item in result.train_items],
        "val": [item.name for item in result.val_items],
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=2),
        "log.jsonl": "\n".join(json.dumps(asdict(epoch)) for epoch in result.log),
        "fewshot.json": json.dumps(few_shot, indent=2, ensure_ascii=False),
        "settings.json": json.dumps(settings, indent=2, ensure_ascii=False),
    }
    for name, text in texts.items():
        write_atomically(folder / name, f"{text}\n".encode())
    result.prompt.save(folder / "prompt.safetensors")
