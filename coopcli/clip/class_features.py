"""Compute class features from class names and prompts: one cached path for hand-written and learned prompts."""

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
from .image_features import OnProgress
from .integrity import check_features
from .prompts import ContextSettings, context_prompts, hand_written_prompts
from .text_encoder import TextEncoder

ROWS_AT_ONCE = 1 << 15  # rows that are encoded at once: memory does not grow with the number of classes
ROWS_OF_A_PROMPT = 8  # in a token tree, the most on average; elsewhere a prompt may take all positions


def hand_written_features(
    backbone: Backbone,
    templates: Sequence[str],
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Compute class features [K, p] of hand-written prompts.

    With several templates (ensembling): the mean of their normalised text features, normalised again
    (CLIP, Section 3.1.4). Cached features are not computed again. `on_progress` gets (templates done, all templates).
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        total = torch.zeros(len(class_names), backbone.feature_width, device=backbone.device)
        for done, template in enumerate(templates, 1):
            prompts = hand_written_prompts(backbone.tokenizer, template, class_names, encoder.max_length)
            total += encoder.encode(prompts, chunk=_at_once(encoder))
            if on_progress:
                on_progress(done, len(templates))
        return F.normalize(total / len(templates), dim=-1)

    return _kept(cache, [backbone.model_key, list(templates), list(class_names)], class_names, encode)


def context_features(
    backbone: Backbone,
    context: Tensor,
    settings: ContextSettings,
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
) -> Tensor:
    """Compute class features [K, p] of a learned context, float32 [M, d], or [K, M, d] with one per class.

    Cached features are not computed again.
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        prompts = context_prompts(backbone.tokenizer, settings, class_names, encoder.max_length)
        return encoder.encode(prompts, context.to(backbone.device), _at_once(encoder))

    numbers = hashlib.blake2b(context.numpy().tobytes()).hexdigest()
    about = [backbone.model_key, numbers, asdict(settings), list(class_names)]
    return _kept(cache, about, class_names, encode)


def _at_once(encoder: TextEncoder) -> int:
    return ROWS_AT_ONCE // (ROWS_OF_A_PROMPT if encoder.tower.causal else encoder.max_length)


def _kept(
    cache: FeatureCache | None, about: Sequence[object], class_names: Sequence[str], encode: Callable[[], Tensor]
) -> Tensor:
    """Get class features [K, p] from the cache, keyed by what they are `about`; or compute and keep them.

    Raises CoopError, naming the class, for numbers that are not finite.
    """
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).digest()
    if cache and (known := cache.get([key]).get(key)) is not None:
        return torch.from_numpy(known.copy()).view(len(class_names), -1)
    with torch.inference_mode():
        features = encode().cpu()
    check_features(features, "class", class_names)
    if cache:
        cache.put({key: features.flatten().numpy()})
    return features.clone()  # outside inference mode: usable wherever a tensor is
