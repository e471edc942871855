"""Learned classifiers for Python programs: predictions in the manner of scikit-learn, and class features for others."""

from __future__ import annotations

import io
import os
import reprlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import starmap
from pathlib import Path
from typing import Self, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from ..choices import Probabilities
from ..clip.backbone import Backbone, load_backbone
from ..clip.cache import FeatureCache
from ..clip.image_features import stream_features
from ..data.dataset import DataSet, ImageItem, file_item
from ..data.fewshot import test_items
from ..errors import CoopError, UsageError
from ..hub import prompt_path
from .applied import as_head, as_seen_by, check_backbone, evaluate_learned, learned_features
from .head import Head
from .prompt import LearnedPrompt, load_learned
from .scores import Evaluation

NAMED = 20  # classes that an error lists
MEMORY = 2**24  # bytes that features in memory may take: those of 8,000 images

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Classifier:
    """A learned prompt or head with its CLIP, which classifies images among `classes_` [K], the class names.

    An image is a path, a PIL image, or a uint8 array [height, width, 3]. Methods take one image, or several in a list, an
    iterator, an array of paths, or a uint8 array [n, height, width, 3].
    `clip` is by default the model that the file names; `class_names` are other classes than its own, which only a prompt
    without class-specific contexts knows. Each image is encoded once and its features kept in `cache`, as are the class
    features; by default in memory. Images are turned by their EXIF orientation if it was learned from turned ones. It can
    be copied and pickled: a cache in memory is then empty again.
    `probabilities` are "softmax", of one class among all, or "sigmoid", each class on its own: sigmoid of the logit plus
    the model's logit bias (SigLIP, Zhai et al. 2023, Equation 1), so that any number of classes may be probable.

    Raises CoopError when `clip` is another model than the one it was learned on, for unknown classes, and for sigmoid with
    a model that has no logit bias, or with a head; UsageError for fewer than two classes.
    """

    def __init__(
        self,
        learned: LearnedPrompt | Head,
        clip: Backbone | None = None,
        class_names: Sequence[str] | None = None,
        cache: FeatureCache | None = None,
        probabilities: Probabilities = "softmax",
    ) -> None:
        self.probabilities = probabilities
        self.learned, self.cache = learned, cache or FeatureCache(None)
        if not self.cache.path:
            self.cache.limit(MEMORY)  # or memory would grow with the number of images
        self.clip = as_seen_by(learned, clip or load_backbone(learned.model, learned.revision, cache=self.cache))
        check_backbone(learned, self.clip)
        self._bias = _sigmoid_bias(learned, self.clip, probabilities)
        names = learned.class_names if class_names is None else class_names
        # Of its own classes two may have one name, as in ImageNet.
        if isinstance(names, str) or not (2 <= len(names) == len(set(names)) or tuple(names) == learned.class_names):
            raise UsageError(f"class names are a list of two or more, each once, not {reprlib.repr(names)}")
        self.head = as_head(self.clip, learned, names, self.cache)
        self.classes_ = np.array(self.head.class_names)

    def __repr__(self) -> str:
        """What was learned, the classes among which it chooses, and the model."""
        how = self.learned.method if isinstance(self.learned, Head) else self.learned.form
        kind = f", {self.probabilities}" if self.probabilities != "softmax" else ""
        return f"<{type(self).__name__} {how}, {self.head}{kind}>"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        clip: Backbone | None = None,
        class_names: Sequence[str] | None = None,
        cache: FeatureCache | None = None,
        probabilities: Probabilities = "softmax",
    ) -> Self:
        """Load a file or run folder that coop wrote, or user/name[@revision] from the hub.

        Raises UsageError for a path without such a file, CoopError for a damaged one.
        """
        return cls(load_learned(prompt_path(os.fspath(path))), clip, class_names, cache, probabilities)

    def predict(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Predict the most probable class of each image, strings [n]. Raises CoopError for an image that cannot be read."""
        return self.classes_[self.predict_proba(images).argmax(axis=1)]

    def predict_proba(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Predict probabilities, float32 [n, K], columns as in `classes_`. Raises CoopError for an unreadable image."""
        rows = []
        with closing(self.stream(starmap(_item, enumerate(_several(images))))) as stream:
            for _, probabilities in stream:
                if isinstance(probabilities, CoopError):
                    raise probabilities
                rows.append(probabilities.numpy())
        return np.stack(rows) if rows else np.empty((0, len(self.classes_)), np.float32)

    def score(self, images: Iterable[Picture], labels: Iterable[str]) -> float:
        """Compute the share of images, in [0, 1], whose label is predicted. Raises UsageError for a label that is no class."""
        truth = np.array(list(labels))
        if strangers := set(truth.tolist()) - set(self.classes_.tolist()):
            known = ", ".join(self.classes_[:NAMED])
            more = f" and {len(self.classes_) - NAMED:,} more" if len(self.classes_) > NAMED else ""
            raise UsageError(f'unknown class "{min(map(str, strangers))}"; the classes are {known}{more}')
        predicted = self.predict(images)
        if len(truth) != len(predicted) or not len(truth):
            raise UsageError(f"{len(predicted)} images and {len(truth)} labels; give one label for each of one or more images")
        return float((predicted == truth).mean())

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits [n, K] into the chosen kind of probabilities."""
        return logits.softmax(dim=-1) if self._bias is None else (logits + self._bias).sigmoid()

    def stream(self, items: Iterable[ImageItem]) -> Generator[tuple[ImageItem, Tensor | CoopError]]:
        """Yield each image with its probabilities, float32 [K], or with the error of reading it; see `stream_features`."""
        with closing(stream_features(self.clip, items, self.cache)) as stream:
            for item, features in stream:
                if isinstance(features, Tensor):
                    yield item, self.to_probabilities(self.head.logits(features[None]))[0]
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
        probabilities: Probabilities = "softmax",
    ) -> None:
        if isinstance(learned, Head):
            raise UsageError(f"this file holds a {learned.method} head, not a prompt; use Classifier, which takes both")
        super().__init__(learned, clip, class_names, cache, probabilities)

    def class_features(self, class_names: Sequence[str] | None = None) -> Tensor:
        """L2-normalised float32 [K, p] for these classes, by default `classes_`: zero-shot weights of the model `clip`.

        Logits are `clip.logit_scale * image_features @ class_features.T`. Raises CoopError for classes that are not known.
        """
        names = self.head.class_names if class_names is None else class_names
        return learned_features(self.clip, self.learned, names, self.cache)


def evaluate(classifier: Classifier, dataset: DataSet, split: str | None = None) -> Evaluation:
    """Evaluate a learned prompt or head on a data set, among the data's own classes.

    On a split, or a part of one as `select` takes it; by default `test`, or all images of data without splits.
    Raises CoopError for classes that it cannot know, and for an image that cannot be read.
    """
    items = dataset.select(split) if split else test_items(dataset)
    return evaluate_learned(classifier.learned, classifier.clip, dataset, items, cache=classifier.cache, on_error="fail")


def _sigmoid_bias(learned: LearnedPrompt | Head, clip: Backbone, probabilities: str) -> float | None:
    """What is added to logits before a sigmoid, or None for a softmax. Raises as Classifier does."""
    if probabilities not in get_args(Probabilities):
        raise UsageError(f'unknown probabilities "{probabilities}"; choose {" or ".join(get_args(Probabilities))}')
    if probabilities == "softmax":
        return None
    if isinstance(learned, Head):
        raise CoopError(f"a {learned.method} head gives probabilities of one class among all only; leave out sigmoid")
    if clip.logit_bias is None:
        raise CoopError(f'"{clip.name}" has no logit_bias, which sigmoid probabilities need; SigLIP models have one')
    return clip.logit_bias


def _several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """The pictures to classify: several, or one given alone. An array of texts or objects holds paths or pictures."""
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "UO":
            return images.ravel().tolist()
        return [images] if images.ndim < 4 else images
    if not isinstance(images, Iterable) or isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    return images


def _item(number: int, picture: Picture) -> ImageItem:
    """Turn a picture into an item like any other, with bytes to read. Raises UsageError for anything else."""
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
    if picture.mode == "YCbCr":  # as TIFF, an older Pillow cannot read it again
        picture = picture.convert("RGB")
    try:
        picture.save(content, "TIFF")  # which keeps nearly every mode as it is
    except OSError:
        picture.convert("RGB").save(content, "TIFF")
    return ImageItem(f"image {number}", 0, content.getvalue)
