"""Class names and prompts -> class features: the one path for hand-written and for learned prompts, cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone
from .cache import FeatureCache
from .prompts import ContextSettings, context_prompts, hand_written_prompts


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


def context_features(
    backbone: Backbone,
    context: Tensor,
    settings: ContextSettings,
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
) -> Tensor:
    """Class features [K, p] of a learned context, float32 [M, d], or [K, M, d] with a row for each class.

    What the cache knows is not encoded again.
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        prompts = context_prompts(backbone.tokenizer, settings, class_names, encoder.max_length)
        return encoder.encode(prompts, context.to(backbone.device))

    numbers = hashlib.blake2b(context.numpy().tobytes()).hexdigest()
    about = [backbone.model_key, numbers, asdict(settings), list(class_names)]
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
