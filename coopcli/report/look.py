"""The parts of a report that need the run's model and images: nearest tokens and worst mistakes."""

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
from ..clip.decoders import Submit, decoders
from ..clip.image_features import OnProgress, readable_features
from ..clip.pixels import allow_pixels, open_image
from ..data.fewshot import FewShot, draw_few_shot
from ..data.load import ImageItem, load_data
from ..errors import CoopError
from ..experiments.run_folder import Run
from ..learned.applied import as_head, check_backbone
from ..learned.interpret import NearToken, nearest_by_class, token_spacing
from ..learned.prompt import LearnedPrompt
from ..learned.scores import BLOCK, Classify

MISTAKES = 12  # to show
THUMBNAIL = 176  # pixels of the longer side: twice what a page shows
TOKENS = 5  # to show of a vector
CONTEXTS = 20  # class-specific ones to show


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: `picture` is a data URI, `probability` that of the true class, `top` the most probable classes."""

    image: str
    picture: str
    truth: str
    probability: float
    top: tuple[tuple[str, float], ...]


Vectors = list[tuple[list[NearToken], float]]  # of each: nearest tokens, share of all tokens whose nearest token is closer


@dataclass(frozen=True)
class Look:
    """Nearest tokens by class (None: one context for all), the worst of `n_mistakes`, and notes on what is left out."""

    tokens: dict[str | None, Vectors] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    n_mistakes: int = 0
    notes: tuple[str, ...] = ()


def look_at(run: Run, open_model: Callable[[Run], Backbone], cache: FeatureCache, on_images: OnProgress | None = None) -> Look:
    """Look up the nearest tokens and classify the test images again to find the worst mistakes; what fails becomes a note."""
    try:
        backbone = open_model(run).with_exif(run.prompt.exif)
        check_backbone(run.prompt, backbone)
    except CoopError as error:
        return Look(notes=(f"Nearest tokens and worst mistakes are left out: {error}",))
    tokens = near_tokens(run.prompt, backbone)
    try:
        items, images = images_again(run, backbone, cache, on_images)
    except CoopError as error:
        return Look(tokens, notes=(f"Worst mistakes are left out: {error}",))
    classify = as_head(backbone, run.prompt, run.prompt.class_names, cache).logits
    wrong = worst_mistakes(classify, images, torch.tensor([item.label for item in items]))
    shown = zip(wrong, classify(images[wrong[:MISTAKES]]), strict=False)
    with decoders(many=False) as submit:
        mistakes = tuple(_mistake(items[row], logits, run.prompt.class_names, backbone.exif, submit) for row, logits in shown)
    return Look(tokens, mistakes, len(wrong), _differences(run, len(items), 1 - len(wrong) / len(items)))


def _differences(run: Run, n: int, top1: float) -> tuple[str, ...]:
    """Note when the images or their accuracy are not those of the run."""
    then = run.learned and run.learned.metrics
    if not then or (n == then.n and abs(top1 - then.top1) < 0.001):
        return ()
    return (f"The images have changed since the run: {n} now give {100 * top1:.1f} %, {then.n} gave {100 * then.top1:.1f} %.",)


def near_tokens(prompt: LearnedPrompt, backbone: Backbone) -> dict[str | None, Vectors]:
    """The nearest tokens of each vector, of CONTEXTS classes at most."""
    spacing = token_spacing(backbone.text_encoder.token_embedding)
    near = nearest_by_class(prompt, backbone, TOKENS, n_classes=CONTEXTS)
    return {owner: [(vector, spacing.share_below(vector[0].distance)) for vector in vectors] for owner, vectors in near.items()}


def images_again(
    run: Run, backbone: Backbone, cache: FeatureCache, on_images: OnProgress | None = None
) -> tuple[tuple[ImageItem, ...], Tensor]:
    """The run's readable test images and their features [n, p]. Raises CoopError when the data is gone or has changed."""
    data = _data_of(run)
    if data.class_names != run.prompt.class_names or not data.test:
        raise CoopError(f"{data.dataset} no longer holds the classes and test images of the run")
    return readable_features(backbone, data.test, cache, "skip", on_images)


def _data_of(run: Run) -> FewShot:
    """Draw the run's images again, from where its settings say. Raises CoopError when they do not say."""
    settings, training = run.settings, run.prompt.training
    try:
        images = Path(settings["images"]) if "images" in settings else None
        classnames = Path(settings["classnames"]) if "classnames" in settings else None
        columns = [None if settings.get(key) is None else str(settings[key]) for key in ("image-column", "label-column")]
        shots = None if training["shots"] is None else int(training["shots"])
        seed, classes = int(training["seed"]), training["classes"]
        if classes not in get_args(Classes):
            raise ValueError("classes are all, base or new")
        if "max-pixels" in settings:
            allow_pixels(int(settings["max-pixels"]))
        data = str(settings["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CoopError(f'the settings in "{run.folder}" do not say which data it learned from') from error
    return draw_few_shot(load_data(data, images, classnames, *columns), shots, seed, classes)


def _mistake(item: ImageItem, logits: Tensor, names: Sequence[str], turn: bool, submit: Submit) -> Mistake:
    probabilities = logits.softmax(dim=-1)
    best = probabilities.topk(min(3, len(names)))
    top = tuple((names[k], p) for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    content = item.read()
    picture = submit(content, thumbnail, content, item.name, turn).result()
    return Mistake(item.name, picture, names[item.label], float(probabilities[item.label]), top)


def worst_mistakes(classify: Classify, images: Tensor, labels: Tensor) -> list[int]:
    """The rows of image features [n, p] that get another class than their label [n], least probable labels first.

    `classify` gives the logits of a block of images; no more than BLOCK of them are in memory.
    """
    losses, wrong = [], []
    step = max(1, BLOCK // max(1, classify(images[:1]).shape[-1]))
    for block, truth in zip(images.split(step), labels.split(step), strict=True):
        logits = classify(block)
        losses.append(F.cross_entropy(logits.double(), truth, reduction="none"))
        wrong += (logits.argmax(dim=-1) != truth).tolist()
    order = torch.cat(losses).argsort(descending=True, stable=True) if losses else labels
    return [row for row in order.tolist() if wrong[row]]


def thumbnail(content: bytes, name: str, turn: bool = False) -> str:
    """A small JPEG of an image as a data URI, with `turn` turned by its EXIF. Raises CoopError when it cannot be read."""
    image = open_image(content, name, turn)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(image, "jpeg", quality=80)


def data_uri(image: Image.Image, form: str, **options: Any) -> str:
    """An image as part of the page itself, in a format that Pillow writes: "jpeg", "png"."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(content.getvalue()).decode()}"
