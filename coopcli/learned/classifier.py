"""Learned classifiers at work on images, from Python: in the manner of scikit-learn, and as class features for others."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import starmap
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from torch import Tensor

from ..choices import OnError
from ..clip.backbone import Backbone, load_backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import context_features
from ..clip.image_features import OnProgress, readable_features, stream_features
from ..data.checks import count_traps, prompt_traps, warn
from ..data.dataset import DataSet, ImageItem, file_item
from ..data.fewshot import test_items
from ..errors import CoopError, UsageError
from ..hub import prompt_path
from ..names import name_key, places
from .head import Head
from .prompt import LearnedPrompt, load_learned
from .scores import Evaluation, evaluate_features

MEMORY = 2**24  # bytes that features in memory may take: those of 8,000 images

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Classifier:
    """A learned prompt or head with its CLIP, which classifies images among `classes_` [K], the class names.

    An image is a path, a PIL image, or a uint8 array [height, width, 3]; where images are asked for, one alone will do.
    `clip` is by default the model that the file names; `class_names` are other classes than its own, which only a prompt
    without class-specific contexts knows. Each image is encoded once and its features kept in `cache`, as are the class
    features; by default in memory.

    Raises CoopError when `clip` is another model than the one that was learned on, and for classes that are not known;
    UsageError for fewer than two classes.
    """

    def __init__(
        self,
        learned: LearnedPrompt | Head,
        clip: Backbone | None = None,
        class_names: Sequence[str] | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.learned, self.cache = learned, cache or FeatureCache(None)
        if not self.cache.path:
            self.cache.limit(MEMORY)  # or memory would grow with the number of images
        self.clip = clip or load_backbone(learned.model, learned.revision)
        check_backbone(learned, self.clip)
        names = learned.class_names if class_names is None else class_names
        # Of its own classes two may have one name, as in ImageNet.
        if isinstance(names, str) or not (2 <= len(names) == len(set(names)) or tuple(names) == learned.class_names):
            raise UsageError(f"class names are a list of two or more, each once, not {names!r}")
        self.head = as_head(self.clip, learned, names, self.cache)
        self.classes_ = np.array(self.head.class_names)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        clip: Backbone | None = None,
        class_names: Sequence[str] | None = None,
        cache: FeatureCache | None = None,
    ) -> Self:
        """From a file or run folder that coop wrote, or user/name[@revision] on the hub.

        Raises UsageError for a path without such a file, CoopError for a damaged one.
        """
        return cls(load_learned(prompt_path(os.fspath(path))), clip, class_names, cache)

    def predict(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """The most probable class of each image, strings [n]. Raises CoopError for an image that cannot be read."""
        return self.classes_[self.predict_proba(images).argmax(axis=1)]

    def predict_proba(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Probabilities float32 [n, K], columns as in `classes_`. Raises CoopError for an image that cannot be read."""
        rows = []
        with closing(self.stream(starmap(_item, enumerate(_several(images))))) as stream:
            for _, probabilities in stream:
                if isinstance(probabilities, CoopError):
                    raise probabilities
                rows.append(probabilities.numpy())
        return np.stack(rows) if rows else np.empty((0, len(self.classes_)), np.float32)

    def score(self, images: Iterable[Picture], labels: Iterable[str]) -> float:
        """The share of images, in [0, 1], that are given their label, a class name. Raises UsageError for another name."""
        truth = np.array(list(labels))
        if strangers := set(truth.tolist()) - set(self.classes_.tolist()):
            raise UsageError(f'"{min(map(str, strangers))}" is none of the classes: {", ".join(self.classes_)}')
        predicted = self.predict(images)
        if len(truth) != len(predicted) or not len(truth):
            raise UsageError(f"{len(predicted)} images and {len(truth)} labels: each image needs one, and one image is needed")
        return float((predicted == truth).mean())

    def stream(self, items: Iterable[ImageItem]) -> Generator[tuple[ImageItem, Tensor | CoopError]]:
        """Each image with its probabilities, float32 [K], or with why it cannot be read; as `stream_features` does."""
        with closing(stream_features(self.clip, items, self.cache)) as stream:
            for item, features in stream:
                if isinstance(features, Tensor):
                    yield item, self.head.logits(features[None]).softmax(dim=-1)[0]
                else:
                    yield item, features


