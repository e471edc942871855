"""Class features, predictions and metrics; hand-written and learned prompts alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.prompts import context_prompts, hand_written_prompts, name_key
from ..data.classnames import distinct, places
from ..data.load import DataSet, ImageItem
from ..errors import CoopError
from .head import Head
from .prompt import LearnedPrompt


@dataclass(frozen=True)
class Metrics:
    """How well n images were classified. Accuracies are shares in [0, 1].

    `macro` is the mean over the classes that have images; `per_class` holds None for one that has none;
    `confusion` counts images by true class (row) and predicted class (column).
    """

    n: int
    top1: float
    macro: float
    per_class: list[float | None]
    confusion: list[list[int]]


@dataclass(frozen=True)
class Evaluation:
    """Predictions for labelled images among some classes: `predicted` [n] and its probability [n]."""

    class_names: tuple[str, ...]
    items: tuple[ImageItem, ...]
    predicted: list[int]
    probability: list[float]
    metrics: Metrics

    def as_dict(self) -> dict[str, Any]:
        """The metrics for `--json` and metrics.json."""
        per_class = dict(zip(distinct(self.class_names), self.metrics.per_class, strict=True))
        return {"class_names": list(self.class_names), **asdict(self.metrics), "per_class": per_class}


def hand_written_features(
    backbone: Backbone,
    templates: Sequence[str],
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Class features [K, p] of hand-written prompts.

    With several templates (ensembling): the mean of their normalised text features, normalised again
    (CLIP, Section 3.1.4). What the cache knows is not encoded again. `on_progress` is told (templates done, in all).
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        total = torch.zeros(len(class_names), backbone.feature_width, device=backbone.device)
        for done, template in enumerate(templates, 1):
            total += encoder.encode(hand_written_prompts(backbone.tokenizer, template, class_names, encoder.max_length))
            if on_progress:
                on_progress(done, len(templates))
        return F.normalize(total / len(templates), dim=-1)

    return _kept(cache, [backbone.model_key, list(templates), list(class_names)], len(class_names), encode)


def learned_features(
    backbone: Backbone, prompt: LearnedPrompt, class_names: Sequence[str], cache: FeatureCache | None = None
) -> Tensor:
    """Class features [K, p] of a learned prompt for a list of classes. What the cache knows is not encoded again.

    A class-specific context knows its own classes only; for those it may be a part, in any order.
    Raises CoopError for any other class.
    """
    context = prompt.context
    if prompt.settings.csc:
        rows = places(prompt.class_names, class_names)
        strangers = [name for name, row in zip(class_names, rows, strict=True) if row is None]
        if strangers:
            raise CoopError(
                f"this prompt has a class-specific context for its own {len(prompt.class_names)} classes "
                f'and none for "{strangers[0]}"'
                + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
                + "; a prompt fitted without --csc works with any class list"
            )
        context = context[rows]

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        prompts = context_prompts(backbone.tokenizer, prompt.settings, class_names, encoder.max_length)
        return encoder.encode(prompts, context.to(backbone.device))

    numbers = hashlib.blake2b(context.numpy().tobytes()).hexdigest()
    about = [backbone.model_key, numbers, asdict(prompt.settings), list(class_names)]
    return _kept(cache, about, len(class_names), encode)


def _kept(cache: FeatureCache | None, about: Sequence[object], n_classes: int, encode: Callable[[], Tensor]) -> Tensor:
    """The class features [K, p] that the cache keeps under what they are `about`, or else those of `encode`, kept now."""
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).digest()
    if cache and (known := cache.get([key]).get(key)) is not None:
        return torch.from_numpy(known.copy()).view(n_classes, -1)
    with torch.inference_mode():
        features = encode().cpu()
    if cache:
        cache.put({key: features.flatten().numpy()})
    return features.clone()  # outside inference mode: usable wherever a tensor is


def as_head(
    backbone: Backbone, learned: LearnedPrompt | Head, class_names: Sequence[str], cache: FeatureCache | None = None
) -> Head:
    """What was learned, for these classes alone: a head, whose weights are a prompt's class features times the logit scale.

    Raises CoopError for classes that it cannot know.
    """
    if isinstance(learned, Head):
        return learned.among(class_names)
    return Head(
        method="prompt",
        weights=backbone.logit_scale * learned_features(backbone, learned, class_names, cache),
        class_names=tuple(class_names),
        folders=tuple(class_names),
        model=learned.model,
        revision=learned.revision,
        fingerprint=learned.fingerprint,
        training=learned.training,
    )


def learned_logits(backbone: Backbone, learned: LearnedPrompt | Head, images: Tensor, class_names: Sequence[str]) -> Tensor:
    """Logits [n, K] of image features [n, p] by a learned prompt or head. Raises CoopError for classes it cannot know."""
    return as_head(backbone, learned, class_names).logits(images)


def classes_of(prompt: LearnedPrompt | Head, dataset: DataSet) -> tuple[str, ...]:
    """The data set's classes under the names that the prompt knows them by, where it knows them.

    A class is known by its name, or by its folder; any other keeps the data set's own name.
    """
    known = {name_key(folder): name for folder, name in zip(prompt.folders, prompt.class_names, strict=True)}
    known |= {name_key(name): name for name in prompt.class_names}

    def known_as(folder: str, name: str) -> str:
        by_folder = known.get(name_key(folder), name)
        return known.get(name_key(name), by_folder)

    return tuple(known_as(*pair) for pair in zip(dataset.folders, dataset.class_names, strict=True))


def check_backbone(prompt: LearnedPrompt | Head, backbone: Backbone) -> None:
    """Raises CoopError when the prompt was learned on another model: its vectors mean nothing there.

    Also for vectors of another width than the model's, whatever fingerprint the file claims.
    """
    if prompt.fingerprint != backbone.fingerprint:
        raise CoopError(
            f'this prompt was learned on "{prompt.model}" (fingerprint {prompt.fingerprint[:12]}) and "{backbone.name}" '
            f"({backbone.fingerprint[:12]}) is another model: other weights, tokenizer or preprocessing"
        )
    if isinstance(prompt, Head):
        width, expected = prompt.weights.shape[-1], backbone.feature_width
    else:
        width, expected = prompt.context.shape[-1], backbone.token_width
    if width != expected:
        raise CoopError(f'this prompt holds vectors of {width} numbers; those of "{backbone.name}" have {expected}')


def evaluate_logits(logits: Tensor, class_names: Sequence[str], items: Sequence[ImageItem]) -> Evaluation:
    """Classify images by their logits [n, K], and score against the labels of `items`. Raises CoopError without images.

    p(y=k|x) = softmax_k(logits); CoOp, Equation 1, with logits `logit_scale * images @ class_features.T`.
    """
    if not items:
        raise CoopError("there are no images to evaluate on")
    best = logits.softmax(dim=-1).max(dim=-1)
    labels = torch.tensor([item.label for item in items])
    metrics = score(labels, best.indices, len(class_names))
    return Evaluation(tuple(class_names), tuple(items), best.indices.tolist(), best.values.tolist(), metrics)


def score(labels: Tensor, predicted: Tensor, n_classes: int) -> Metrics:
    """Metrics of predictions [n] against labels [n], both in 0..K-1."""
    confusion = torch.bincount(labels * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)
    counts, hits = confusion.sum(1).tolist(), confusion.diag().tolist()
    per_class = [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
    present = [accuracy for accuracy in per_class if accuracy is not None]
    return Metrics(len(labels), sum(hits) / len(labels), sum(present) / len(present), per_class, confusion.tolist())
