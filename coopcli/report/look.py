"""A closer look at a run: what takes its model, and its images."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..choices import Classes
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.image_features import OnProgress, readable_features
from ..clip.pixels import allow_pixels, open_image
from ..data.fewshot import FewShot, draw_few_shot
from ..data.load import ImageItem, load_data
from ..errors import CoopError
from ..experiments.run_folder import Run
from ..learned.classifier import check_backbone, learned_logits
from ..learned.interpret import NearToken, nearest_by_class, token_spacing
from ..learned.prompt import LearnedPrompt

MISTAKES = 12  # to show
THUMBNAIL = 176  # pixels of the longer side: twice what a page shows
TOKENS = 5  # to show of a vector
CONTEXTS = 20  # class-specific ones to show


@dataclass(frozen=True)
class Mistake:
    """An image taken for another class: `picture` is a data URI, `probability` that of its true class, `top` are the best."""

    image: str
    picture: str
    truth: str
    probability: float
    top: tuple[tuple[str, float], ...]


Vectors = list[tuple[list[NearToken], float]]  # for each: its nearest tokens, the share of tokens that have one nearer


@dataclass(frozen=True)
class Look:
    """What takes the model, and the images, to tell of a run; `notes` say what is left out, and why.

    `tokens` are by class (None: one context for all), `mistakes` the worst of `n_mistakes`.
    """

    tokens: dict[str | None, Vectors] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    n_mistakes: int = 0
    notes: tuple[str, ...] = ()


def look_at(run: Run, open_model: Callable[[Run], Backbone], cache: FeatureCache, on_images: OnProgress | None = None) -> Look:
    """Look up the nearest tokens, and classify the test images again to find the worst mistakes; what fails is noted."""
    try:
        backbone = open_model(run)
        check_backbone(run.prompt, backbone)
    except CoopError as error:
        return Look(notes=(f"Nearest tokens and worst mistakes are left out: {error}",))
    tokens = near_tokens(run.prompt, backbone)
    try:
        items, logits = classify_again(run, backbone, cache, on_images)
    except CoopError as error:
        return Look(tokens, notes=(f"Worst mistakes are left out: {error}",))
    labels = torch.tensor([item.label for item in items])
    wrong = worst_mistakes(logits, labels)
    mistakes = tuple(_mistake(items[row], logits[row], run.prompt.class_names) for row in wrong[:MISTAKES])
    return Look(tokens, mistakes, len(wrong), _differences(run, len(items), 1 - len(wrong) / len(items)))


def _differences(run: Run, n: int, top1: float) -> tuple[str, ...]:
    """A note where the run itself saw other images, or saw them otherwise."""
    then = run.learned and run.learned.metrics
    if not then or (n == then.n and abs(top1 - then.top1) < 0.001):
        return ()
    return (f"The images are not quite those of the run: {n} give {100 * top1:.1f} %, {then.n} gave {100 * then.top1:.1f} %.",)


def near_tokens(prompt: LearnedPrompt, backbone: Backbone) -> dict[str | None, Vectors]:
    """The nearest tokens of each vector, of CONTEXTS classes at most."""
    spacing = token_spacing(backbone.text_encoder.token_embedding)
    near = nearest_by_class(prompt, backbone, TOKENS, n_classes=CONTEXTS)
    return {owner: [(vector, spacing.share_below(vector[0].distance)) for vector in vectors] for owner, vectors in near.items()}


def classify_again(
    run: Run, backbone: Backbone, cache: FeatureCache, on_images: OnProgress | None = None
) -> tuple[tuple[ImageItem, ...], Tensor]:
    """The run's test images that can be read, and their logits [n, K]. Raises CoopError when they are not to be had."""
    data = _data_of(run)
    if data.class_names != run.prompt.class_names or not data.test:
        raise CoopError(f"{data.dataset} no longer holds the classes and test images of the run")
    items, images = readable_features(backbone, data.test, cache, "skip", on_images)
    return items, learned_logits(backbone, run.prompt, images, data.class_names)


def _data_of(run: Run) -> FewShot:
    """The run's own draw, from where its settings say. Raises CoopError when that cannot be."""
    asked, told = run.settings, run.prompt.training
    try:
        images, classnames = (Path(asked[key]) if key in asked else None for key in ("images", "classnames"))
        columns = [None if asked.get(key) is None else str(asked[key]) for key in ("image-column", "label-column")]
        shots = None if told["shots"] is None else int(told["shots"])
        seed, classes = int(told["seed"]), told["classes"]
        if classes not in get_args(Classes):
            raise ValueError("no half")
        if "max-pixels" in asked:
            allow_pixels(int(asked["max-pixels"]))
        data = str(asked["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CoopError(f'"{run.folder}" does not say which data it is of') from error
    return draw_few_shot(load_data(data, images, classnames, *columns), shots, seed, classes)


def _mistake(item: ImageItem, logits: Tensor, names: Sequence[str]) -> Mistake:
    probabilities = logits.softmax(dim=-1)
    best = probabilities.topk(min(3, len(names)))
    top = tuple((names[k], p) for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    return Mistake(item.name, thumbnail(item.read(), item.name), names[item.label], float(probabilities[item.label]), top)


def worst_mistakes(logits: Tensor, labels: Tensor) -> list[int]:
    """The rows of logits [n, K] whose largest is not that of the label [n], least probable labels first."""
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    wrong = logits.argmax(dim=-1) != labels
    return [row for row in losses.argsort(descending=True, stable=True).tolist() if wrong[row]]


def thumbnail(content: bytes, name: str) -> str:
    """A small JPEG of an image as a data URI. Raises CoopError for one that cannot be read."""
    image = open_image(content, name)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(image, "jpeg", quality=80)


def data_uri(image: Image.Image, form: str, **options: Any) -> str:
    """An image as a part of the page itself, in a form that Pillow writes: "jpeg", "png"."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(content.getvalue()).decode()}"