class Prompt(Classifier):
    """A learned prompt at work: a Classifier that gives class features for any class names, too."""

    learned: LearnedPrompt

    def __init__(
        self,
        learned: LearnedPrompt | Head,
        clip: Backbone | None = None,
        class_names: Sequence[str] | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        if isinstance(learned, Head):
            raise UsageError(f"a {learned.method} head is no prompt; use Classifier, which takes both")
        super().__init__(learned, clip, class_names, cache)

    def class_features(self, class_names: Sequence[str] | None = None) -> Tensor:
        """L2-normalised float32 [K, p] for these classes, by default `classes_`: zero-shot weights of the model `clip`.

        Logits are `clip.logit_scale * image_features @ class_features.T`. Raises CoopError for classes that are not known.
        """
        names = self.head.class_names if class_names is None else class_names
        return learned_features(self.clip, self.learned, names, self.cache)


def evaluate(classifier: Classifier, dataset: DataSet, split: str | None = None) -> Evaluation:
    """How well a learned prompt or head classifies a data set among the data's own classes.

    On a split, or a part of one as `select` takes it; by default `test`, or all images of data without splits.
    Raises CoopError for classes that it cannot know, and for an image that cannot be read.
    """
    items = dataset.select(split) if split else test_items(dataset)
    return evaluate_learned(classifier.learned, classifier.clip, dataset, items, cache=classifier.cache, on_error="fail")


def evaluate_learned(
    learned: LearnedPrompt | Head,
    backbone: Backbone,
    dataset: DataSet,
    items: Sequence[ImageItem],
    renamed: bool = False,
    cache: FeatureCache | None = None,
    on_error: OnError = "skip",
    on_images: OnProgress | None = None,
) -> Evaluation:
    """Evaluate a learned prompt or head on images of a data set, among the data's own classes.

    Classes go by the names that the prompt knows them by, unless they are `renamed`: given by the user for this data.
    Warns of classes that differ from the prompt's and of those without images. Raises CoopError for another backbone,
    for classes that the prompt cannot know, and with `on_error` "fail" for an image that cannot be read.
    """
    cache = cache or FeatureCache(None)
    check_backbone(learned, backbone)
    names = dataset.class_names if renamed else classes_of(learned, dataset)
    warn([*prompt_traps(learned.class_names, names), *count_traps(names, items)])
    head = as_head(backbone, learned, names, cache)
    readable, images = readable_features(backbone, items, cache, on_error, on_images)
    return evaluate_features(head.logits, images, names, readable)


def _several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    one = not isinstance(images, Iterable) or isinstance(images, (str, os.PathLike, Image.Image))
    return [images] if one or (isinstance(images, np.ndarray) and images.ndim < 4) else images  # type: ignore[list-item, return-value]


def _item(number: int, picture: Picture) -> ImageItem:
    """The picture as any other image: bytes to read. Raises UsageError for what is no picture."""
    if isinstance(picture, (str, os.PathLike)):
        return file_item(Path(picture), os.fspath(picture))
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise UsageError(
                f"image {number} is a {picture.dtype} array {list(picture.shape)}; uint8 [height, width, 3] is needed"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise UsageError(f"image {number} is a {type(picture).__name__}; a path, a PIL image or an array is needed")
    content = io.BytesIO()
    try:
        picture.save(content, "TIFF")  # which keeps nearly every mode as it is
    except OSError:
        picture.convert("RGB").save(content, "TIFF")
    return ImageItem(f"image {number}", 0, content.getvalue)


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

    return context_features(backbone, context, prompt.settings, class_names, cache)
