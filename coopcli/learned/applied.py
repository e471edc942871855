"""A learned prompt or head applied: to a backbone, to class names, and to the images of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..choices import OnError
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import context_features
from ..clip.image_features import OnProgress, readable_features
from ..data.checks import count_traps, prompt_traps, warn
from ..data.dataset import DataSet, ImageItem
from ..errors import CoopError
from ..names import name_key, places
from .head import Head
from .prompt import LearnedPrompt
from .scores import Evaluation, evaluate_features


def check_backbone(prompt: LearnedPrompt | Head, backbone: Backbone) -> None:
    """Raise CoopError when the prompt was learned on another model: its vectors mean nothing there.

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


def as_seen_by(learned: LearnedPrompt | Head, backbone: Backbone) -> Backbone:
    """The backbone that encodes images as those were that this was learned from: turned by EXIF, normalised, or not."""
    return backbone.with_exif(learned.exif).with_raw(isinstance(learned, Head) and learned.raw)


def classes_of(prompt: LearnedPrompt | Head, dataset: DataSet) -> tuple[str, ...]:
    """Name the data set's classes as the prompt knows them, where it does.

    A class is known by its name, or by its folder; any other keeps the data set's own name.
    """
    known = {name_key(folder): name for folder, name in zip(prompt.folders, prompt.class_names, strict=True)}
    known |= {name_key(name): name for name in prompt.class_names}

    def known_as(folder: str, name: str) -> str:
        by_folder = known.get(name_key(folder), name)
        return known.get(name_key(name), by_folder)

    return tuple(known_as(*pair) for pair in zip(dataset.folders, dataset.class_names, strict=True))


def learned_features(
    backbone: Backbone, prompt: LearnedPrompt, class_names: Sequence[str], cache: FeatureCache | None = None
) -> Tensor:
    """Compute class features [K, p] of a learned prompt for a list of classes. What the cache holds is not encoded again.

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
        if rows != list(range(len(context))):  # a copy of all may be large
            context = context[rows]

    return context_features(backbone, context, prompt.settings, class_names, cache)


def as_head(
    backbone: Backbone, learned: LearnedPrompt | Head, class_names: Sequence[str], cache: FeatureCache | None = None
) -> Head:
    """Make the head of these classes alone; a prompt's weights are its class features times the logit scale.

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
        exif=learned.exif,
    )


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

    Images are turned by EXIF if it was learned from turned ones. Classes go by the names that the prompt knows them by,
    unless they are `renamed`: given by the user for this data.
    Warns of classes that differ from the prompt's and of those without images. Raises CoopError for another backbone,
    for classes that the prompt cannot know, and with `on_error` "fail" for an image that cannot be read.
    """
    cache = cache or FeatureCache(None)
    check_backbone(learned, backbone)
    backbone = as_seen_by(learned, backbone)
    names = dataset.class_names if renamed else classes_of(learned, dataset)
    warn([*prompt_traps(learned.class_names, names), *count_traps(names, items)])
    head = as_head(backbone, learned, names, cache)
    readable, images = readable_features(backbone, items, cache, on_error, on_images)
    return evaluate_features(head.logits, images, names, readable)
